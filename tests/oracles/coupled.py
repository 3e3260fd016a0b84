"""Groups over several tensors in numpy float64: a loop that gathers the entries of each.

A member is (shape, axis, block, conv_groups, groups) with one group per slice, -1 for none. All
arrays are the members' entries one after the other. What is done to the gathered entries of a
group is what `grouped.py` does to a vector that is one group.
"""

import math
from typing import Any

import numpy as np

from .grouped import groups_of
from .penalties import Penalty


def gathered(members):
    """Return the flat indices of the entries of each group, by its number."""
    found, offset = {}, 0
    for shape, axis, block, conv_groups, groups in members:
        axis %= len(shape)
        for entries, group in zip(groups_of(shape, axis, block, conv_groups), groups, strict=True):
            if group >= 0:
                found.setdefault(group, []).extend(offset + entries)
        offset += math.prod(shape)
    return [np.array(found[group]) for group in sorted(found)]


class Coupled(Penalty):
    """The penalty `kind(**arguments)` of `grouped.py`, on groups that span the members."""

    def __init__(self, kind, arguments, members):
        self.members, self.groups = members, gathered(members)
        self.alone = [kind(**arguments, axis=0, block=len(entries)) for entries in self.groups]
        self.is_convex = kind.is_convex

    def pairs(self):
        """Return the entries of each group, and the penalty of a vector of so many."""
        return zip(self.groups, self.alone, strict=True)

    def value(self, w):
        """Add the groups up."""
        return sum(alone.value(w[entries]) for entries, alone in self.pairs())

    def prox(self, w, step):
        """Solve per group; free entries stay."""
        out = w.copy()
        for entries, alone in self.pairs():
            out[entries] = alone.prox(w[entries], step)
        return out

    def metric_prox(self, a, d, step):
        """Solve per group; free entries minimize 1/2 d z^2 - a z."""
        out = a / d
        for entries, alone in self.pairs():
            out[entries] = alone.metric_prox(a[entries], d[entries], step)
        return out

    def screened(self, a, step) -> Any:
        """Screen per group, where there is a test; free entries stay."""
        out = np.zeros(a.shape, bool)
        for entries, alone in self.pairs():
            dead = alone.screened(a[entries], step)
            if dead is not None:
                out[entries] = dead
        return out

    def live(self, w):
        """Return which groups have a nonzero entry."""
        return [bool(w[entries].any()) for entries in self.groups]

    def dead(self, w):
        """Count zero groups and groups."""
        live = self.live(w)
        return live.count(False), len(live)
