"""Groups that span several tensors, as the channels of a residual stream do.

`Coupling` says which slice of which tensor belongs to which group; see `Partition` for how the
formulas of the group penalties use it.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from .checks import is_count, require
from .geometry import Slices
from .joint import How, Joint, Member, Partition, lowest
from .kinds import as_tuple, check_kinds
from .sharded_coupling import ShardedCoupling
from .sharding import Cut, is_sharded, local

_COMBINE: dict[How, Callable[[Tensor, int], Tensor]] = {
    "sum": lambda values, dim: values.sum(dim=dim),
    "max": lambda values, dim: values.amax(dim=dim),
    "norm": lambda values, dim: torch.linalg.vector_norm(values, dim=dim),
}


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
class Coupling(Partition):
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
        for name in ("members", "counted", "weights"):
            object.__setattr__(self, name, as_tuple(getattr(self, name)))
        check_kinds(type(self), vars(self))
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
                f"got {len(shapes)}: {', '.join(names) or 'none'}. An optimizer that gives tensors "
                "of one group to several processes, as ZeroRedundancyOptimizer does, cannot have "
                "it; fully_shard can"
            )
        for name, shape, member in zip(names, shapes, self.members, strict=True):
            if tuple(shape) != member.shape:
                raise ValueError(
                    f"parameter {name} must have the shape {member.shape} of its member of the "
                    f"coupling, got {tuple(shape)}"
                )

    def joint(self, tensors: Iterable[Tensor]) -> "Joint":
        """The tensors as one `Joint`; no copy. Of sharded ones it has this process' parts."""
        tensors = list(tensors)
        if any(map(is_sharded, tensors)):
            cuts = tuple(Cut.of(tensor) if is_sharded(tensor) else None for tensor in tensors)
            if cuts not in self._known:
                self._known[cuts] = ShardedCoupling(self, self.slots, cuts)
            sharded = self._known[cuts]
            pairs = zip(sharded.members, map(local, tensors), strict=True)
            return Joint(sharded, [part.slices.view(tensor) for part, tensor in pairs])
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
    def slots(self) -> list[Sequence[int]]:
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
                [s if isinstance(s, range) else torch.tensor(s, device=device) for s in self.slots],
            )
        return self._known[device]

    def _grouped(self, columns: Sequence[Sequence[Tensor]], how: How) -> list[Tensor]:
        return [self._combined(values, how) for values in columns]

    def _combined(self, values: Sequence[Tensor], how: How) -> Tensor:
        """Values of slices combined to those of groups, in the same order on every device."""
        flat = [value.flatten() for value in values]
        filler = lowest(flat[0].dtype) if how == "max" else 0
        every = torch.cat([*flat, flat[0].new_full((1,), filler)])
        tables = self._tables(every.device)
        found = _COMBINE[how](every[tables.slices_of], 1)
        return found if tables.free is None else torch.cat([found, every[tables.free]])

    def overall(self, values: Sequence[Tensor], how: How) -> Tensor:
        """See `Partition.overall`."""
        return _COMBINE[how](torch.stack([*values]), 0)

    def _slots_of(self, index: int, device: torch.device) -> Tensor | range:
        return self._tables(device).slots[index]

    def restored(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """See `Partition.restored`; no copies."""
        pairs = zip(parts, self.members, strict=True)
        return [part.reshape(member.shape) for part, member in pairs]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """See `Partition.shapes`."""
        return tuple(member.shape for member in self.members)

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


@lru_cache(maxsize=1024)
def coupling_of(shape: tuple[int, ...], slices: Slices) -> Coupling:
    """The groups of one tensor as a coupling: for tensors that are sharded."""
    return Coupling((Member(shape, slices, range(slices.count(shape))),))
