"""Whether a smaller network is, operation by operation, the larger one without what was removed.

The smaller network is traced anew. If every operation is the same, reads the same operands and
has the very shape that is left, and if those that pick indices pick the same ones, then the two
compute the same. Where this fails, the place is returned, and the channels read there stay.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from .analysis import Analysis
from .trace import Trace, described, layer_of, lines_of, operator, shapes_of
from .units import Removal
from .values import Value

# Arguments that are lengths of axes: their place among an operation's arguments. That the result
# has the right shape is what matters.
_LENGTHS = {
    "view": 1, "_unsafe_view": 1, "reshape": 1, "expand": 1, "unflatten": 2,
    "zeros": 0, "ones": 0, "full": 0, "new_zeros": 1, "new_ones": 1, "new_full": 1,
    "split": 1, "split_with_sizes": 1, "group_norm": 1, "conv1d": 6, "conv2d": 6, "conv3d": 6,
    "conv_transpose1d": 6, "conv_transpose2d": 6, "conv_transpose3d": 6, "instance_norm": -1,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Doubt:
    """A place where the smaller network does not do what the larger one does.

    Args:
        node: of the larger network's graph.
        reason: for the report.
    """

    node: fx.Node
    reason: str


def compare(analysis: Analysis, removal: Removal, slim: Trace) -> Doubt | None:
    """The first operation that differs; None if the smaller network is proven to be the larger.

    Args:
        analysis: of the larger network.
        removal: what was removed from it.
        slim: the smaller network.
    """
    large = analysis.trace
    pairs: dict[fx.Node, fx.Node] = {}
    named = {source.name: node for node, source in slim.sources.items() if source.name}
    inputs = iter([n for n, s in slim.sources.items() if not s.name and s.tensor is None])
    constants = iter([n for n, s in slim.sources.items() if not s.name and s.tensor is not None])
    for node, source in large.sources.items():
        if source.name:
            if node.users and source.name not in named:
                return Doubt(next(iter(node.users)), f"{source.name} is no longer read")
            pairs[node] = named.get(source.name, node)
        else:
            pairs[node] = next(inputs if source.tensor is None else constants, node)
            other = slim.sources.get(pairs[node])
            if source.tensor is not None and not (
                other is not None
                and other.tensor is not None
                and torch.equal(source.tensor, other.tensor)
            ):
                return Doubt(next(iter(node.users)), "a constant in the code has changed")
    calls = large.calls
    for place, node in enumerate(calls):
        if place >= len(slim.calls):
            return Doubt(node, "the smaller network does not run it")
        other = slim.calls[place]
        reason = _difference(analysis, removal, node, other, pairs)
        if reason is not None:
            return Doubt(node, f"{described(node)} {reason}")
        pairs[node] = other
    if len(slim.calls) > len(calls):
        return Doubt(calls[-1], "the smaller network runs other operations")
    return None


def _difference(
    analysis: Analysis,
    removal: Removal,
    node: fx.Node,
    other: fx.Node,
    pairs: dict[fx.Node, fx.Node],
) -> str | None:
    """What the two do differently; None if nothing."""
    operation = operator(node)
    if node.target != other.target:
        return f"becomes {operator(other)}"
    if operation == "getitem":
        return None if _alike(node.args, other.args, pairs) else "reads another operand"
    values = analysis.values[node]
    for value, found in zip(
        values if isinstance(values, list) else [values], shapes_of(other), strict=True
    ):
        if value is None or found is None:
            continue
        wanted = tuple(len(removal.kept(ids)) for ids in value.ids)
        if wanted != found:
            return f"gives shape {found} where {wanted} is left"
    if operation in ("slice", "select"):
        return _other_indices(analysis, removal, node, other)
    length = _LENGTHS.get(operation)
    mine, theirs = list(node.args), list(other.args)
    if operation in ("layer_norm", "rms_norm", "native_group_norm"):
        mine, theirs = _operands(mine), _operands(theirs)
    if length is not None and len(mine) == len(theirs) and len(mine) > length:
        del mine[length], theirs[length]
    if not _alike(mine, theirs, pairs):
        return "reads other operands or numbers, which depend on a width"
    if not _alike(dict(node.kwargs), dict(other.kwargs), pairs):
        return "reads other operands or numbers, which depend on a width"
    return None


def _operands(args: list[Any]) -> list[Any]:
    return [arg for arg in args if isinstance(arg, fx.Node | float)]


def _alike(mine: Any, theirs: Any, pairs: dict[fx.Node, fx.Node]) -> bool:
    if isinstance(mine, fx.Node):
        return pairs.get(mine) is theirs
    if isinstance(mine, list | tuple):
        return (
            isinstance(theirs, list | tuple)
            and len(mine) == len(theirs)
            and all(_alike(a, b, pairs) for a, b in zip(mine, theirs, strict=True))
        )
    if isinstance(mine, dict):
        return mine.keys() == theirs.keys() and all(
            _alike(mine[key], theirs[key], pairs) for key in mine
        )
    return type(mine) is type(theirs) and (mine == theirs or mine != mine)


def _other_indices(
    analysis: Analysis, removal: Removal, node: fx.Node, other: fx.Node
) -> str | None:
    """Whether a slice or select with its own numbers picks what is left of the same indices."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    value = analysis.values[source]
    assert isinstance(value, Value)
    dim = _argument(node, 1, 0) % len(value.shape)
    if _argument(other, 1, 0) % len(value.shape) != dim:
        return "picks along another axis"
    ids = value.ids[dim]
    stays = ~removal.removed[ids]
    place = np.cumsum(stays) - 1  # where an index is in the smaller network
    before, after = np.arange(len(ids)), np.arange(int(stays.sum()))
    mine, theirs = _picked(node, before), _picked(other, after)
    if np.array_equal(place[mine][stays[mine]], theirs):
        return None
    return "picks channels by fixed indices"


def _picked(node: fx.Node, indices: Any) -> Any:
    if operator(node) == "select":
        index = _argument(node, 2, 0)
        return indices[[index]] if -len(indices) <= index < len(indices) else indices[:0]
    return indices[slice(_argument(node, 2, None), _argument(node, 3, None), _argument(node, 4, 1))]


def _argument(node: fx.Node, place: int, default: Any) -> Any:
    if len(node.args) > place:
        return node.args[place]
    names = {1: "dim", 2: "start", 3: "end", 4: "step"}
    return node.kwargs.get(names[place], default)


def where_it_failed(trace: Trace, slim: Any, error: BaseException) -> list[fx.Node]:
    """The operations of the larger network at the line where the smaller one raised.

    Args:
        trace: the larger network.
        slim: the smaller network, a module.
        error: what it raised.
    """
    names = {id(module): name for name, module in slim.named_modules()}
    frames = list(_frames(error))
    lines = {line for _, line in frames}
    layers = [names[owner] for owner, _ in frames if owner in names]
    for layer in reversed(layers):
        inside = [n for n in trace.calls if layer_of(n) == layer or _within(n, layer)]
        at_line = [n for n in inside if lines_of(n)[-1:] and lines_of(n)[-1] in lines]
        if at_line:
            return at_line
        cutting = {*_LENGTHS, "slice", "select"}
        own = [n for n in inside if layer_of(n) == layer and operator(n) in cutting]
        if own or inside:
            return own or inside
    return []


def _within(node: fx.Node, layer: str) -> bool:
    return not layer or layer_of(node).startswith(f"{layer}.")


def _frames(error: BaseException) -> Iterator[tuple[int, tuple[str, int]]]:
    """(id of the frame's `self`, (file, line)) of every frame of an error and its causes."""
    seen: BaseException | None = error
    while seen is not None:
        step = seen.__traceback__
        while step is not None:
            owner = id(step.tb_frame.f_locals.get("self"))
            yield owner, (step.tb_frame.f_code.co_filename, step.tb_lineno)
            step = step.tb_next
        seen = seen.__cause__ or seen.__context__
