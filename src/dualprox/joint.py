"""Several tensors as one vector of which no copy is made, and what partitions it into groups.

A `Partition` stands in for `Slices` in the formulas of the group penalties, and `Joint` for the
tensor. Sums over groups are vectors, which every formula may hold and combine freely; what has
as many entries as the tensors stays in them.
"""

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, cast

import torch
from torch import Tensor

from .geometry import Slices
from .kinds import as_tuple, check_kinds
from .sharding import whole

How = Literal["sum", "max", "norm"]


@dataclass(frozen=True)
class Member:
    """One tensor of a coupling.

    Args:
        shape: of the tensor.
        slices: how it is cut.
        groups: the group that each slice belongs to, in the order of `slices`; -1 for a slice
            without penalty. Consecutive numbers are kept as a range.

    Raises:
        ValueError: the slices do not fit the shape, or there is not one group for each.

    Example:
        >>> Member((8, 3), Slices(axis=1), (4, 5, 6))
        Member(shape=(8, 3), slices=Slices(axis=1, block=1, conv_groups=1), groups=range(4, 7))
    """

    shape: tuple[int, ...]
    slices: Slices
    groups: Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", as_tuple(self.shape))
        check_kinds(type(self), vars(self))
        self.slices.check(self.shape)
        groups = tuple(operator.index(group) for group in self.groups)
        count = self.slices.count(self.shape)
        if len(groups) != count:
            raise ValueError(
                f"groups must have one entry for each of the {count} slices of a tensor of shape "
                f"{self.shape}, got {len(groups)}"
            )
        if min(groups, default=0) < -1:
            raise ValueError(f"groups must be >= 0, or -1 for no penalty, got {min(groups)}")
        # A range is short to print and to compare, and needs no table to look up.
        first = groups[0] if groups else 0
        run = range(first, first + count)
        object.__setattr__(self, "groups", run if first >= 0 and tuple(run) == groups else groups)

    @cached_property
    def reduced_shape(self) -> tuple[int, ...]:
        """The shape that sums over each slice of the view have, their inner axes at length one."""
        view = self.slices.view(torch.empty(self.shape, device="meta"))
        inner = self.slices.inner(view)
        return tuple(1 if i in inner else length for i, length in enumerate(view.shape))


class Partition(ABC):
    """Groups of the entries of a `Joint`, with the methods of `Slices` that formulas use.

    `members` are the tensors that the joint consists of. Subclasses say how what has been summed
    over each of their slices is combined, to vectors with one entry per group.
    """

    members: tuple[Member, ...]

    @abstractmethod
    def _grouped(self, columns: Sequence[Sequence[Tensor]], how: How) -> list[Tensor]:
        """Of every column, which has the values of the slices of each member, those of groups."""

    @abstractmethod
    def overall(self, values: Sequence[Tensor], how: How) -> Tensor:
        """Values of the members combined to one for all entries, 0-dim."""

    @abstractmethod
    def _slots_of(self, index: int, device: torch.device) -> Tensor | range:
        """Where in a vector of sums those of a member's slices stand."""

    @abstractmethod
    def restored(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """The tensors whose views these are, in their own shapes."""

    @property
    @abstractmethod
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The tensors' shapes."""

    @abstractmethod
    def count(self, shape: object = None) -> int:
        """How many groups there are, whatever the shape."""

    @abstractmethod
    def size(self, shape: object = None) -> Tensor:
        """How many entries each group has in all tensors, whatever the shape."""

    @abstractmethod
    def is_grouped(self, device: torch.device) -> Tensor:
        """True for each group, False for each slice without penalty."""

    @abstractmethod
    def weight(self, w: Tensor, by_size: bool) -> Tensor:
        """The factor of each group's strength; 0 for slices without penalty."""

    def _parts(self, values: Sequence[Any], index: int) -> list[Any]:
        """What of each value meets a member's view: vectors with an entry per group are spread."""
        return [
            value.parts[index]
            if isinstance(value, Joint)
            else self._spread(value, index)
            if isinstance(value, Tensor) and value.dim() > 0
            else value
            for value in values
        ]

    def _spread(self, values: Tensor, index: int) -> Tensor:
        slots, shape = self._slots_of(index, values.device), self.members[index].reduced_shape
        if isinstance(slots, range):
            return values[slots.start : slots.stop].view(shape)
        return values[slots].view(shape)

    def map(self, function: Callable[..., Tensor], *values: Any) -> Tensor:
        """What `function` makes of views and numbers, made for one tensor at a time."""
        rows = (self._parts(values, index) for index in range(len(self.members)))
        return cast(Tensor, Joint(self, [function(*row) for row in rows]))

    def view(self, joint: Tensor) -> Tensor:
        """The joint itself: it consists of views."""
        return joint

    def sum(self, joint: Tensor) -> Tensor:
        """Sums over each group."""
        return self._grouped([self._each(joint, Slices.sum)], "sum")[0]

    def sums(self, terms: Callable[..., Sequence[Tensor]], *values: Any) -> list[Tensor]:
        """Sums of what `terms` makes of views and numbers, made for one tensor at a time."""
        rows = []
        for index, member in enumerate(self.members):
            rows.append([member.slices.sum(x) for x in terms(*self._parts(values, index))])
        return self._grouped([*zip(*rows, strict=True)], "sum")

    def amax(self, joint: Tensor) -> Tensor:
        """Maxima over each group."""
        return self._grouped([self._each(joint, Slices.amax)], "max")[0]

    def norm(self, joint: Tensor) -> Tensor:
        """2-norms of each group."""
        return self._grouped([self._each(joint, Slices.norm)], "norm")[0]

    def _each(self, joint: Any, reduce: Callable[[Slices, Tensor], Tensor]) -> list[Tensor]:
        pairs = zip(self.members, joint.parts, strict=True)
        return [reduce(member.slices, part) for member, part in pairs]


def lowest(dtype: torch.dtype) -> float:
    """What is below every number of a dtype."""
    return float("-inf") if dtype.is_floating_point else torch.iinfo(dtype).min


class Joint:
    """The tensors of a coupling, with the methods of one tensor that the formulas need.

    Operations on entries run tensor by tensor. A vector with an entry per group is broadcast to
    the groups' slices. `sum`, `max` and the 2-norm are over all entries.
    """

    def __init__(self, coupling: Partition, parts: Sequence[Tensor]) -> None:
        self.coupling = coupling
        self.parts = list(parts)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Torch's functions, and the methods and operators of tensors, given a joint."""
        del types
        joint = next(arg for arg in args if isinstance(arg, Joint))
        if func is torch.linalg.vector_norm:
            return joint.coupling.overall([func(part) for part in joint.parts], "norm")
        return joint.coupling.map(partial(func, **(kwargs or {})), *args)

    def tensors(self) -> list[Tensor]:
        """The tensors in their own shapes; no copy."""
        return self.coupling.restored(self.parts)

    def vector(self) -> Tensor:
        """All entries, tensor after tensor, as one new vector; what is sharded is gathered."""
        return torch.cat([whole(tensor).flatten() for tensor in self.tensors()])

    @property
    def dtype(self) -> torch.dtype:
        """The tensors' dtype."""
        return self.parts[0].dtype

    @property
    def device(self) -> torch.device:
        """The tensors' device."""
        return self.parts[0].device

    @property
    def shape(self) -> tuple[tuple[int, ...], ...]:
        """The tensors' shapes."""
        return self.coupling.shapes

    def reshape(self, shape: object) -> "Joint":
        """Itself: it has but one shape."""
        assert shape == self.shape
        return self

    def dim(self) -> int:
        """That of a vector."""
        return 1

    def numel(self) -> int:
        """Entries of all tensors."""
        return sum(math.prod(shape) for shape in self.shape)

    def sum(self) -> Tensor:
        """As `Tensor.sum`."""
        return self.coupling.overall([part.sum() for part in self.parts], "sum")

    def max(self) -> Tensor:
        """As `Tensor.max`."""
        nothing = lowest(self.dtype)
        maxima = [p.max() if p.numel() else p.new_full((), nothing) for p in self.parts]
        return self.coupling.overall(maxima, "max")

    def new_tensor(self, value: float) -> Tensor:
        """As `Tensor.new_tensor`."""
        return self.parts[0].new_tensor(value)


_OPERATORS = "add radd sub rsub mul rmul truediv rtruediv neg eq ne lt le gt ge and or invert"
_METHODS = "abs clamp clamp_min clone expand_as sign square to"


def _method(name: str) -> Callable[..., Tensor]:
    func = getattr(Tensor, name)

    def method(self: Joint, *args: Any, **kwargs: Any) -> Tensor:
        return self.coupling.map(partial(func, **kwargs), self, *args)

    return method


for _name in (*(f"__{name}__" for name in _OPERATORS.split()), *_METHODS.split()):
    setattr(Joint, _name, _method(_name))
