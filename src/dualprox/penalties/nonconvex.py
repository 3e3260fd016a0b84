"""Nonconvex penalties of entries: as sparse as `L1`, without shrinking what stays."""

import math
from abc import abstractmethod
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..checks import is_real, require
from .base import Penalty, SeparablePenalty, SparseGroupForm, require_strength, soft_threshold
from .sparse import L1, kink_residual


def require_gamma(value: float, above: float) -> None:
    """The rule that the concavity of MCP and SCAD obeys."""
    require(is_real(value) and value > above, "gamma", f"a finite number > {above:g}", value)


def require_concavity(value: float) -> None:
    """The rule that every concavity obeys."""
    require(is_real(value) and 0 <= value <= 1, "concavity", "in [0, 1]", value)


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


def scad_value(x: Tensor, strength: float | Tensor, gamma: float) -> Tensor:
    """The smoothly clipped absolute deviation of each x >= 0."""
    x = x.clamp_max(gamma * strength)
    return strength * x - (x - strength).clamp_min(0).square() / (2 * (gamma - 1))


def scad_slope(x: Tensor, strength: float | Tensor, gamma: float) -> Tensor:
    """The derivative of `scad_value`."""
    return (strength - (x - strength).clamp_min(0) / (gamma - 1)).clamp_min(0)


def scad_prox(
    a: Tensor, d: float | Tensor, step: float | Tensor, strength: float | Tensor, gamma: float
) -> Tensor:
    """Per entry, a global minimizer of 1/2 d z^2 - a z + step * scad(|z|).

    The best of the minimizers over the three pieces of the penalty.
    """
    d = torch.as_tensor(d, dtype=a.dtype, device=a.device)
    step = torch.as_tensor(step, dtype=a.dtype, device=a.device)
    size, near, far = a.abs(), strength, gamma * strength
    concavity = step / (gamma - 1)
    is_convex = d > concavity
    middle = (size - concavity * far) / torch.where(is_convex, d - concavity, 1)
    best = ((size - step * near).clamp_min(0) / d).clamp_max(near)
    best_cost = 0.5 * d * best.square() - size * best + step * scad_value(best, strength, gamma)
    # Where the middle piece is concave its minimum is an end, which a neighbour has too.
    middle = torch.where(is_convex, middle, near).clamp_min(near).clamp_max(far)
    for candidate in (middle, (size / d).clamp_min(far)):
        cost = 0.5 * d * candidate.square() - size * candidate
        cost = cost + step * scad_value(candidate, strength, gamma)
        better = ~(cost >= best_cost)
        best = torch.where(better, candidate, best)
        best_cost = torch.where(better, cost, best_cost)
    return best * a.sign()


@dataclass(frozen=True)
class FoldedPenalty(SeparablePenalty):
    """psi(w) = sum_i phi(|w_i|), phi concave with slope strength at zero and none from far on.

    The gamma in force is gamma / concavity, so that at concavity 0 the penalty is `L1` itself.
    """

    strength: float
    gamma: float
    concavity: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_strength(self.strength)
        require_concavity(self.concavity)

    @property
    def is_convex(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether it is `L1`."""
        return self.concavity == 0

    @property
    def _knee(self) -> float:
        return self.gamma / self.concavity

    @abstractmethod
    def _phi(self, x: Tensor) -> Tensor:
        """What phi is at each x >= 0, where concavity > 0."""

    @abstractmethod
    def _slope(self, x: Tensor) -> Tensor:
        """The derivative of phi."""

    @abstractmethod
    def _prox(self, a: Tensor, d: float | Tensor, step: float | Tensor) -> Tensor:
        """`entry_prox`, where concavity > 0."""

    def with_concavity(self, concavity: float) -> Penalty:
        """See `Penalty.with_concavity`."""
        return self if concavity == self.concavity else replace(self, concavity=concavity)

    def value(self, w: Tensor) -> Tensor:
        """psi(w)."""
        return L1(self.strength).value(w) if self.is_convex else self._phi(w.abs()).sum()

    def entry_prox(self, a: Tensor, d: float | Tensor, step: float | Tensor) -> Tensor:
        """Per entry, a global minimizer of 1/2 d z^2 - a z + step * phi(|z|)."""
        if self.is_convex:
            return L1(self.strength).entry_prox(a, d, step)
        return self._prox(a, d, step)

    def residual(self, w: Tensor, g: Tensor) -> Tensor:
        """dist(-g, d psi(w)); see `Penalty.residual`."""
        slope = self.strength if self.is_convex else self._slope(w.abs())
        return kink_residual(w, g, self.strength, slope)

    def dead_groups(self, a: Tensor, step: float | Tensor) -> Tensor | None:
        """Those of `L1`, where it is that; else a small metric could revive any entry."""
        return L1(self.strength).dead_groups(a, step) if self.is_convex else None


@dataclass(frozen=True)
class MCP(FoldedPenalty):
    """The minimax concave penalty, per entry strength*|x| - x^2/(2*gamma) up to gamma*strength.

    It is constant, strength^2 * gamma / 2, beyond, so large entries are not shrunk at all.

    Args:
        strength: lambda >= 0, the slope at zero.
        gamma: > 0, where the slope has gone, in units of strength.
        concavity: in [0, 1]; gamma / concavity stands in the place of gamma, and 0 is `L1`.
            Keyword only.

    Source: Zhang, Nearly unbiased variable selection under minimax concave penalty (2010).
    """

    gamma: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_gamma(self.gamma, above=0)

    def _phi(self, x: Tensor) -> Tensor:
        return mcp_value(x, self.strength, self._knee)

    def _slope(self, x: Tensor) -> Tensor:
        return mcp_slope(x, self.strength, self._knee)

    def _prox(self, a: Tensor, d: float | Tensor, step: float | Tensor) -> Tensor:
        return mcp_prox(a, d, step, self.strength, self._knee)

    def sparse_group_form(self, w: Tensor) -> SparseGroupForm | None:
        """That of `L1`, where it is that."""
        return L1(self.strength).sparse_group_form(w) if self.is_convex else None


@dataclass(frozen=True)
class SCAD(FoldedPenalty):
    """The smoothly clipped absolute deviation penalty.

    Its slope is strength up to |x| = strength, then falls linearly to zero at gamma * strength.

    Args:
        strength: lambda >= 0.
        gamma: > 1; Fan and Li's a.
        concavity: as in `MCP`.

    Source: Fan & Li, Variable selection via nonconcave penalized likelihood (2001), eq. (2.7).
    """

    gamma: float = 3.7

    def __post_init__(self) -> None:
        super().__post_init__()
        require_gamma(self.gamma, above=1)

    def _phi(self, x: Tensor) -> Tensor:
        return scad_value(x, self.strength, self._knee)

    def _slope(self, x: Tensor) -> Tensor:
        return scad_slope(x, self.strength, self._knee)

    def _prox(self, a: Tensor, d: float | Tensor, step: float | Tensor) -> Tensor:
        return scad_prox(a, d, step, self.strength, self._knee)

    def sparse_group_form(self, w: Tensor) -> SparseGroupForm | None:
        """That of `L1`, where it is that."""
        return L1(self.strength).sparse_group_form(w) if self.is_convex else None


@dataclass(frozen=True)
class L0(SeparablePenalty):
    """psi(w) = strength * (number of nonzero entries).

    Args:
        strength: lambda >= 0.
    """

    is_convex = False
    strength: float

    def __post_init__(self) -> None:
        super().__post_init__()
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

    def sparse_group_form(self, w: Tensor) -> SparseGroupForm:
        """Entries alone, counted."""
        del w
        return SparseGroupForm(self.strength, 0.0, None, counts=True)
