"""Where the groups of a tensor lie in memory, for kernels that walk through memory in order."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..geometry import Slices


@dataclass(frozen=True)
class Grid:
    """Memory as (parts, outer, groups, inner): entry ((p outer + o) groups + g) inner + i.

    Group number g of part p is all entries with that p and g, any o and i.

    Args:
        parts: independent blocks of memory one after the other.
        outer: runs of each group.
        groups: groups in each part.
        inner: adjacent entries in a run.
    """

    parts: int
    outer: int
    groups: int
    inner: int

    @property
    def group_size(self) -> int:
        """Entries of one group."""
        return self.outer * self.inner


def memory_order(tensor: Tensor) -> tuple[int, ...] | None:
    """The axes from the slowest to the fastest, if the tensor fills its memory; else None."""
    if tensor.numel() == 0:
        return tuple(range(tensor.dim()))
    order = sorted(range(tensor.dim()), key=lambda k: (-tensor.stride(k), -tensor.shape[k], k))
    expected = 1
    for axis in reversed(order):
        if tensor.shape[axis] != 1 and tensor.stride(axis) != expected:
            return None
        expected *= tensor.shape[axis]
    return tuple(order)


def grid_of(tensor: Tensor, slices: Slices | None) -> Grid | None:
    """The grid of `slices` in the tensor's memory; None if the groups do not lie in a grid.

    Any tensor without gaps has one, channels_last ones too, except for grouped convolutions
    stored with their axis 0 inside. Without slices all entries are one run.

    Example:
        >>> import torch
        >>> grid_of(torch.empty(4, 6, 3, 3), Slices(axis=1))
        Grid(parts=1, outer=4, groups=6, inner=9)
        >>> grid_of(torch.empty(4, 6, 3, 3, ).to(memory_format=torch.channels_last), Slices(axis=1))
        Grid(parts=1, outer=36, groups=6, inner=1)
    """
    return _grid_of(tuple(tensor.shape), tensor.stride(), slices)


@lru_cache(maxsize=4096)
def _grid_of(
    shape: tuple[int, ...], strides: tuple[int, ...], slices: Slices | None
) -> Grid | None:
    """The same from shape and strides: plans made anew when a strength changes ask it again."""
    tensor = torch.empty_strided(shape, strides, device="meta")
    order = memory_order(tensor)
    if order is None:
        return None
    if slices is None or tensor.numel() == 0:
        return Grid(1, 1, 1, tensor.numel())
    axis = slices.axis % tensor.dim()
    parts, place = slices.conv_groups, order.index(axis)
    # Axes of length one have no place of their own in memory.
    before = [k for k in order[: order.index(0)] if tensor.shape[k] != 1]
    if parts > 1 and before:
        return None
    if parts > 1 and axis == 0:
        parts = 1  # cuts along the axis of the slices part no group
    outer = inner = 1
    for k in order[:place]:
        outer *= tensor.shape[k]
    for k in order[place + 1 :]:
        inner *= tensor.shape[k]
    groups, inner = tensor.shape[axis] // slices.block, inner * slices.block
    outer //= parts
    if groups == 1 or outer == 1:  # each group is one run
        return Grid(1, 1, groups * parts, tensor.numel() // (groups * parts))
    return Grid(parts, outer, groups, inner)
