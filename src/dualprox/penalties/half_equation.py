"""The subproblem of the l_{2,1/2} penalty: a closed form for a norm, one variable under a metric.

Since sqrt(r) = min_mu (mu r^2 / 2 + 3/2 c (c / mu)^(1/3)) / (2 c), c = t / 2, the minimum of
1/2 <z, D z> - <a, z> + t ||z||^(1/2) over z is that over mu > 0 of

    W(mu) = 3/2 c (c / mu)^(1/3) - G(mu),  G(mu) = 1/2 sum_i a_i^2 / (d_i + mu),

and z_i = a_i / (d_i + mu). W may have many local minima. But 1 / G is a harmonic mean of affine
functions, hence concave: between two points its chord bounds W from below, by a function whose
least point has a closed form. Taking that point of the most promising interval again and again
finds the global minimum, and proves that it is it.
"""

import math

import torch
from torch import Tensor

from ..geometry import Slices
from ..joint import Partition
from ..sharding import whole
from . import norm_equation

# How many points are tried, and how many Newton steps then taken, where asking would stall the
# device; and the most elsewhere.
_BLIND_POINTS, _BLIND_STEPS = 16, 6
_MOST_POINTS, _MOST_STEPS = 100, 30


def half_prox(y: Tensor, t: float | Tensor) -> Tensor:
    """Per entry y >= 0, the minimizer z >= 0 of 1/2 (z - y)^2 + t sqrt(z), the largest of a tie.

    Source: Xu, Chang, Xu & Zhang (2012), Theorem 1, with their lambda = 2 t.
    """
    angle = (t / 4 * (y / 3) ** -1.5).clamp_max(1).acos()
    root = 2 / 3 * y * (1 + torch.cos(2 / 3 * (math.pi - angle)))
    return torch.where(y <= 1.5 * t ** (2 / 3), 0, root)


def _gain(a: Tensor, d: Tensor, mu: Tensor) -> tuple[Tensor]:
    """The terms of G."""
    return (0.5 * a.square() / (d + mu),)


def _slopes(a: Tensor, d: Tensor, mu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The terms of G, of -2 G' = ||z||^2 and of -1/2 of its derivative."""
    z = a / (d + mu)
    return 0.5 * a * z, z.square(), z.square() / (d + mu)


def _between(
    low: Tensor, high: Tensor, f_low: Tensor, f_high: Tensor, c: Tensor
) -> tuple[Tensor, Tensor]:
    """A local minimizer of W's bound between two points where 1 / G is known, and its value.

    With 1 / G replaced by alpha + beta mu this is the problem of one entry; its minimizer may lie
    outside, and is NaN where there is none.
    """
    beta = (f_high - f_low) / (high - low)
    alpha = f_low - beta * low
    ratio = 27**0.5 / 2 * 0.5**0.75 * c * alpha.sqrt() * beta.sqrt().sqrt()
    root = 1 + torch.cos(2 / 3 * (math.pi - ratio.acos()))
    z = 2 / 3 * (2 * beta).sqrt() / alpha * root
    mu = c * z**-1.5
    return mu, 1.5 * c * (c / mu) ** (1 / 3) - 1 / (alpha + beta * mu)


def solve_half_equation(
    a: Tensor, d: Tensor, threshold: float | Tensor, slices: Slices | Partition
) -> tuple[Tensor, int]:
    """The mu >= 0 at which W is least, group by group; infinite where the minimizer z is zero.

    Args:
        a: a view that `slices` made.
        d: > 0, of a's shape.
        threshold: t >= 0, a number or one for each group.
        slices: the groups of `a`.

    Returns:
        mu in the shape of sums over groups, and passes over the entries.
    """
    asks = norm_equation._asks(a)
    reach = slices.norm(a / d)
    c = torch.zeros_like(reach) + threshold / 2
    # A root has r <= ||a / d||; at a minimizer better than zero <z, D z> >= 2 c sqrt(r).
    low, high = c * reach**-1.5, slices.amax(d) / 2
    is_open = (low < high) & (c > 0)

    def gain(mu: Tensor) -> Tensor:
        return slices.sums(_gain, a, d, mu)[0]

    def cost(mu: Tensor, value: Tensor) -> Tensor:
        return 1.5 * c * (c / mu) ** (1 / 3) - value

    points = torch.stack([torch.where(is_open, low, 1), torch.where(is_open, high, 2)])
    gains = torch.stack([gain(points[0]), gain(points[1])])
    close = torch.finfo(a.dtype).eps ** 0.75 * gains[0]
    passes = 2
    for _ in range(_MOST_POINTS if asks else _BLIND_POINTS):
        order = points.argsort(dim=0)
        points, gains = points.gather(0, order), gains.gather(0, order)
        best = cost(points, gains).amin(dim=0).clamp_max(0)
        f = 1 / gains
        mu, bound = _between(points[:-1], points[1:], f[:-1], f[1:], c)
        is_better = (points[:-1] < mu) & (mu < points[1:]) & (bound < best - close) & is_open
        if asks and not bool(whole(is_better.any())):
            break
        bound, index = torch.where(is_better, bound, math.inf).min(dim=0, keepdim=True)
        tried = torch.where(bound < math.inf, mu.gather(0, index), points[:1])
        points = torch.cat([points, tried])
        gains = torch.cat([gains, gain(tried[0])[None]])
        passes += 1
    costs = cost(points, gains)
    mu = points.gather(0, costs.argmin(dim=0, keepdim=True))[0]
    for _ in range(_MOST_STEPS if asks else _BLIND_STEPS):
        _, square, bend = slices.sums(_slopes, a, d, mu)
        passes += 1
        # ||z||^2 = r^2 = (c / mu)^(4/3) in logarithms, where both sides are almost straight.
        excess = square.log() - 4 / 3 * (c / mu).log()
        step = excess / (4 / 3 - 2 * mu * bend / square)
        step = torch.where(step.isfinite(), step, 0).clamp(-0.5, 0.5)
        mu = mu * torch.exp(-step)
        if asks and not bool(
            whole((is_open & (step.abs() > torch.finfo(a.dtype).eps ** 0.5)).any())
        ):
            break
    is_zero = ~(cost(mu, gain(mu)) < 0) & ~reach.isnan()
    mu = torch.where(is_zero | (low >= high), math.inf, mu)
    mu = torch.where(c == 0, 0, mu)
    return torch.where(reach.isnan() | c.isnan(), math.nan, mu), passes
