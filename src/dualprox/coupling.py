"""Groups that span several tensors, as the channels of a residual stream do.

`Coupling` says which slice of which tensor belongs to which group. It stands in for `Slices` in
the formulas of the group penalties, and `Joint` for the tensor: all tensors of the coupling as one
vector, of which no copy is made.
"""

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from typing import Any, cast

import torch
from torch import Tensor

from .checks import is_count, require
from .geometry import Slices


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
        object.__setattr__(self, "shape", tuple(self.shape))
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


@dataclass(frozen=True)
class _Tables:
    """A coupling's indices on one device.

    Args:
        slices_of: the slices of each group, one group a row, filled up with a number past the last.
        free: the slices without penalty; None if there are none.
        slots: for each member, where in a vector of sums those of its slices stand.
    """

    slices_of: Tensor
    free: Tensor | None
    slots: list[Tensor | range]


@dataclass(frozen=True)
class Coupling:
    """Groups made of slices of several tensors: a group lives or dies in all of them together.

    Sums over groups are vectors with one entry per group, and behind those one for each slice
    without penalty, which so is a group of its own, of weight zero.

    Args:
        members: the tensors, in the order of the parameters in their param group.
        counted: the size of each group that its weight goes by; None for its entries. Groups that
            have lost entries, which were zero, so keep their weight.
        weights: a factor >= 0 on the weight of each group; None for 1. With 0 a group is free.

    Raises:
        ValueError: the groups are not numbered from 0 on without a gap, or not all are counted or
            weighted.

    Example:
        >>> reader = Member((4, 3), Slices(axis=1), (0, 1, 2))
        >>> writer = Member((3, 2, 5, 5), Slices(axis=0), (2, 0, -1))
        >>> coupling = Coupling((reader, writer))
        >>> coupling.count(), coupling.size().tolist()
        (3, [54, 4, 54])
    """

    members: tuple[Member, ...]
    counted: tuple[int, ...] | None = None
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", tuple(self.members))
        if not all(isinstance(member, Member) for member in self.members):
            raise TypeError(f"members must be Member objects, got {self.members}")
        used = {group for member in self.members for group in member.groups if group >= 0}
        if not used:
            raise ValueError("members must have a slice in a group, got none")
        unused = set(range(max(used) + 1)) - used
        if unused:
            raise ValueError(
                f"groups must be numbered from 0 on without a gap, got up to {max(used)} "
                f"and none for {min(unused)}"
            )
        if self.counted is not None:
            object.__setattr__(self, "counted", tuple(self.counted))
            ok = len(self.counted) == len(used) and all(is_count(size) for size in self.counted)
            require(ok, "counted", f"an int >= 1 for each of the {len(used)} groups", self.counted)
        if self.weights is not None:
            object.__setattr__(self, "weights", tuple(map(float, self.weights)))
            ok = len(self.weights) == len(used) and all(0 <= w < math.inf for w in self.weights)
            rule = f"a finite number >= 0 for each of the {len(used)} groups"
            require(ok, "weights", rule, self.weights)

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # not the tables

    def __str__(self) -> str:
        return f"{self.count()} groups in {len(self.members)} tensors"

    def check(self, shapes: Sequence[torch.Size | tuple[int, ...]], names: Sequence[str]) -> None:
        """Raise ValueError unless these are the shapes of the members; `names` name them."""
        if len(shapes) != len(self.members):
            raise ValueError(
                f"a coupling of {len(self.members)} tensors needs as many parameters, "
                f"got {len(shapes)}: {', '.join(names)}"
            )
        for name, shape, member in zip(names, shapes, self.members, strict=True):
            if tuple(shape) != member.shape:
                raise ValueError(
                    f"parameter {name} must have the shape {member.shape} of its member of the "
                    f"coupling, got {tuple(shape)}"
                )

    def joint(self, tensors: Iterable[Tensor]) -> "Joint":
        """The tensors as one `Joint`; no copy."""
        pairs = zip(self.members, tensors, strict=True)
        return Joint(self, [member.slices.view(tensor) for member, tensor in pairs])

    def split(self, vector: Tensor) -> "Joint":
        """The `Joint` whose entries, tensor after tensor, are those of `vector`; no copy."""
        sizes = [math.prod(member.shape) for member in self.members]
        pieces = zip(vector.split(sizes), self.members, strict=True)
        return self.joint(piece.view(member.shape) for piece, member in pieces)

    def numel(self) -> int:
        """Entries of all tensors."""
        return sum(math.prod(member.shape) for member in self.members)

    @cached_property
    def _count(self) -> int:
        return 1 + max(max(member.groups, default=-1) for member in self.members)

    @cached_property
    def _free_count(self) -> int:
        return sum(group < 0 for member in self.members for group in member.groups)

    @cached_property
    def _sizes(self) -> Tensor:
        sizes = [0] * self._count
        for member in self.members:
            size = member.slices.size(member.shape)
            for group in member.groups:
                if group >= 0:
                    sizes[group] += size
        return torch.tensor(sizes)

    @cached_property
    def _slots(self) -> list[Sequence[int]]:
        """For each member, where in a vector of sums those of its slices stand."""
        free = self._count
        slots: list[Sequence[int]] = []
        for member in self.members:
            if isinstance(member.groups, range):
                slots.append(member.groups)
                continue
            own = []
            for group in member.groups:
                own.append(group if group >= 0 else free)
                free += group < 0
            slots.append(own)
        return slots

    @cached_property
    def _known(self) -> dict[Any, Any]:
        """What has been computed for a device."""
        return {}

    def _tables(self, device: torch.device) -> _Tables:
        if device not in self._known:
            slices_of: list[list[int]] = [[] for _ in range(self._count)]
            free, place = [], 0
            for member in self.members:
                for group in member.groups:
                    (slices_of[group] if group >= 0 else free).append(place)
                    place += 1
            width = max(len(own) for own in slices_of)
            rows = [own + [place] * (width - len(own)) for own in slices_of]
            self._known[device] = _Tables(
                torch.tensor(rows, device=device),
                torch.tensor(free, device=device) if free else None,
                [
                    s if isinstance(s, range) else torch.tensor(s, device=device)
                    for s in self._slots
                ],
            )
        return self._known[device]

    def _reduce(
        self, values: Iterable[Tensor], combine: Callable[[Tensor], Tensor], filler: float
    ) -> Tensor:
        """Values of slices combined to those of groups, in the same order on every device."""
        flat = [value.flatten() for value in values]
        every = torch.cat([*flat, flat[0].new_full((1,), filler)])
        tables = self._tables(every.device)
        found = combine(every[tables.slices_of])
        return found if tables.free is None else torch.cat([found, every[tables.free]])

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
        slots, shape = self._tables(values.device).slots[index], self.members[index].reduced_shape
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
        sums = (m.slices.sum(part) for m, part in self._pairs(joint))
        return self._reduce(sums, lambda rows: rows.sum(dim=1), 0)

    def sums(self, terms: Callable[..., Sequence[Tensor]], *values: Any) -> list[Tensor]:
        """Sums of what `terms` makes of views and numbers, made for one tensor at a time."""
        rows = []
        for index, member in enumerate(self.members):
            rows.append([member.slices.sum(x) for x in terms(*self._parts(values, index))])
        return [
            self._reduce(column, lambda rows: rows.sum(dim=1), 0)
            for column in zip(*rows, strict=True)
        ]

    def amax(self, joint: Tensor) -> Tensor:
        """Maxima over each group."""
        dtype = joint.dtype
        lowest = -math.inf if dtype.is_floating_point else torch.iinfo(dtype).min
        maxima = (m.slices.amax(part) for m, part in self._pairs(joint))
        return self._reduce(maxima, lambda rows: rows.amax(dim=1), lowest)

    def norm(self, joint: Tensor) -> Tensor:
        """2-norms of each group."""
        norms = (m.slices.norm(part) for m, part in self._pairs(joint))
        return self._reduce(norms, lambda rows: torch.linalg.vector_norm(rows, dim=1), 0)

    def _pairs(self, joint: Any) -> Iterable[tuple[Member, Tensor]]:
        return zip(self.members, joint.parts, strict=True)

    def count(self, shape: object = None) -> int:
        """How many groups there are, whatever the shape."""
        del shape
        return self._count

    def size(self, shape: object = None) -> Tensor:
        """How many entries each group has in all tensors, whatever the shape."""
        del shape
        return self._sizes

    def is_grouped(self, device: torch.device) -> Tensor:
        """True for each group, False for each slice without penalty."""
        key = (device, "grouped")
        if key not in self._known:
            places = torch.arange(self._count + self._free_count, device=device)
            self._known[key] = places < self._count
        return self._known[key]

    def weight(self, w: Tensor, by_size: bool) -> Tensor:
        """sqrt(entries) of each group, `counted` or here, or 1, times its factor in `weights`.

        0 for slices without penalty.
        """
        key = (w.device, w.dtype, by_size)
        if key not in self._known:
            sizes = self._sizes if self.counted is None else torch.tensor(self.counted)
            weight = sizes.double().sqrt() if by_size else torch.ones(self._count)
            if self.weights is not None:
                weight = weight * torch.tensor(self.weights, dtype=torch.float64)
            every = torch.cat([weight, weight.new_zeros(self._free_count)])
            self._known[key] = every.to(w.device, w.dtype)
        return self._known[key]


class Joint:
    """The tensors of a coupling, with the methods of one tensor that the formulas need.

    Operations on entries run tensor by tensor. A vector with an entry per group is broadcast to
    the groups' slices. `sum`, `max` and the 2-norm are over all entries.
    """

    def __init__(self, coupling: Coupling, parts: Sequence[Tensor]) -> None:
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
            return func(torch.stack([func(part) for part in joint.parts]))
        return joint.coupling.map(partial(func, **(kwargs or {})), *args)

    def tensors(self) -> list[Tensor]:
        """The tensors in their own shapes; no copy."""
        pairs = zip(self.parts, self.coupling.members, strict=True)
        return [part.reshape(member.shape) for part, member in pairs]

    def vector(self) -> Tensor:
        """All entries, tensor after tensor, as one new vector."""
        return torch.cat([tensor.flatten() for tensor in self.tensors()])

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
        return tuple(member.shape for member in self.coupling.members)

    def reshape(self, shape: object) -> "Joint":
        """Itself: it has but one shape."""
        assert shape == self.shape
        return self

    def dim(self) -> int:
        """That of a vector."""
        return 1

    def numel(self) -> int:
        """Entries of all tensors."""
        return self.coupling.numel()

    def sum(self) -> Tensor:
        """As `Tensor.sum`."""
        return torch.stack([part.sum() for part in self.parts]).sum()

    def max(self) -> Tensor:
        """As `Tensor.max`."""
        return torch.stack([part.max() for part in self.parts if part.numel()]).max()

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
