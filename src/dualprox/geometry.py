"""Groups are slices of a tensor; this page turns them into views and reductions."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checks import is_count, make_plain, require


@dataclass(frozen=True)
class Slices:
    """The partition of a tensor into groups of slices along one axis.

    Args:
        axis: the axis whose slices form the groups; negative counts from the end.
        block: consecutive slices per group, e.g. the head size for attention heads.
        conv_groups: the tensor's axis 0 is first cut into this many equal parts and no group
            crosses a cut. This is the weight of a grouped convolution, (out, in / q, ...): with
            ``axis=1`` it has one group per input channel, all q * (in / q) of them.

    Example:
        >>> import torch
        >>> Slices(axis=1).sum(torch.ones(2, 3))
        tensor([[2., 2., 2.]])
        >>> Slices(axis=1, conv_groups=2).count((4, 3, 1, 1)), Slices(axis=1, block=2).size((5, 4))
        (6, 10)
    """

    axis: int = 1
    block: int = 1
    conv_groups: int = 1

    def __post_init__(self) -> None:
        make_plain(self)
        require(
            isinstance(self.axis, int) and not isinstance(self.axis, bool),
            "axis",
            "an int",
            self.axis,
        )
        require(is_count(self.block), "block", "an int >= 1", self.block)
        require(is_count(self.conv_groups), "conv_groups", "an int >= 1", self.conv_groups)

    def check(self, shape: torch.Size | tuple[int, ...]) -> None:
        """Raise ValueError if a tensor of this shape cannot be cut so."""
        rank = len(shape)
        if not -rank <= self.axis < rank:
            raise ValueError(
                f"axis must be an axis of the tensor, got {self.axis} for shape {tuple(shape)}"
            )
        if self.conv_groups > 1 and (rank < 2 or shape[0] % self.conv_groups):
            raise ValueError(
                f"conv_groups must divide axis 0 of a tensor of >= 2 axes, "
                f"got {self.conv_groups} for shape {tuple(shape)}"
            )
        length = shape[self.axis]
        if self.conv_groups > 1 and self.axis % rank == 0:
            length //= self.conv_groups
        if length % self.block:
            raise ValueError(
                f"block must divide the {length} slices along axis {self.axis}, got {self.block}"
            )

    def view(self, tensor: Tensor) -> Tensor:
        """A view of `tensor` in which every group is one index of the group axes; never a copy."""
        axis = self.axis % max(tensor.dim(), 1)
        if self.conv_groups > 1:
            tensor = tensor.unflatten(0, (self.conv_groups, tensor.shape[0] // self.conv_groups))
            axis += 1
        if self.block > 1:
            tensor = tensor.unflatten(axis, (tensor.shape[axis] // self.block, self.block))
        return tensor

    def inner(self, view: Tensor) -> tuple[int, ...]:
        """The axes of `view` that run inside a group."""
        rank = view.dim() - (self.conv_groups > 1) - (self.block > 1)
        outer = {self.axis % max(rank, 1) + (self.conv_groups > 1)}
        if self.conv_groups > 1:
            outer.add(0)
        return tuple(i for i in range(view.dim()) if i not in outer)

    def sum(self, view: Tensor) -> Tensor:
        """Sums over each group of `view`, with the inner axes kept at length one."""
        inner = self.inner(view)
        return view.sum(dim=inner, keepdim=True) if inner else view.clone()

    def sums(self, terms: Callable[..., Sequence[Tensor]], *values: Any) -> list[Tensor]:
        """Sums over each group of what `terms` makes of views and numbers."""
        return [self.sum(term) for term in terms(*values)]

    def map(self, function: Callable[..., Tensor], *values: Any) -> Tensor:
        """What `function` makes of views and numbers."""
        return function(*values)

    def amax(self, view: Tensor) -> Tensor:
        """Maxima over each group of `view`, with the inner axes kept at length one."""
        inner = self.inner(view)
        if inner and view.numel():
            return view.amax(dim=inner, keepdim=True)
        return self.sum(view).to(view.dtype)

    def norm(self, view: Tensor) -> Tensor:
        """2-norms of each group of `view`, with the inner axes kept at length one."""
        inner = self.inner(view)
        return torch.linalg.vector_norm(view, dim=inner, keepdim=True) if inner else view.abs()

    def count(self, shape: torch.Size | tuple[int, ...]) -> int:
        """How many groups a tensor of this shape has."""
        along = shape[self.axis] // self.block
        return along if self.axis % len(shape) == 0 else along * self.conv_groups

    def size(self, shape: torch.Size | tuple[int, ...]) -> int:
        """How many entries each group of a tensor of this shape has."""
        entries = 1
        for length in shape:
            entries *= length
        return entries // self.count(shape) if entries else 0

    def weight(self, w: Tensor, by_size: bool) -> float:
        """sqrt(entries) of a group of w, or 1."""
        return math.sqrt(self.size(w.shape)) if by_size else 1
