"""Every penalty in numpy float64, slow and obvious, from its definition.

Each class takes the arguments of the library's class of the same name and offers

    value(w)                 psi(w)
    prox(w, step)            argmin_z  1/2 ||z - w||^2 + step * psi(z)
    metric_prox(a, d, step)  argmin_z  1/2 <z, D z> - <a, z> + step * psi(z),  D = diag(d) > 0
    screened(a, step)        mask of entries that metric_prox makes zero whatever d is, or None
    dead(w)                  (how many parts of the structure are gone, how many there are)

`metric_prox` exists exactly for the penalties whose subproblem under a diagonal metric has a
computable global solution. Separable penalties list every stationary point of every smooth piece
and compare objectives. The group penalties are in `grouped.py`.
"""

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

ROUNDING = 1e-12  # a stationary point may miss the border of its piece by rounding alone


def soft(a, threshold):
    """Return argmin_z 1/2 (z - a)^2 + threshold |z|, per entry."""
    return np.sign(a) * np.maximum(np.abs(a) - threshold, 0.0)


def pick(objective, candidates):
    """Return, per entry, the candidate of least objective; a tie goes to the first."""
    points = np.stack([np.where(valid, z, 0.0) for z, valid in candidates])
    allowed = np.stack([valid for _, valid in candidates])
    costs = np.where(allowed, [objective(z) for z in points], np.inf)
    return np.take_along_axis(points, costs.argmin(axis=0)[None], axis=0)[0]


class Penalty:
    """What all oracles share: a penalty counts its zero entries unless it says otherwise."""

    is_convex = True
    offers_metric = True

    def screened(self, a, step):
        """Claim nothing."""
        return None

    def dead(self, w):
        """Count zero entries and entries."""
        return int((w == 0).sum()), w.size


class Separable(Penalty, ABC):
    """psi(w) = sum over entries of a scalar function of |w|, minimized by enumeration."""

    @abstractmethod
    def scalar(self, x) -> Any:
        """Evaluate the function at x >= 0."""

    @abstractmethod
    def stationary(self, a, d, step) -> Any:
        """List (z, low, high): the stationary point z > 0 of the piece between low and high."""

    def value(self, w):
        """Sum the scalar function."""
        return float(self.scalar(np.abs(w)).sum())

    def prox(self, w, step):
        """Solve with the identity as metric."""
        return self.metric_prox(w, np.ones_like(w), step)

    def metric_prox(self, a, d, step):
        """Compare the objective at zero and at every stationary point on the positive side."""
        size = np.abs(a)
        zero = (np.zeros_like(size), np.ones(size.shape, bool))
        found = [
            (z, (z > 0) & (z >= low - ROUNDING * (1 + low)) & (z <= high + ROUNDING * (1 + high)))
            for z, low, high in self.stationary(size, d, step)
        ]

        def objective(z):
            return 0.5 * d * z * z - size * z + step * self.scalar(np.abs(z))

        return np.sign(a) * pick(objective, [zero, *found])


class L1(Separable):
    """strength * |x|."""

    def __init__(self, strength):
        self.strength = strength

    def scalar(self, x):
        """Evaluate at x >= 0."""
        return self.strength * x

    def stationary(self, a, d, step):
        """Solve d z - a + step * strength = 0."""
        return [((a - step * self.strength) / d, 0.0, 1e300)]

    def screened(self, a, step):
        """0 in -a + step * strength * [-1, 1]."""
        return np.abs(a) <= step * self.strength


class ElasticNet(Separable):
    """strength * (l1_ratio |x| + (1 - l1_ratio) / 2 x^2)."""

    def __init__(self, strength, l1_ratio=0.5):
        self.l1 = strength * l1_ratio
        self.l2 = strength * (1 - l1_ratio)

    def scalar(self, x):
        """Evaluate at x >= 0."""
        return self.l1 * x + 0.5 * self.l2 * x * x

    def stationary(self, a, d, step):
        """Solve (d + step * l2) z - a + step * l1 = 0."""
        return [((a - step * self.l1) / (d + step * self.l2), 0.0, 1e300)]

    def screened(self, a, step):
        """As for L1: the square has no slope at zero."""
        return np.abs(a) <= step * self.l1


def mcp(x, strength, gamma):
    """Evaluate the minimax concave penalty at x >= 0 (Zhang 2010)."""
    inside = strength * x - x * x / (2 * gamma)
    return np.where(x <= gamma * strength, inside, gamma * strength**2 / 2)


class MCP(Separable):
    """Minimax concave penalty per entry."""

    is_convex = False

    def __init__(self, strength, gamma=3.0):
        self.strength, self.gamma = strength, gamma

    def scalar(self, x):
        """Evaluate at x >= 0."""
        return mcp(x, self.strength, self.gamma)

    def stationary(self, a, d, step):
        """Solve d z - a + step (strength - z / gamma) = 0 on the curve, d z = a on the flat."""
        bend = self.gamma * self.strength
        slope = d - step / self.gamma
        return [((a - step * self.strength) / slope, 0.0, bend), (a / d, bend, 1e300)]


class SCAD(Separable):
    """Smoothly clipped absolute deviation per entry (Fan and Li 2001)."""

    is_convex = False

    def __init__(self, strength, gamma=3.7):
        self.strength, self.gamma = strength, gamma

    def scalar(self, x):
        """Evaluate at x >= 0, the integral of Fan and Li's derivative."""
        lam, g = self.strength, self.gamma
        middle = (2 * g * lam * x - x * x - lam * lam) / (2 * (g - 1))
        outer = lam * lam * (g + 1) / 2
        return np.where(x <= lam, lam * x, np.where(x <= g * lam, middle, outer))

    def stationary(self, a, d, step):
        """One linear equation on each of the three pieces."""
        lam, g = self.strength, self.gamma
        middle = (a - step * g * lam / (g - 1)) / (d - step / (g - 1))
        return [
            ((a - step * lam) / d, 0.0, lam),
            (middle, lam, g * lam),
            (a / d, g * lam, 1e300),
        ]


class L0(Separable):
    """strength * (number of nonzero entries)."""

    is_convex = False

    def __init__(self, strength):
        self.strength = strength

    def scalar(self, x):
        """Count."""
        return self.strength * (x != 0)

    def stationary(self, a, d, step):
        """Off zero the penalty is flat: d z = a."""
        return [(a / d, 0.0, 1e300)]


class Box(Penalty):
    """Indicator of lower <= w <= upper."""

    def __init__(self, lower, upper):
        self.lower, self.upper = lower, upper

    def value(self, w):
        """Zero inside, infinite outside."""
        return 0.0 if ((w >= self.lower) & (w <= self.upper)).all() else math.inf

    def prox(self, w, step):
        """Project."""
        return np.minimum(np.maximum(w, self.lower), self.upper)

    def metric_prox(self, a, d, step):
        """Each entry is a parabola: its minimizer on an interval is its clipped vertex."""
        return self.prox(a / d, step)

    def dead(self, w):
        """Count entries that sit on a bound."""
        return int(((w == self.lower) | (w == self.upper)).sum()), w.size


class NonNegative(Box):
    """Indicator of w >= 0."""

    def __init__(self):
        super().__init__(0.0, math.inf)


class L2Ball(Penalty):
    """Indicator of ||w|| <= radius over the whole tensor."""

    offers_metric = False

    def __init__(self, radius):
        self.radius = radius

    def value(self, w):
        """Zero inside, infinite outside; rounding of a projected point is not outside."""
        return 0.0 if np.linalg.norm(w) <= self.radius * (1 + ROUNDING) else math.inf

    def prox(self, w, step):
        """Project."""
        norm = np.linalg.norm(w)
        return w if norm <= self.radius else w * (self.radius / norm)

    def dead(self, w):
        """Count the constraint: dead where active, and one more that never is."""
        return int(abs(np.linalg.norm(w) - self.radius) <= 1e-9 * self.radius), 2


class Cardinality(Penalty):
    """Indicator of at most k nonzero entries."""

    is_convex = False

    def __init__(self, k):
        self.k = k

    def value(self, w):
        """Zero inside, infinite outside."""
        return 0.0 if (w != 0).sum() <= self.k else math.inf

    def prox(self, w, step):
        """Keep the k largest."""
        return self.metric_prox(w, np.ones_like(w), step)

    def metric_prox(self, a, d, step):
        """Keep the k entries that lower the objective most: each kept one lowers it a^2 / (2 d)."""
        gain = (a * a / d).ravel()
        kept = np.argsort(-gain, kind="stable")[: self.k]
        z = np.zeros(a.size)
        z[kept] = (a / d).ravel()[kept]
        return z.reshape(a.shape)


class Spectral(Penalty):
    """A penalty of the singular values of w flattened to (out, rest)."""

    offers_metric = False

    def parts(self, w):
        """Return the thin singular value decomposition."""
        return np.linalg.svd(w.reshape(w.shape[0], -1), full_matrices=False)

    def rank(self, w):
        """Count singular values that rounding cannot explain."""
        s = self.parts(w)[1]
        return int((s > 1e-10 * max(s.max(), 1e-300)).sum())

    def dead(self, w):
        """Count missing ranks and all ranks."""
        full = min(w.shape[0], w.size // w.shape[0])
        return full - self.rank(w), full


class NuclearNorm(Spectral):
    """strength * sum of singular values."""

    def __init__(self, strength):
        self.strength = strength

    def value(self, w):
        """Sum the singular values."""
        return self.strength * float(self.parts(w)[1].sum())

    def prox(self, w, step):
        """Soft-threshold the singular values."""
        u, s, vt = self.parts(w)
        return (u @ np.diag(soft(s, step * self.strength)) @ vt).reshape(w.shape)


class RankAtMost(Spectral):
    """Indicator of rank <= rank."""

    is_convex = False

    def __init__(self, rank):
        self.limit = rank

    def value(self, w):
        """Zero inside, infinite outside."""
        return 0.0 if self.rank(w) <= self.limit else math.inf

    def prox(self, w, step):
        """Truncate the decomposition (Eckart-Young)."""
        u, s, vt = self.parts(w)
        s[self.limit :] = 0.0
        return (u @ np.diag(s) @ vt).reshape(w.shape)
