"""The group penalties in numpy float64: a loop over groups, and one bracketed root for each.

A group under a diagonal metric is one scalar equation; its roots are bracketed, refined by scipy's
`brentq`, and where there may be several minimizers the objectives are compared. The classes offer
what `penalties.py` lists.
"""

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from scipy.optimize import brentq, fminbound

from .penalties import ROUNDING, SCAD, Penalty, mcp, soft

TIGHT = {"xtol": 1e-250, "rtol": 4 * np.finfo(float).eps, "maxiter": 1000}


def groups_of(shape, axis, block, conv_groups):
    """Return the groups as a list of flat index arrays, one entry at a time.

    Axis 0 is cut into `conv_groups` equal parts. Two entries share a group if they lie in the same
    part and their position along `axis` (counted inside the part when the axis is 0) falls into the
    same run of `block` consecutive slices.
    """
    members = {}
    part_size = shape[0] // conv_groups
    for flat, index in enumerate(np.ndindex(*shape)):
        part = index[0] // part_size
        position = index[axis] - (part * part_size if axis == 0 else 0)
        members.setdefault((part, position // block), []).append(flat)
    return [np.array(members[key]) for key in sorted(members)]


def group_root(a, d, threshold):
    """Return z = argmin 1/2 <z, D z> - <a, z> + threshold ||z|| for one group.

    Stationarity off zero is (d + threshold / r) z = a with r = ||z||, hence the scalar equation
    || a / (d r + threshold) || = 1, whose left side falls in r.
    """
    norm = np.linalg.norm(a)
    if norm <= threshold:
        return np.zeros_like(a)
    if threshold == 0:
        return a / d

    def excess(r):
        return np.linalg.norm(a / (d * r + threshold)) - 1.0

    low, high = 0.5 * (norm - threshold) / d.max(), 2.0 * (norm - threshold) / d.min()
    r = brentq(excess, low, high, **TIGHT)
    return a * r / (d * r + threshold)


def shorten(x, threshold):
    """Return x with its norm reduced by the threshold, stopping at zero."""
    norm = np.linalg.norm(x)
    return x * (1 - threshold / norm) if norm > threshold else np.zeros_like(x)


class Grouped(Penalty, ABC):
    """A penalty that is a sum over groups of slices; subclasses treat one group."""

    def __init__(self, strength, axis=1, size_weighted=True, block=1, conv_groups=1):
        self.strength, self.size_weighted = strength, size_weighted
        self.layout = axis, block, conv_groups
        self.cache = {}

    @abstractmethod
    def one_value(self, x, lam) -> Any:
        """Evaluate one group with its own strength."""

    @abstractmethod
    def one_prox(self, x, step, lam) -> Any:
        """Solve one group under the identity."""

    @abstractmethod
    def one_metric_prox(self, a, d, step, lam) -> Any:
        """Solve one group under a metric."""

    def groups(self, shape):
        """Return the flat indices of each group."""
        if shape not in self.cache:
            self.cache[shape] = groups_of(shape, *self.layout)
        return self.cache[shape]

    def strength_of(self, group):
        """Return the group's own strength."""
        return self.strength * (math.sqrt(group.size) if self.size_weighted else 1.0)

    def value(self, w):
        """Add the groups up."""
        flat = w.ravel()
        return float(
            sum(self.one_value(flat[g], self.strength_of(g)) for g in self.groups(w.shape))
        )

    def per_group(self, solve, *arrays):
        """Solve each group alone and put the pieces together."""
        out = np.zeros(arrays[0].size)
        flat = [x.ravel() for x in arrays]
        for g in self.groups(arrays[0].shape):
            out[g] = solve(*(x[g] for x in flat), self.strength_of(g))
        return out.reshape(arrays[0].shape)

    def prox(self, w, step):
        """Solve per group."""
        return self.per_group(lambda x, lam: self.one_prox(x, step, lam), w)

    def metric_prox(self, a, d, step):
        """Solve per group."""
        return self.per_group(lambda x, e, lam: self.one_metric_prox(x, e, step, lam), a, d)

    def within(self, a, step):
        """Return the mask of entries whose group is no longer than its threshold."""

        def is_within(x, lam):
            return np.full(x.shape, np.linalg.norm(x) <= step * lam)

        return self.per_group(is_within, a) == 1

    def dead(self, w):
        """Count zero groups and groups."""
        groups = self.groups(w.shape)
        return sum(not w.ravel()[g].any() for g in groups), len(groups)


class GroupLasso(Grouped):
    """strength * sum over groups of sqrt(size) * ||w_g||."""

    def one_value(self, x, lam):
        """Weigh the norm."""
        return lam * np.linalg.norm(x)

    def one_prox(self, x, step, lam):
        """Shorten."""
        return shorten(x, step * lam)

    def one_metric_prox(self, a, d, step, lam):
        """Find the scalar root."""
        return group_root(a, d, step * lam)

    def screened(self, a, step):
        """A group is zero iff its pull stays within the threshold."""
        return self.within(a, step)


class SparseGroupLasso(Grouped):
    """strength * (l1_ratio ||w||_1 + (1 - l1_ratio) sum over groups of sqrt(size) ||w_g||)."""

    def __init__(self, strength, l1_ratio=0.5, **layout):
        super().__init__(strength * (1 - l1_ratio), **layout)
        self.l1 = strength * l1_ratio

    def dead(self, w):
        """Count zero entries: those of dead groups and those inside live ones."""
        return Penalty.dead(self, w)

    def one_value(self, x, lam):
        """Add both norms."""
        return self.l1 * np.abs(x).sum() + lam * np.linalg.norm(x)

    def one_prox(self, x, step, lam):
        """Soft-threshold, then shorten the group (Simon et al. 2013)."""
        return shorten(soft(x, step * self.l1), step * lam)

    def one_metric_prox(self, a, d, step, lam):
        """A nonzero entry has the sign of its pull, so the l1 part only shifts the pull."""
        return group_root(soft(a, step * self.l1), d, step * lam)

    def screened(self, a, step):
        """An entry is zero if the l1 part makes it so, or if the rest of its group is within."""
        left = soft(a, step * self.l1)
        return (left == 0) | self.within(left, step)


class GroupMCP(Grouped):
    """Sum over groups of the minimax concave penalty of ||w_g||."""

    is_convex = False

    def __init__(self, strength, gamma=3.0, **layout):
        super().__init__(strength, **layout)
        self.gamma = gamma

    def one_value(self, x, lam):
        """Evaluate at the norm."""
        return float(mcp(np.linalg.norm(x), lam, self.gamma))

    def one_prox(self, x, step, lam):
        """The minimizer lies on the ray of x, so its norm solves the scalar problem."""
        norm, bend = float(np.linalg.norm(x)), self.gamma * lam
        if norm == 0:
            return x
        candidates = [0.0]
        if norm >= bend * (1 - ROUNDING):
            candidates.append(norm)
        if step != self.gamma:
            length = (norm - step * lam) / (1 - step / self.gamma)
            if 0 < length <= bend * (1 + ROUNDING):
                candidates.append(length)

        def objective(r):
            charge = lam * r - r * r / (2 * self.gamma) if r <= bend else bend * lam / 2
            return 0.5 * (r - norm) ** 2 + step * charge

        return x * (min(candidates, key=objective) / norm)

    def one_metric_prox(self, a, d, step, lam):
        """Compare zero, the flat part's a / d and every root of the curved part's equation.

        For r = ||z|| <= bend = gamma * lam stationarity reads
        z = a r / (d r + step (bend - r) / gamma).
        """
        bend, threshold = self.gamma * lam, step * lam

        def bottom(r):
            return d * r + step * (bend - r) / self.gamma

        def excess(r):
            return np.linalg.norm(a / bottom(r)) - 1.0

        candidates = [np.zeros_like(a)]
        if np.linalg.norm(a / d) >= bend * (1 - ROUNDING):
            candidates.append(a / d)
        if threshold > 0:
            # The square of the left side is convex in r: it falls, has a least value, and rises,
            # so there is at most one root before that value and at most one behind it.
            least = fminbound(excess, 0, bend, xtol=1e-9)
            for low, high in ((1e-14 * bend, least), (least, bend)):
                if excess(low) * excess(high) < 0:
                    r = brentq(excess, low, high, **TIGHT)
                    candidates.append(a * r / bottom(r))

        def objective(z):
            return 0.5 * (d * z * z).sum() - (a * z).sum() + step * self.one_value(z, lam)

        return min(candidates, key=objective)


class Radial(Grouped):
    """Sum over groups of phi(||w_g||) for any phi: the best of all that a scan of norms finds.

    Along r = ||z|| the objective falls where the z that is stationary for the slope of phi at r is
    longer than r, so it has a local minimum wherever that ends. Subclasses give phi and its slope.
    """

    is_convex = False
    points = 401

    @abstractmethod
    def phi(self, r, lam) -> Any:
        """Evaluate at r >= 0."""

    @abstractmethod
    def slope(self, r, lam) -> Any:
        """Differentiate at r > 0."""

    def one_value(self, x, lam):
        """Evaluate at the norm."""
        return float(self.phi(np.linalg.norm(x), lam))

    def one_prox(self, x, step, lam):
        """Solve with the identity as metric."""
        return self.one_metric_prox(x, np.ones_like(x), step, lam)

    def one_metric_prox(self, a, d, step, lam):
        """Compare zero and the local minima along the norm."""
        top = np.linalg.norm(a / d)
        if top == 0 or step * lam == 0:
            return a / d

        def at(r):
            return a / (d + step * self.slope(r, lam) / r)

        def excess(r):
            return np.linalg.norm(at(r), axis=-1) / r[..., 0] - 1

        grid = top * np.append(np.geomspace(1e-12, 1, self.points), 1 + 1e-9)[:, None]
        falls = excess(grid) > 0
        found = [np.zeros_like(a)]
        for end in np.flatnonzero(falls[:-1] & ~falls[1:]):
            low, high = float(grid[end, 0]), float(grid[end + 1, 0])
            r = brentq(lambda r: excess(np.array([r])), low, high, **TIGHT)
            found.append(at(np.array([r])))

        def objective(z):
            return 0.5 * (d * z * z).sum() - (a * z).sum() + step * self.one_value(z, lam)

        return min(found, key=objective)


class GroupSCAD(Radial):
    """Sum over groups of the smoothly clipped absolute deviation of ||w_g||."""

    def __init__(self, strength, gamma=3.7, concavity=1.0, **layout):
        super().__init__(strength, **layout)
        self.gamma = gamma / concavity

    def phi(self, r, lam):
        """Evaluate the integral of Fan and Li's derivative."""
        return SCAD(lam, self.gamma).scalar(r)

    def slope(self, r, lam):
        """Evaluate Fan and Li's derivative, their equation (2.7)."""
        return np.where(r <= lam, lam, np.maximum(self.gamma * lam - r, 0) / (self.gamma - 1))


class GroupL0(Radial):
    """A price for each live group: strength, times its entries if they count."""

    def strength_of(self, group):
        """Return the group's own strength."""
        return self.strength * (group.size if self.size_weighted else 1.0)

    def phi(self, r, lam):
        """Charge whatever is not zero."""
        return lam * (r != 0)

    def slope(self, r, lam):
        """Flat off zero."""
        return np.zeros_like(r)


class GroupHalf(Radial):
    """Sum over groups of the root of ||w_g||, times entries^(3/4) if they count."""

    def strength_of(self, group):
        """Return the group's own strength."""
        return self.strength * (group.size**0.75 if self.size_weighted else 1.0)

    def phi(self, r, lam):
        """Evaluate."""
        return lam * np.sqrt(r)

    def slope(self, r, lam):
        """Differentiate."""
        return lam / (2 * np.sqrt(r))
