"""The sizes that modules remember: what they become when their tensors are cut."""

import re
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from .analysis import Analysis
from .moves import factors
from .trace import layer_of, operator
from .units import Removal
from .values import Value

_CUTS = {"view", "_unsafe_view", "reshape", "flatten", "unflatten"}
_CUTS |= {"split", "split_with_sizes", "chunk", "unsafe_chunk", "tensor_split"}
_SIZE_LIKE = re.compile(r"dim|size|width|channels|features|hidden")


class Guess(Enum):
    """How to look for sizes in modules that are not torch's.

    Args:
        NONE: not at all; their code reads shapes.
        CUTS: where they cut and join axes.
        ALL: in the lengths of all axes that they give another shape.
    """

    NONE = 0
    CUTS = 1
    ALL = 2


def new_widths(
    analysis: Analysis, removal: Removal, modules: Mapping[str, nn.Module], guess: Guess
) -> dict[str, dict[str, Any]]:
    """Name of a module -> attribute -> its new value, for all that change.

    Modules of torch say by their type what their attributes mean. In other modules that cut or
    join axes whole numbers are found by value: attention with 12 heads whose output is cut into
    12 heads remembers 12 somewhere. A wrong guess does not survive the proof that follows.

    Args:
        analysis: of the network.
        removal: from it.
        modules: the network's, by name.
        guess: how bold to be.
    """
    shapes = {
        name: tuple(len(removal.kept(ids)) for ids in value.ids)
        for name, value in analysis.tensors.items()
    }
    found: dict[str, dict[str, Any]] = {}
    groups = {
        layer_of(node): len(removal.kept(units)) for node, units in analysis.group_units.items()
    }
    for name, module in modules.items():
        own = {
            leaf: shapes[path]
            for leaf in ("weight", "running_mean", "weight_ih_l0")
            if (path := f"{name}.{leaf}".removeprefix(".")) in shapes
        }
        values = dict(_typed(module, own, groups.get(name)))
        if guess != Guess.NONE and not _of_torch(module):
            values.update(_guessed(analysis, removal, name, module, guess == Guess.ALL))
        changed = {key: v for key, v in values.items() if getattr(module, key, None) != v}
        if changed:
            found[name] = changed
    return found


def _of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith(("torch.nn.", "dualprox."))


def _typed(
    module: nn.Module, shapes: Mapping[str, tuple[int, ...]], groups: int | None
) -> Iterator[tuple[str, Any]]:
    weight = shapes.get("weight")
    if isinstance(module, nn.RNNBase) and "weight_ih_l0" in shapes:
        rows, inputs = shapes["weight_ih_l0"]
        yield "input_size", inputs
        weight = module.weight_ih_l0
        assert isinstance(weight, Tensor)
        yield "hidden_size", module.hidden_size * rows // weight.shape[0]
    elif isinstance(module, nn.GroupNorm) and weight and groups:
        yield "num_groups", groups
        yield "num_channels", weight[0]
    elif isinstance(module, _NormBase):
        widths = weight or shapes.get("running_mean")
        if widths:
            yield "num_features", widths[0]
    elif weight is None:
        return
    elif isinstance(module, nn.Linear):
        yield "out_features", weight[0]
        yield "in_features", weight[1]
    elif isinstance(module, _ConvNd):
        groups = groups or module.groups
        first, second = weight[0], weight[1] * groups
        transposed = isinstance(module, _ConvTransposeNd)
        yield "in_channels", first if transposed else second
        yield "out_channels", second if transposed else first
        yield "groups", groups
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        yield "normalized_shape", weight
    elif isinstance(module, nn.Embedding):
        yield "embedding_dim", weight[1]
    elif isinstance(module, nn.PReLU):
        yield "num_parameters", weight[0]
    elif type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # Hugging Face's
        yield "nf", weight[1]
        yield "nx", weight[0]


def _guessed(
    analysis: Analysis, removal: Removal, name: str, module: nn.Module, bold: bool
) -> dict[str, Any]:
    """Whole numbers of a module that are lengths of axes which get shorter where it cuts them."""
    changes: dict[tuple[int, bool], set[int]] = {}
    for node in analysis.trace.calls:
        if layer_of(node) == name and operator(node) in _CUTS:
            for old, new, is_count in _changes(analysis, removal, node, bold):
                if new != old:
                    changes.setdefault((old, is_count), set()).add(new)
    values = {}
    for attribute, value in vars(module).items():
        if type(value) is not int:
            continue
        is_count = _SIZE_LIKE.search(attribute) is None
        new = changes.get((value, is_count), set())
        if len(new) == 1:
            values[attribute] = next(iter(new))
    return values


def _changes(
    analysis: Analysis, removal: Removal, node: fx.Node, bold: bool
) -> Iterator[tuple[int, int, bool]]:
    """(old length, new length, whether it counts slices rather than entries) of axes cut here."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    before, after = analysis.values[source], analysis.values[node]
    if not isinstance(after, Value):  # the parts of a split
        for value in after:
            for ids in value.ids:
                yield len(ids), len(removal.kept(ids)), False
        return
    for own, other in factors(before.shape, after.shape):
        if len(own) == len(other) == 1 and not bold:
            continue
        whole, parts = (own, other) if len(own) == 1 else (other, own)
        sides = (before, after) if len(own) == 1 else (after, before)
        for axis in whole:
            ids = sides[0].ids[axis]
            yield len(ids), len(removal.kept(ids)), False
        if len(parts) > 1:
            for axis in parts:
                ids = sides[1].ids[axis]
                yield len(ids), len(removal.kept(ids)), True
