"""Whether a smaller network is, operation by operation, the larger one without what was removed.

The smaller network is traced anew. If every operation is the same, reads the same operands and
has the very shape that is left, and if those that pick indices pick the same ones, then the two
compute the same. Where this fails, the place is returned, and the channels read there stay.
"""

from collections.abc import Collection, Iterator
from operator import getitem
from typing import Any

import numpy as np
import torch
from torch import fx

from .analysis import Analysis, Doubt
from .trace import Trace, arguments, described, is_within, layer_of, lines_of, operator, shapes_of
from .units import Removal
from .values import Value

# Arguments that are lengths of axes. That the result has the right shape is what matters.
_LENGTHS = {"size", "sizes", "shape", "split_size", "split_sizes", "normalized_shape"}
_LENGTHS |= {"groups", "num_groups", "group", "N", "C", "HxW"}
# Operations that cut or join axes, where a fixed length would be written.
_CUTTING = {"view", "reshape", "flatten", "unflatten", "split", "split_with_sizes"}
_CUTTING |= {"chunk", "unsafe_chunk", "tensor_split", "slice", "select"}
_Difference = tuple[str, tuple[int, ...] | None]  # what is different, and in which axes


def compare(
    analysis: Analysis, removal: Removal, slim: Trace, biases: Collection[str] = ()
) -> Doubt | None:
    """The first operation that differs; None if the smaller network is proven to be the larger.

    Args:
        analysis: of the larger network.
        removal: what was removed from it.
        slim: the smaller network.
        biases: names of biases that it has and the larger does not.
    """
    large = analysis.trace
    pairs: dict[fx.Node, fx.Node] = {}
    named = {source.name: node for node, source in slim.sources.items() if source.name}
    inputs = iter([n for n, s in slim.sources.items() if not s.name and s.tensor is None])
    constants = iter([n for n, s in slim.sources.items() if not s.name and s.tensor is not None])
    allowed = {named[name] for name in biases if name in named}
    branches = iter(slim.branches.items())
    for node, branch in large.branches.items():
        other, code = next(branches, (node, None))
        if code is None or code.code != branch.code:
            return Doubt(next(iter(node.users)), "a branch of the code has changed")
        pairs[node] = other
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
        found = _difference(analysis, removal, node, other, pairs, allowed)
        if found is not None:
            reason, axes = found
            return Doubt(node, f"{described(node)} {reason}", axes)
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
    new_biases: set[fx.Node],
) -> _Difference | None:
    """What the two do differently; None if nothing."""
    if _kind(node) != _kind(other):
        return f"becomes {operator(other)}", None
    if node.target is not getitem:
        found = _other_shape(analysis, removal, node, other)
        if found is not None:
            return found
    if operator(node) in ("slice", "select"):
        return _other_indices(analysis, removal, node, other)
    if operator(node) in ("group_norm", "native_group_norm"):
        groups = len(removal.kept(analysis.group_units[node]))
        theirs = arguments(other)
        if theirs.get("num_groups", theirs.get("group")) != groups:
            return f"has another number of groups than {groups}", None
    mine, theirs = arguments(node), arguments(other)
    for name in mine.keys() & _LENGTHS:
        del mine[name], theirs[name]
    if mine.get("bias") is None and theirs.get("bias") in new_biases:
        theirs["bias"] = None
    if not _alike(mine, theirs, pairs):
        return "reads other operands or numbers, which depend on a width", None
    return None


def _kind(node: fx.Node) -> Any:
    """What a node does, whether or not in place in memory."""
    return "view" if operator(node) in ("view", "_unsafe_view", "reshape") else node.target


def _other_shape(
    analysis: Analysis, removal: Removal, node: fx.Node, other: fx.Node
) -> _Difference | None:
    values, shapes = analysis.values[node], shapes_of(other)
    values = values if isinstance(values, list) else [values]
    if len(values) != len(shapes):
        return f"gives {len(shapes)} parts instead of {len(values)}", None
    for value, found in zip(values, shapes, strict=True):
        if value is None or found is None:
            continue
        wanted = tuple(len(removal.kept(ids)) for ids in value.ids)
        if wanted == found:
            continue
        # An axis that is as long as ever has its length in the code.
        fixed = [i for i, n in enumerate(value.shape) if found[i : i + 1] == (n,) != (wanted[i],)]
        axes = tuple(fixed) if len(values) == 1 and fixed else None
        return f"gives shape {found} where {wanted} is left", axes
    return None


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
) -> _Difference | None:
    """Whether a slice or select with its own numbers picks what is left of the same indices."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    value = analysis.values[source]
    assert isinstance(value, Value)
    dim = arguments(node)["dim"] % len(value.shape)
    if arguments(other)["dim"] % len(value.shape) != dim:
        return "picks along another axis", None
    ids = value.ids[dim]
    stays = ~removal.removed[ids]
    place = np.cumsum(stays) - 1  # where an index is in the smaller network
    before, after = np.arange(len(ids)), np.arange(int(stays.sum()))
    mine, theirs = _picked(node, before), _picked(other, after)
    if np.array_equal(place[mine][stays[mine]], theirs):
        return None
    return "picks channels by fixed indices", None


def _picked(node: fx.Node, indices: Any) -> Any:
    given = arguments(node)
    if operator(node) == "select":
        index = given["index"]
        return indices[[index]] if -len(indices) <= index < len(indices) else indices[:0]
    return indices[slice(given["start"], given["end"], given["step"])]


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
        inside = [n for n in trace.calls if is_within(n, layer)]
        at_line = [n for n in inside if lines_of(n)[-1:] and lines_of(n)[-1] in lines]
        if at_line:
            return at_line
        own = [n for n in inside if layer_of(n) == layer and operator(n) in _CUTTING]
        if own or inside:
            return own or inside
    return []


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
