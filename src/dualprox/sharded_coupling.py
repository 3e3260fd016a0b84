"""Groups over tensors of which each process has a part.

Every process sums over its own parts of the groups' slices; what the processes have found is added
in one vector with an entry per group, and from there on all know and decide the same. So a step
communicates a few numbers per group, however large the groups are, and whatever way a tensor is
cut: along the axis of the groups, across it, in blocks of both, evenly or not.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .geometry import Slices
from .joint import How, Member, Partition, lowest
from .sharding import Cut


class ShardedCoupling(Partition):
    """The groups of a coupling, for joints of the parts that this process has.

    Sums over groups are those over all processes, which must therefore ask for them together. They
    are added in float64: processes that have other parts find the same groups dead.

    Args:
        coupling: of the full tensors.
        slots: for each of its members, where in a vector of sums those of its slices stand.
        cuts: how its members are cut; None for a tensor that every process has.

    Raises:
        NotImplementedError: see `Cut.index`.
    """

    def __init__(
        self, coupling: Partition, slots: Sequence[Sequence[int]], cuts: Sequence[Cut | None]
    ) -> None:
        self._coupling, self._cuts = coupling, tuple(cuts)
        triples = zip(coupling.members, slots, self._cuts, strict=True)
        self.members = tuple(_part_of(member, own, cut) for member, own, cut in triples)
        self._length = int(coupling.is_grouped(torch.device("cpu")).numel())
        self._known: dict[Any, Any] = {}

    @cached_property
    def _alike(self) -> list[tuple[Cut | None, list[int]]]:
        """The members whose parts lie on the same processes; None for those that all have."""
        found: dict[Any, tuple[Cut | None, list[int]]] = {}
        for index, cut in enumerate(self._cuts):
            spread = cut if cut is not None and cut.mesh_axes else None
            key = None if spread is None else (spread.mesh, spread.mesh_axes)
            found.setdefault(key, (spread, []))[1].append(index)
        return [*found.values()]

    def _rows(self, indices: Sequence[int], device: torch.device) -> Tensor:
        """The slices of these members in each group, filled up with a number past the last."""
        key = (device, *indices)
        if key not in self._known:
            every = [slot for index in indices for slot in self.members[index].groups]
            own: list[list[int]] = [[] for _ in range(self._length)]
            for place, slot in enumerate(every):
                own[slot].append(place)
            width = max(1, *map(len, own))
            rows = [row + [len(every)] * (width - len(row)) for row in own]
            self._known[key] = torch.tensor(rows, device=device)
        return self._known[key]

    def _grouped(self, columns: Sequence[Sequence[Tensor]], how: How) -> list[Tensor]:
        dtype = columns[0][0].dtype
        found = []
        for _, indices in self._alike:
            local = []
            for values in columns:
                flat = [self._widened(values, index, how).flatten() for index in indices]
                every = torch.cat([*flat, flat[0].new_full((1,), _nothing(flat[0].dtype, how))])
                rows = every[self._rows(indices, every.device)]
                local.append(rows.amax(dim=1) if how == "max" else rows.sum(dim=1))
            found.append(torch.stack(local))
        return [*self._across(found, how).to(dtype)]

    def overall(self, values: Sequence[Tensor], how: How) -> Tensor:
        """See `Partition.overall`."""
        found = []
        for _, indices in self._alike:
            own = torch.stack([self._widened(values, index, how) for index in indices])
            found.append(own.amax() if how == "max" else own.sum())
        return self._across(found, how).to(values[0].dtype)

    def _widened(self, values: Sequence[Tensor], index: int, how: How) -> Tensor:
        """What of a member's values goes into a sum or maximum over processes."""
        value = values[index]
        if value.dtype.is_floating_point:
            value = value.double()
        if how == "norm":
            return value.square()
        empty = 0 in self.members[index].shape
        return torch.full_like(value, lowest(value.dtype)) if empty and how == "max" else value

    def _across(self, found: Sequence[Tensor], how: How) -> Tensor:
        """What the processes have found for members that lie alike, combined over all."""
        op = torch.distributed.ReduceOp
        pairs = zip(found, self._alike, strict=True)
        if how != "max":
            total = torch.stack([_over(cut, value, op.SUM) for value, (cut, _) in pairs]).sum(dim=0)
            return total.sqrt() if how == "norm" else total
        highest = [_highest(cut, value, op.MAX) for value, (cut, _) in pairs]
        return torch.stack(highest).amax(dim=0)

    def _slots_of(self, index: int, device: torch.device) -> Tensor | range:
        slots = self.members[index].groups
        if isinstance(slots, range):
            return slots
        key = (device, "slots", index)
        if key not in self._known:
            self._known[key] = torch.tensor(slots, device=device, dtype=torch.long)
        return self._known[key]

    def restored(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """See `Partition.restored`; the tensors are sharded as they were."""
        shaped = [part.reshape(m.shape) for part, m in zip(parts, self.members, strict=True)]
        pairs = zip(shaped, self._cuts, strict=True)
        return [part if cut is None else cut.joined(part) for part, cut in pairs]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """See `Partition.shapes`: those of the full tensors."""
        return self._coupling.shapes

    def count(self, shape: object = None) -> int:
        """That of the coupling."""
        return self._coupling.count(shape)

    def size(self, shape: object = None) -> Tensor:
        """That of the coupling: entries on all processes."""
        return self._coupling.size(shape)

    def is_grouped(self, device: torch.device) -> Tensor:
        """That of the coupling."""
        return self._coupling.is_grouped(device)

    def weight(self, w: Tensor, by_size: bool) -> Tensor:
        """That of the coupling."""
        return self._coupling.weight(w, by_size)


def _nothing(dtype: torch.dtype, how: How) -> float:
    return lowest(dtype) if how == "max" else 0


def _over(cut: Cut | None, values: Tensor, op: Any) -> Tensor:
    return values if cut is None else cut.reduced(values, op)


def _highest(cut: Cut | None, values: Tensor, op: Any) -> Tensor:
    """Maxima, NaN where a process has one: what the network makes of them is its own affair."""
    if not values.dtype.is_floating_point:
        return _over(cut, values, op)
    missing = values.isnan()
    most, is_nan = _over(
        cut, torch.stack([values.masked_fill(missing, 0), missing.to(values.dtype)]), op
    )
    return torch.where(is_nan > 0, torch.nan, most)


def _part_of(member: Member, slots: Sequence[int], cut: Cut | None) -> Member:
    """What this process has of a member, in slices so narrow that none lies in two groups."""
    if cut is None:
        return Member(member.shape, member.slices, slots)
    shape = tuple(map(len, cut.index))
    whole, rank = member.slices, len(member.shape)
    axis = whole.axis % rank
    place = cut.index[axis] // whole.block
    conv_groups = 1
    if whole.conv_groups > 1 and axis > 0 and 0 not in shape:
        # Each index of axis 0 is a cut of its own: a process need not have all of a conv group.
        conv_groups = shape[0]
        length = member.shape[0] // whole.conv_groups
        per_cut = member.shape[axis] // whole.block
        place = ((cut.index[0] // length)[:, None] * per_cut + place).flatten()
    groups = torch.tensor([*slots], dtype=torch.long)[place].tolist()
    return Member(shape, Slices(axis, conv_groups=conv_groups), groups)
