"""Which channels can go: rules about units, and the most that they allow to be removed.

A unit is one index of one axis of one tensor. Units that can only go together (a channel in the
weight that writes it, in the activation, in the weights that read it) share a number. Every rule
can only forbid; removal starts from everything and gives way until all rules hold: the greatest
fixed point, and therefore the largest removal that they allow.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]

RIGID = 0  # the unit that always stays


def rigid(length: int) -> Ids:
    """Units of an axis of which nothing can go."""
    return np.full(length, RIGID, dtype=np.int64)


class Rule(ABC):
    """A reason why units stay."""

    reason: str

    @abstractmethod
    def kept(self, removed: Mask) -> Ids:
        """Units that must stay, given which are to be removed."""


@dataclass(frozen=True, eq=False)
class Read(Rule):
    """A matrix product: an input stays if a kept output reads it with a weight that is not zero.

    Args:
        inputs: (parts, in).
        outputs: (parts, out).
        reads: (parts, out, in).
        reason: for the report.
    """

    inputs: Ids
    outputs: Ids
    reads: Mask
    reason: str

    def kept(self, removed: Mask) -> Ids:
        """See `Rule.kept`."""
        live = ~removed[self.outputs]
        if len(live) == 1:
            needed = self.reads[:, live[0]].any(1)
        else:
            needed = (self.reads & live[:, :, None]).any(1)
        return self.inputs[needed & removed[self.inputs]]


@dataclass(frozen=True, eq=False)
class Grid(Rule):
    """A reshape: an entry of the grid goes iff a whole slice of the grid that holds it goes.

    Args:
        flat: units of the entries, of the grid's shape.
        axes: for each axis of the grid, the units of its slices.
        reason: for the report.
    """

    flat: Ids
    axes: tuple[Ids, ...]
    reason: str

    def kept(self, removed: Mask) -> Ids:
        """See `Rule.kept`."""
        stay = []
        entries = removed[self.flat]
        covered = np.zeros_like(entries)
        for axis, units in enumerate(self.axes):
            others = tuple(i for i in range(self.flat.ndim) if i != axis)
            whole = entries.all(axis=others)
            gone = removed[units]
            stay.append(units[gone & ~whole])
            covered |= (gone & whole).reshape([-1 if i == axis else 1 for i in range(covered.ndim)])
        stay.append(self.flat[entries & ~covered])
        return np.concatenate(stay)


class Units:
    """The units of a network and the rules about them."""

    def __init__(self) -> None:
        self.count = 1
        self.rules: list[Rule] = []
        self._equal: list[tuple[Ids, Ids]] = []
        self._pins: list[tuple[Ids, str]] = []
        self._roots: Ids | None = None

    def fresh(self, length: int) -> Ids:
        """New units, not yet bound to anything."""
        self.count += length
        self._roots = None
        return np.arange(self.count - length, self.count, dtype=np.int64)

    def same(self, first: Ids, second: Ids) -> None:
        """These go together, one by one."""
        assert first.shape == second.shape
        if first is not second:
            self._equal.append((first.ravel(), second.ravel()))
            self._roots = None

    def pin(self, units: Ids, reason: str) -> None:
        """These stay."""
        if (units != RIGID).any():
            self._pins.append((units.ravel(), reason))

    def roots(self) -> Ids:
        """For each unit, the first of those that it goes with."""
        if self._roots is None:
            parent = np.arange(self.count, dtype=np.int64)
            if self._equal:
                first = np.concatenate([a for a, _ in self._equal])
                second = np.concatenate([b for _, b in self._equal])
                while True:
                    low = np.minimum(parent[first], parent[second])
                    high = np.maximum(parent[first], parent[second])
                    if (low == high).all():
                        break
                    np.minimum.at(parent, high, low)
                    while (parent != parent[parent]).any():
                        parent = parent[parent]
            self._roots = parent
        return self._roots

    def pinned(self) -> dict[int, str]:
        """The roots that stay whatever the weights are, and why."""
        roots = self.roots()
        found: dict[int, str] = {}
        for units, reason in self._pins:
            for root in np.unique(roots[units]):
                found.setdefault(int(root), reason)
        found.setdefault(RIGID, "it is an input or an output of the network, or the only one there")
        return found

    def solve(self) -> "Removal":
        """The largest set of units that can go."""
        roots = self.roots()
        gone = np.ones(self.count, dtype=bool)  # of roots
        why: list[str | None] = [None] * self.count

        def keep(units: Ids, reason: str) -> bool:
            fresh = np.unique(roots[units])
            fresh = fresh[gone[fresh]]
            gone[fresh] = False
            for unit in fresh:
                why[unit] = reason
            return bool(fresh.size)

        for units, reason in self._pins:
            keep(units, reason)
        keep(np.array([RIGID]), "it is an input or an output of the network, or the only one there")
        removed = gone[roots]
        moving = True
        while moving:
            moving = False
            # Life flows from the outputs back.
            for rule in reversed(self.rules):
                stay = rule.kept(removed)
                if stay.size and keep(stay, rule.reason):
                    removed = gone[roots]
                    moving = True
        return Removal(removed, roots, why)


@dataclass(frozen=True, eq=False)
class Removal:
    """What can go, and why the rest stays.

    Args:
        removed: of each unit.
        roots: see `Units.roots`.
        why: of each root that stays, the first reason met.
    """

    removed: Mask
    roots: Ids
    why: list[str | None]

    def kept(self, units: Ids) -> Ids:
        """Positions in `units` that stay."""
        return np.flatnonzero(~self.removed[units])

    def reason(self, unit: int) -> str:
        """Why a unit stays."""
        return self.why[int(self.roots[unit])] or "it stays"
