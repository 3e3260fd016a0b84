"""Nonconvex penalties: as sparse as their convex kin, without shrinking what stays."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..checks import is_real, require
from .base import SeparablePenalty, require_strength, soft_threshold
from .norm_equation import solve_norm_equation
from .sparse import GroupPenalty, kink_residual


def require_gamma(value: float, above: float) -> None:
    """The rule that the concavity of MCP and SCAD obeys."""
    require(is_real(value) and value > above, "gamma", f"a finite number > {above:g}", value)


def mcp_value(x: Tensor, strength: float | Tensor, gamma: float) -> Tensor:
    """The minimax concave penalty of each x >= 0."""
    x = x.clamp_max(gamma * strength)
    return strength * x - x.square() / (2 * gamma)


def mcp_slope(x: Tensor, strength: float | Tensor, gamma: float) -> Tensor:
    """The derivative of `mcp_value`."""
    return (strength - x / gamma).clamp_min(0)


def mcp_prox(
    a: Tensor, d: float | Tensor, step: float | Tensor, strength: float | Tensor, gamma: float
) -> Tensor:
    """Per entry, a global minimizer of 1/2 d z^2 - a z + step * mcp(|z|).

    Where d > step / gamma the problem is convex and the solution is firm thresholding;
    elsewhere it is one of the ends, 0 or a / d, whichever has the lower objective.
    """
    d = torch.as_tensor(d, dtype=a.dtype, device=a.device)
    step = torch.as_tensor(step, dtype=a.dtype, device=a.device)
    concavity = step / gamma
    is_convex = d > concavity
    curvature = torch.where(is_convex, d - concavity, 1)
    size = a.abs()
    ramp = torch.where(size <= d * (gamma * strength), soft_threshold(a, step * strength), 0)
    firm = torch.where(size <= d * (gamma * strength), ramp / curvature, a / d)
    hard = torch.where(size <= (d * step * gamma).sqrt() * strength, 0, a / d)
    return torch.where(is_convex, firm, hard)


@dataclass(frozen=True)
class MCP(SeparablePenalty):
    """The minimax concave penalty, per entry strength*|x| - x^2/(2*gamma) up to gamma*strength.

    It is constant, strength^2 * gamma / 2, beyond, so large entries are not shrunk at all.

    Args:
        strength: lambda >= 0, the slope at zero.
        gamma: > 0, where the slope has gone, in units of strength; infinity would be `L1`.

    Source: Zhang, Nearly unbiased variable selection under minimax concave penalty (2010).
    """

    is_convex = False
    strength: float
    gamma: float = 3.0

    def __post_init__(self) -> None:
        require_strength(self.strength)
        require_gamma(self.gamma, above=0)

    def value(self, w: Tensor) -> Tensor:
        """psi(w)."""
        return mcp_value(w.abs(), self.strength, self.gamma).sum()

    def entry_prox(self, a: Tensor, d: float | Tensor, step: float | Tensor) -> Tensor:
        """Firm or hard thresholding; see `mcp_prox`."""
        return mcp_prox(a, d, step, self.strength, self.gamma)

    def residual(self, w: Tensor, g: Tensor) -> Tensor:
        """dist(-g, d psi(w)); see `Penalty.residual`."""
        return kink_residual(w, g, self.strength, mcp_slope(w.abs(), self.strength, self.gamma))


@dataclass(frozen=True)
class SCAD(SeparablePenalty):
    """The smoothly clipped absolute deviation penalty.

    Its slope is strength up to |x| = strength, then falls linearly to zero at gamma * strength.

    Args:
        strength: lambda >= 0.
        gamma: > 1; Fan and Li's a.

    Source: Fan & Li, Variable selection via nonconcave penalized likelihood (2001), eq. (2.7).
    """

    is_convex = False
    strength: float
    gamma: float = 3.7

    def __post_init__(self) -> None:
        require_strength(self.strength)
        require_gamma(self.gamma, above=1)

    def _values(self, x: Tensor) -> Tensor:
        x = x.clamp_max(self.gamma * self.strength)
        bend = (x - self.strength).clamp_min(0).square() / (2 * (self.gamma - 1))
        return self.strength * x - bend

    def value(self, w: Tensor) -> Tensor:
        """psi(w)."""
        return self._values(w.abs()).sum()

    def entry_prox(self, a: Tensor, d: float | Tensor, step: float | Tensor) -> Tensor:
        """The best of the minimizers over the three pieces of the penalty."""
        d = torch.as_tensor(d, dtype=a.dtype, device=a.device)
        step = torch.as_tensor(step, dtype=a.dtype, device=a.device)
        size, near, far = a.abs(), self.strength, self.gamma * self.strength
        concavity = step / (self.gamma - 1)
        is_convex = d > concavity
        middle = (size - concavity * far) / torch.where(is_convex, d - concavity, 1)
        best = ((size - step * near).clamp_min(0) / d).clamp_max(near)
        best_cost = 0.5 * d * best.square() - size * best + step * self._values(best)
        # Where the middle piece is concave its minimum is an end, which a neighbour has too.
        middle = torch.where(is_convex, middle, near).clamp(near, far)
        for candidate in (middle, (size / d).clamp_min(far)):
            cost = 0.5 * d * candidate.square() - size * candidate
            cost = cost + step * self._values(candidate)
            better = ~(cost >= best_cost)
            best = torch.where(better, candidate, best)
            best_cost = torch.where(better, cost, best_cost)
        return best * a.sign()

    def residual(self, w: Tensor, g: Tensor) -> Tensor:
        """dist(-g, d psi(w)); see `Penalty.residual`."""
        x = w.abs()
        fall = (x - self.strength).clamp_min(0) / (self.gamma - 1)
        return kink_residual(w, g, self.strength, (self.strength - fall).clamp_min(0))


@dataclass(frozen=True)
class L0(SeparablePenalty):
    """psi(w) = strength * (number of nonzero entries).

    Args:
        strength: lambda >= 0.
    """

    is_convex = False
    strength: float

    def __post_init__(self) -> None:
        require_strength(self.strength)

    def value(self, w: Tensor) -> Tensor:
        """Strength * nonzeros; NaN for NaN."""
        return self.strength * torch.where(w.isnan(), w, (w != 0).to(w.dtype)).sum()

    def entry_prox(self, a: Tensor, d: float | Tensor, step: float | Tensor) -> Tensor:
        """A / d where that lowers the objective by more than step * strength, else 0."""
        d = torch.as_tensor(d, dtype=a.dtype, device=a.device)
        return torch.where(a.abs() <= (2 * d * step * self.strength).sqrt(), 0, a / d)

    def residual(self, w: Tensor, g: Tensor) -> Tensor:
        """The part of g on the support: a zero entry resists any gradient."""
        kink = 0.0 if self.strength == 0 else math.inf
        return kink_residual(w, g, kink, 0.0)


@dataclass(frozen=True)
class GroupMCP(GroupPenalty):
    """psi(w) = sum_g mcp(||w_g||): whole slices exactly zero, large ones not shrunk.

    Args:
        strength: lambda >= 0.
        axis: as in `GroupLasso`.
        size_weighted: as in `GroupLasso`; it scales lambda_g, not gamma.
        block: as in `GroupLasso`.
        conv_groups: as in `GroupLasso`.
        gamma: > 0, as in `MCP`; keyword only.

    Source: Huang, Breheny & Ma, A selective review of group selection (2012), section 3; the
    solution under a metric is derived in docs/math.md.
    """

    is_convex = False
    gamma: float = field(default=3.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_gamma(self.gamma, above=0)

    def value(self, w: Tensor) -> Tensor:
        """psi(w)."""
        slices = self.partition(w)
        norm = slices.norm(slices.view(w))
        return mcp_value(norm, self.group_strength(w), self.gamma).sum()

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Firm or hard thresholding of each group's norm."""
        slices = self.partition(w)
        view = slices.view(w)
        norm = slices.norm(view)
        shortened = mcp_prox(norm, 1.0, step, self.group_strength(w), self.gamma)
        return (view * torch.where(shortened == 0, 0, shortened / norm)).reshape(w.shape)

    def metric_prox(
        self, a: Tensor, d: float | Tensor, step: float | Tensor, start: Tensor | None = None
    ) -> tuple[Tensor, int]:
        """The global minimizer among zero, the smallest root of the norm equation, and a / d.

        A root with r <= gamma * lambda_g solves the norm equation with slopes d - step / gamma.
        Of two roots the larger is a maximum, so only the smallest and the two ends compete.
        """
        if isinstance(d, int | float) or d.dim() == 0:
            return self.prox(a / d, step / d), 0
        del start  # from a warm start Newton could reach the larger root
        slices, strength = self.partition(a), self.group_strength(a)
        view, metric = slices.view(a), slices.view(d)
        threshold, flat = step * strength, self.gamma * strength
        slope = metric - step / self.gamma
        r, steps = solve_norm_equation(view, slope, threshold, slices, cap=flat)
        rooted = (slices.norm(view) > threshold) & r.isfinite()
        r = torch.where(rooted, r, 0)
        bent = torch.where(r == 0, 0, view * r / torch.where(r == 0, 1, slope * r + threshold))
        free = view / metric

        def cost(z: Tensor, norm: Tensor) -> Tensor:
            smooth = slices.sum(0.5 * metric * z.square() - view * z)
            return smooth + step * mcp_value(norm, strength, self.gamma)

        free_norm = slices.norm(free)
        is_free = (free_norm >= flat) & ~(cost(free, free_norm) >= cost(bent, r))
        is_free |= free_norm.isnan()
        return torch.where(is_free, free, bent).reshape(a.shape), steps

    def residual(self, w: Tensor, g: Tensor) -> Tensor:
        """dist(-g, d psi(w)); see `Penalty.residual`."""
        slices = self.partition(w)
        view, strength = slices.view(w), self.group_strength(w)
        slope = mcp_slope(slices.norm(view), strength, self.gamma)
        return self._group_residual(view, slices.view(g), strength, slope)
