"""Operations that move entries about: what becomes of the units of each axis."""

import math
from typing import Any

import numpy as np
import torch
from torch import fx

from .analysis import Analysis
from .operations import handles
from .trace import described, operator, shapes_of
from .units import RIGID, Grid, Ids, rigid
from .values import Known, Value, mapped


def factors(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """The runs of axes of two shapes that hold the same entries; axes of length one left out."""
    runs: list[tuple[list[int], list[int]]] = []
    left = [i for i, n in enumerate(before) if n != 1]
    right = [i for i, n in enumerate(after) if n != 1]
    while left or right:
        own, other = [left.pop(0)], [right.pop(0)]
        size, goal = before[own[0]], after[other[0]]
        while size != goal:
            if size < goal:
                own.append(left.pop(0))
                size *= before[own[-1]]
            else:
                other.append(right.pop(0))
                goal *= after[other[-1]]
        runs.append((own, other))
    return runs


def _spread(ids: Ids, axis: int, shape: tuple[int, ...]) -> Ids:
    return np.broadcast_to(ids.reshape([-1 if i == axis else 1 for i in range(len(shape))]), shape)


def _merge(a: Analysis, ids: list[Ids], reason: str) -> Ids:
    """The units of the entries of a grid that is flattened."""
    shape = tuple(len(each) for each in ids)
    loose = [axis for axis, each in enumerate(ids) if (each != RIGID).any()]
    if len(loose) <= 1:
        axis = loose[0] if loose else 0
        return _spread(ids[axis], axis, shape).reshape(-1)
    flat = a.units.fresh(int(np.prod(shape)))
    a.units.rules.append(Grid(flat.reshape(shape), tuple(ids), reason))
    return flat


def _split(a: Analysis, flat: Ids, shape: tuple[int, ...], reason: str) -> list[Ids]:
    """The units of the axes of a grid into which a flat axis is cut."""
    grid = flat.reshape(shape)
    rest = [rigid(n) for n in shape]
    for axis in range(len(shape)):
        first = grid[tuple(slice(None) if i == axis else 0 for i in range(len(shape)))]
        if (grid == _spread(first, axis, shape)).all():
            return [first if i == axis else rest[i] for i in range(len(shape))]
    axes = tuple(a.units.fresh(n) for n in shape)
    a.units.rules.append(Grid(grid, axes, reason))
    return list(axes)


@handles("view", "_unsafe_view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze")
def reshape(a: Analysis, node: fx.Node, x: Value, *_: Any, **__: Any) -> Value:
    """Entries stay in order; axes are merged and cut."""
    shape = shapes_of(node)[0]
    assert shape is not None
    if 0 in shape:
        return Value.rigid(shape)
    ids: list[Ids] = [rigid(n) for n in shape]
    reason = f"{described(node)} cuts or joins axes, and a slice of them has other live entries"
    for own, other in factors(x.shape, shape):
        sides = [x.ids[i] for i in own]
        if len(own) == 1 and len(other) == 1:
            ids[other[0]] = sides[0]
            continue
        flat = sides[0] if len(own) == 1 else _merge(a, sides, reason)
        cut = tuple(shape[i] for i in other)
        parts = [flat] if len(other) == 1 else _split(a, flat, cut, reason)
        for i, part in zip(other, parts, strict=True):
            ids[i] = part
    return Value(shape, tuple(ids), _reshaped(x.known, x.shape, shape))


def _reshaped(facts: Known | None, before: tuple[int, ...], after: tuple[int, ...]) -> Known | None:
    if facts is None:
        return None
    lengths, goal = list(facts.mask.shape), [1] * len(after)
    for own, other in factors(before, after):
        if any(lengths[i] > 1 for i in own):
            for i in own:
                lengths[i] = before[i]
            for i in other:
                goal[i] = after[i]
    return mapped(lambda t: t.expand(lengths).reshape(goal), facts)


@handles("permute", "transpose", "t", "numpy_T", "swapaxes", "movedim")
def permute(a: Analysis, node: fx.Node, x: Value, *args: Any) -> Value:
    """Axes change places."""
    del a
    order = torch.arange(len(x.shape))
    tagged = torch.empty(tuple(range(2, 2 + len(x.shape))))
    assert callable(node.target)
    moved = node.target(tagged, *args)
    order = [length - 2 for length in moved.shape]
    return Value(
        tuple(x.shape[i] for i in order),
        tuple(x.ids[i] for i in order),
        mapped(lambda tensor: tensor.permute(order), x.known),
    )


@handles("expand")
def expand(a: Analysis, node: fx.Node, x: Value, *_: Any, **__: Any) -> Value:
    """Axes of length one are repeated; the copies have no units of their own."""
    del a
    shape, new = _axes_in_front(node, x)
    ids = [rigid(n) for n in shape]
    for axis, own in enumerate(x.ids, start=new):
        if len(own) == shape[axis]:
            ids[axis] = own
    return Value(shape, tuple(ids), mapped(lambda t: t.reshape((1,) * new + t.shape), x.known))


def _axes_in_front(node: fx.Node, x: Value) -> tuple[tuple[int, ...], int]:
    """The shape of a result with more axes than x, and how many it has in front of x's."""
    shape = shapes_of(node)[0]
    assert shape is not None
    return shape, len(shape) - len(x.shape)


@handles("repeat")
def repeat(a: Analysis, node: fx.Node, x: Value, times: list[int]) -> Value:
    """Copies one after another."""
    del a
    shape, new = _axes_in_front(node, x)
    ids = [rigid(n) for n in shape]
    for axis, own in enumerate(x.ids, start=new):
        ids[axis] = np.tile(own, times[axis])
    return Value(shape, tuple(ids))


@handles("cat")
def cat(a: Analysis, node: fx.Node, tensors: list[Value], dim: int = 0) -> Value:
    """One after another along an axis."""
    shape = shapes_of(node)[0]
    assert shape is not None
    tensors = [t for t in tensors if t.shape != (0,)]
    dim %= len(shape)
    joined = np.concatenate([t.ids[dim] for t in tensors])
    for tensor in tensors[1:]:
        for axis in range(len(shape)):
            if axis != dim:
                a.units.same(tensors[0].ids[axis], tensor.ids[axis])
    facts = [t.facts() for t in tensors]
    known = None
    if any(fact is not None for fact in facts) and math.prod(shape[1:]) < _MOST_FACTS:
        known = _joined([(f, t) for f, t in zip(facts, tensors, strict=True)], dim)
    return Value(shape, tensors[0].with_axis(dim, joined).ids, known)


_MOST_FACTS = 2**22


def _joined(parts: list[tuple[Known | None, Value]], dim: int) -> Known | None:
    lengths = [1] * len(parts[0][1].shape)
    for fact, _ in parts:
        if fact is not None:
            lengths = [max(n, m) for n, m in zip(lengths, fact.mask.shape, strict=True)]
    masks, values = [], []
    for fact, value in parts:
        goal = [value.shape[dim] if i == dim else n for i, n in enumerate(lengths)]
        if fact is None:
            masks.append(torch.zeros(goal, dtype=torch.bool))
            values.append(torch.zeros(goal, dtype=torch.float64))
        else:
            masks.append(fact.mask.expand(goal))
            values.append(fact.value.expand(goal))
    return Known(torch.cat(masks, dim), torch.cat(values, dim)).checked()


@handles("stack")
def stack(a: Analysis, node: fx.Node, tensors: list[Value], dim: int = 0) -> Value:
    """Side by side on a new axis, read by index later."""
    shape = shapes_of(node)[0]
    assert shape is not None
    dim %= len(shape)
    for tensor in tensors[1:]:
        for first, other in zip(tensors[0].ids, tensor.ids, strict=True):
            a.units.same(first, other)
    ids = list(tensors[0].ids)
    ids.insert(dim, rigid(len(tensors)))
    return Value(shape, tuple(ids))


def _cut(x: Value, dim: int, start: int, length: int) -> Value:
    part = x.with_axis(dim, x.ids[dim][start : start + length])
    shape = tuple(length if i == dim else n for i, n in enumerate(x.shape))
    known = x.known
    if known is not None and known.mask.shape[dim] > 1:
        known = mapped(lambda t: t.narrow(dim, start, length), known)
    return Value(shape, part.ids, known)


@handles("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk")
def split(a: Analysis, node: fx.Node, x: Value, _: Any, dim: int = 0) -> list[Value]:
    """Runs of indices along an axis; whether the code cuts a shorter axis alike, the proof sees."""
    dim %= len(x.shape)
    parts, start = [], 0
    for shape in shapes_of(node):
        assert shape is not None
        parts.append(_cut(x, dim, start, shape[dim]))
        start += shape[dim]
    if len({len(part.ids[dim]) for part in parts}) == 1:
        a.equal_parts.append([part.ids[dim] for part in parts])
    return parts


@handles("slice")
def slice_(
    a: Analysis,
    node: fx.Node,
    x: Value,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Value:
    """Some indices along an axis; the proof sees whether the code picks the same of fewer."""
    dim %= len(x.shape)
    picked = np.arange(x.shape[dim])[slice(start, end, step)]
    if x.data is not None and len(picked) < x.shape[dim]:
        # Other inputs may be longer and read the rest: positions, say.
        a.pin(x, f"{described(node)} reads part of it, other inputs may read more", [dim])
    shape = shapes_of(node)[0]
    assert shape is not None
    known = x.known
    if known is not None and known.mask.shape[dim] > 1:
        index = torch.from_numpy(picked)
        known = mapped(lambda t: t.index_select(dim, index), known)
    return Value(shape, x.with_axis(dim, x.ids[dim][picked]).ids, known)


@handles("select")
def select(a: Analysis, node: fx.Node, x: Value, dim: int, index: int) -> Value:
    """One index along an axis, which has to stay."""
    dim %= len(x.shape)
    if x.data is None:
        a.units.pin(x.ids[dim][[index]], f"{described(node)} reads it by its index")
    else:
        a.pin(x, f"{described(node)} reads one by its index, other inputs may read others", [dim])
    shape = shapes_of(node)[0]
    assert shape is not None
    known = x.known
    if known is not None:
        at = index if known.mask.shape[dim] > 1 else 0
        known = mapped(lambda t: t.select(dim, at), known)
    return Value(shape, tuple(ids for i, ids in enumerate(x.ids) if i != dim), known)


@handles("index_select")
def index_select(a: Analysis, node: fx.Node, x: Value, dim: int, index: Value) -> Any:
    """Indices that a constant names: all stay where they are, a name that nobody needs goes."""
    if index.data is None or index.data.dim() != 1 or not x.shape:
        return a.opaque(node)
    dim %= len(x.shape)
    a.pin(x, f"{described(node)} reads it by its index", [dim])
    result = x.with_axis(dim, index.ids[0])
    known = x.known
    if known is not None and known.mask.shape[dim] > 1:
        places = index.data.detach().cpu()
        known = mapped(lambda t: t.index_select(dim, places), known)
    shape = tuple(map(len, result.ids))
    return Value(shape, result.ids, known)


@handles("unbind")
def unbind(a: Analysis, node: fx.Node, x: Value, dim: int = 0) -> list[Value]:
    """Every index along an axis by itself."""
    dim %= len(x.shape)
    a.pin(x, f"{described(node)} reads each by its index", [dim])
    rest = tuple(ids for i, ids in enumerate(x.ids) if i != dim)
    return [Value(shape, rest) for shape in shapes_of(node) if shape is not None]


@handles("roll")
def roll(a: Analysis, node: fx.Node, x: Value, _: Any, dims: list[int] | None = None) -> Value:
    """Indices change places in circles, which depend on the axis's length."""
    a.pin(x, f"{described(node)} moves all along the axis", dims or None)
    return Value(x.shape, x.ids)


@handles("pixel_shuffle", "pixel_unshuffle", "channel_shuffle")
def interleave(a: Analysis, node: fx.Node, x: Value, factor: int) -> Value:
    """Channels into space or back, or from (groups, each) to (each, groups)."""
    shape = shapes_of(node)[0]
    assert shape is not None
    axis = 1 if len(x.shape) == 4 else len(x.shape) - 3
    ids = x.ids[axis]
    if operator(node) == "channel_shuffle":
        axes = a.units.fresh(factor), a.units.fresh(len(ids) // factor)
        a.units.pin(axes[0], f"{described(node)} has so many groups")
        reason = f"{described(node)} takes one of each group in turn"
        a.units.rules.append(Grid(ids.reshape(factor, -1), axes, reason))
        ids = ids.reshape(factor, -1).T.reshape(-1)
    elif operator(node) == "pixel_shuffle":
        grid = ids.reshape(-1, factor**2)
        a.units.same(np.repeat(grid[:, :1], factor**2, 1), grid)
        ids = grid[:, 0].copy()
    else:
        ids = np.repeat(ids, factor**2)
    space = (*(rigid(n) for n in shape[axis + 1 :]),)
    return Value(shape, (*x.ids[:axis], ids, *space))


@handles("flip")
def flip(a: Analysis, node: fx.Node, x: Value, dims: list[int]) -> Value:
    """Indices in reverse order."""
    del a, node
    for dim in dims:
        x = x.with_axis(dim % len(x.shape), x.ids[dim][::-1].copy())
    return Value(x.shape, x.ids)


@handles(
    "constant_pad_nd",
    "pad",
    "reflection_pad1d",
    "reflection_pad2d",
    "replication_pad1d",
    "replication_pad2d",
    "replication_pad3d",
    "reflection_pad3d",
)
def pad(
    a: Analysis, node: fx.Node, x: Value, amounts: list[int], mode: Any = "", value: Any = None
) -> Value:
    """More indices at the ends of the last axes, or fewer; as many, moved along, if both."""
    shape = shapes_of(node)[0]
    assert shape is not None
    ids = list(x.ids)
    pairs = zip(amounts[::2], amounts[1::2], strict=True)  # from the last axis on
    padded = [len(shape) - 1 - place for place, ends in enumerate(pairs) if any(ends)]
    for axis in padded:
        a.pin(x, f"{described(node)} pads its axis", [axis])
        ids[axis] = rigid(shape[axis])
    filled = 0.0
    if not isinstance(mode, str):  # constant_pad_nd(x, amounts, value)
        filled = float(mode or 0.0)
    elif mode in ("", "constant"):
        filled = float(value or 0.0)
    else:
        filled = None
    known = x.known
    if known is not None:
        if any(known.mask.shape[i] > 1 for i in padded):
            known = None
        elif filled is not None:
            known = Known(known.mask & (known.value == filled), known.value).checked()
    return Value(shape, tuple(ids), known)


@handles("glu")
def glu(a: Analysis, node: fx.Node, x: Value, dim: int = -1) -> Value:
    """One half times the sigmoid of the other."""
    dim %= len(x.shape)
    half = x.shape[dim] // 2
    first, second = _cut(x, dim, 0, half), _cut(x, dim, half, half)
    a.units.same(first.ids[dim], second.ids[dim])
    shape = shapes_of(node)[0]
    assert shape is not None
    return Value(shape, first.ids)
