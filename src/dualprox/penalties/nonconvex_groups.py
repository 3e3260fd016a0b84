"""Nonconvex penalties of groups: whole slices exactly zero, without shrinking what stays."""

import math
from abc import abstractmethod
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .base import Penalty, SparseGroupForm
from .half_equation import half_prox, solve_half_equation
from .nonconvex import (
    mcp_prox,
    mcp_slope,
    mcp_value,
    require_concavity,
    require_gamma,
    scad_prox,
    scad_slope,
    scad_value,
)
from .norm_equation import solve_norm_equation
from .sparse import GroupLasso, GroupPenalty, weighted_sum


@dataclass(frozen=True)
class FoldedGroupPenalty(GroupPenalty):
    """psi(w) = sum_g phi(||w_g||), phi concave with slope lambda_g at zero and none from far on.

    The gamma in force is gamma / concavity, so that at concavity 0 the penalty is `GroupLasso`
    itself.
    """

    gamma: float = field(default=3.0, kw_only=True)
    concavity: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_concavity(self.concavity)

    @property
    def is_convex(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether it is `GroupLasso`."""
        return self.concavity == 0

    @property
    def _limit(self) -> GroupLasso:
        return GroupLasso(
            self.strength, self.axis, self.size_weighted, self.block, self.conv_groups
        )

    @property
    def _knee(self) -> float:
        return self.gamma / self.concavity

    @abstractmethod
    def _phi(self, norm: Tensor, strength: float | Tensor) -> Tensor:
        """What phi is at each norm, where concavity > 0."""

    @abstractmethod
    def _slope(self, norm: Tensor, strength: float | Tensor) -> Tensor:
        """The derivative of phi."""

    @abstractmethod
    def _norm_prox(self, norm: Tensor, step: float | Tensor, strength: float | Tensor) -> Tensor:
        """The prox of phi."""

    @abstractmethod
    def _equation(
        self, view: Tensor, metric: Tensor, step: float | Tensor, strength: float | Tensor
    ) -> tuple[Tensor, float | Tensor, Tensor | None]:
        """Slope, threshold and a start left of the root of the norm equation where phi bends."""

    def with_concavity(self, concavity: float) -> Penalty:
        """See `Penalty.with_concavity`."""
        return self if concavity == self.concavity else replace(self, concavity=concavity)

    def value(self, w: Tensor) -> Tensor:
        """psi(w)."""
        if self.is_convex:
            return self._limit.value(w)
        slices = self.partition(w)
        return self._phi(slices.norm(slices.view(w)), self.group_strength(w)).sum()

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """The prox of phi on each group's norm."""
        if self.is_convex:
            return self._limit.prox(w, step)
        slices = self.partition(w)
        view = slices.view(w)
        norm = slices.norm(view)
        shortened = self._norm_prox(norm, step, self.group_strength(w))
        return (view * torch.where(shortened == 0, 0, shortened / norm)).reshape(w.shape)

    def metric_prox(
        self, a: Tensor, d: float | Tensor, step: float | Tensor, start: Tensor | None = None
    ) -> tuple[Tensor, int]:
        """The global minimizer among zero, one root of a norm equation, and a / d.

        All other stationary points are maxima along the norm; see docs/math.md.
        """
        if self.is_convex:
            return self._limit.metric_prox(a, d, step, start)
        if isinstance(d, int | float) or d.dim() == 0:
            return self.prox(a / d, step / d), 0
        del start  # from a warm start Newton could reach a root that is a maximum
        slices, strength = self.partition(a), self.group_strength(a)
        view, metric = slices.view(a), slices.view(d)
        slope, threshold, begin = self._equation(view, metric, step, strength)
        flat = self._knee * strength
        r, steps = solve_norm_equation(view, slope, threshold, slices, begin, cap=flat)
        rooted = (slices.norm(view) > threshold) & r.isfinite()
        r = torch.where(rooted, r, 0)
        bent = torch.where(r == 0, 0, view * r / torch.where(r == 0, 1, slope * r + threshold))
        free = view / metric

        def cost(z: Tensor, norm: Tensor) -> Tensor:
            smooth = slices.sum(0.5 * metric * z.square() - view * z)
            return smooth + step * self._phi(norm, strength)

        free_norm = slices.norm(free)
        # A root may miss the flat part, and a / d its border, by rounding alone.
        border = flat * (1 - 8 * torch.finfo(a.dtype).eps)
        is_free = (free_norm >= border) & ~(cost(free, free_norm) >= cost(bent, r))
        is_free |= free_norm.isnan()
        return torch.where(is_free, free, bent).reshape(a.shape), steps

    def residual(self, w: Tensor, g: Tensor) -> Tensor:
        """dist(-g, d psi(w)); see `Penalty.residual`."""
        if self.is_convex:
            return self._limit.residual(w, g)
        slices = self.partition(w)
        view, strength = slices.view(w), self.group_strength(w)
        slope = self._slope(slices.norm(view), strength)
        return self._group_residual(view, slices.view(g), strength, slope)

    def dead_groups(self, a: Tensor, step: float | Tensor) -> Tensor | None:
        """Those of `GroupLasso`, where it is that; else a small metric could revive any group."""
        return self._limit.dead_groups(a, step) if self.is_convex else None


@dataclass(frozen=True)
class GroupMCP(FoldedGroupPenalty):
    """psi(w) = sum_g mcp(||w_g||): whole slices exactly zero, large ones not shrunk.

    Args:
        strength: lambda >= 0.
        axis: as in `GroupLasso`.
        size_weighted: as in `GroupLasso`; it scales lambda_g, not gamma.
        block: as in `GroupLasso`.
        conv_groups: as in `GroupLasso`.
        gamma: > 0, as in `MCP`; keyword only.
        concavity: in [0, 1]; gamma / concavity stands in the place of gamma, and 0 is
            `GroupLasso`. Keyword only.

    Source: Huang, Breheny & Ma, A selective review of group selection (2012), section 3; the
    solution under a metric is derived in docs/math.md.
    """

    gamma: float = field(default=3.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_gamma(self.gamma, above=0)

    def _phi(self, norm: Tensor, strength: float | Tensor) -> Tensor:
        return mcp_value(norm, strength, self._knee)

    def _slope(self, norm: Tensor, strength: float | Tensor) -> Tensor:
        return mcp_slope(norm, strength, self._knee)

    def _norm_prox(self, norm: Tensor, step: float | Tensor, strength: float | Tensor) -> Tensor:
        return mcp_prox(norm, 1.0, step, strength, self._knee)

    def _equation(
        self, view: Tensor, metric: Tensor, step: float | Tensor, strength: float | Tensor
    ) -> tuple[Tensor, float | Tensor, Tensor | None]:
        """Of two roots up to gamma * lambda_g the larger is a maximum: the smallest is wanted."""
        del view
        return metric - step / self._knee, step * strength, None

    def sparse_group_form(self, w: Tensor) -> SparseGroupForm | None:
        """That of `GroupLasso`, where it is that."""
        return self._limit.sparse_group_form(w) if self.is_convex else None


@dataclass(frozen=True)
class GroupSCAD(FoldedGroupPenalty):
    """psi(w) = sum_g scad(||w_g||): as `GroupMCP`, but with slope lambda_g up to norm lambda_g.

    Args:
        strength: lambda >= 0.
        axis: as in `GroupLasso`.
        size_weighted: as in `GroupLasso`; it scales lambda_g, not gamma.
        block: as in `GroupLasso`.
        conv_groups: as in `GroupLasso`.
        gamma: > 1, as in `SCAD`; keyword only.
        concavity: as in `GroupMCP`.

    Source: Wang, Chen & Li, Group SCAD regression analysis for microarray time course gene
    expression data (2007); the solution under a metric is derived in docs/math.md.
    """

    gamma: float = field(default=3.7, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_gamma(self.gamma, above=1)

    def _phi(self, norm: Tensor, strength: float | Tensor) -> Tensor:
        return scad_value(norm, strength, self._knee)

    def _slope(self, norm: Tensor, strength: float | Tensor) -> Tensor:
        return scad_slope(norm, strength, self._knee)

    def _norm_prox(self, norm: Tensor, step: float | Tensor, strength: float | Tensor) -> Tensor:
        return scad_prox(norm, 1.0, step, strength, self._knee)

    def _equation(
        self, view: Tensor, metric: Tensor, step: float | Tensor, strength: float | Tensor
    ) -> tuple[Tensor, float | Tensor, Tensor | None]:
        """That of `GroupLasso` if its root is at most lambda_g, else that of the bent piece.

        Which one it is shows at r = lambda_g, where both have the same value.
        """
        slices = self.partition(view)
        at_border = slices.norm(view / (metric * strength + step * strength))
        bends = (at_border > 1).to(view.dtype)
        slope = metric - bends * (step / (self._knee - 1))
        return slope, step * strength * (1 + bends / (self._knee - 1)), bends * strength

    def sparse_group_form(self, w: Tensor) -> SparseGroupForm | None:
        """That of `GroupLasso`, where it is that."""
        return self._limit.sparse_group_form(w) if self.is_convex else None


def _kink(strength: float | Tensor) -> float | Tensor:
    """The slope at zero of a penalty that jumps or is vertical there: infinite, unless it is 0."""
    if isinstance(strength, Tensor):
        return torch.where(strength == 0, 0.0, math.inf).to(strength.dtype)
    return math.inf if strength else 0.0


@dataclass(frozen=True)
class GroupL0(GroupPenalty):
    """psi(w) = sum_g lambda_g [w_g != 0], the l_{2,0} penalty: a price for each live group.

    Args:
        strength: lambda >= 0.
        axis: as in `GroupLasso`.
        size_weighted: whether lambda_g is strength * (entries in g), or strength itself. Then
            psi is strength * (entries in live groups), and a group lives or dies by the root mean
            square of its entries whatever its size, as sqrt(entries) does it for `GroupLasso`.
        block: as in `GroupLasso`.
        conv_groups: as in `GroupLasso`.

    The solution is separable over groups: a_g / d_g, or zero. See docs/math.md.
    """

    is_convex = False

    def group_weight(self, w: Tensor) -> float | Tensor:
        """lambda_g / strength: entries in a group, or 1."""
        return super().group_weight(w) ** 2

    def value(self, w: Tensor) -> Tensor:
        """psi(w); NaN for NaN."""
        slices = self.partition(w)
        norm = slices.norm(slices.view(w))
        live = torch.where(norm.isnan(), norm, (norm != 0).to(norm.dtype))
        return weighted_sum(live, self.group_strength(w))

    def metric_prox(
        self, a: Tensor, d: float | Tensor, step: float | Tensor, start: Tensor | None = None
    ) -> tuple[Tensor, int]:
        """The point a / d where that lowers the objective by more than step * lambda_g, else 0."""
        del start
        slices = self.partition(a)
        view = slices.view(a)
        if isinstance(d, int | float) or d.dim() == 0:
            metric, root = d, d**0.5
        else:
            metric = slices.view(d)
            root = torch.sqrt(metric)
        dead = slices.norm(view / root) <= (2 * step * self.group_strength(a)) ** 0.5
        return torch.where(dead, 0, view / metric).reshape(a.shape), 0

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """The groups with ||w_g||^2 > 2 * step * lambda_g."""
        return self.metric_prox(w, 1.0, step)[0]

    def residual(self, w: Tensor, g: Tensor) -> Tensor:
        """The part of g in live groups: a dead one resists any gradient."""
        slices = self.partition(w)
        kink = _kink(self.group_strength(w))
        return self._group_residual(slices.view(w), slices.view(g), kink, 0.0)

    def sparse_group_form(self, w: Tensor) -> SparseGroupForm:
        """Groups alone, counted."""
        return SparseGroupForm(0.0, float(self.group_strength(w)), self.slices, counts=True)


@dataclass(frozen=True)
class GroupHalf(GroupPenalty):
    """psi(w) = sum_g lambda_g ||w_g||_2^(1/2), the l_{2,1/2} penalty.

    Between `GroupLasso` and `GroupL0`: what stays is shrunk the less the larger it is.

    Args:
        strength: lambda >= 0.
        axis: as in `GroupLasso`.
        size_weighted: whether lambda_g is strength * (entries in g)^(3/4), or strength itself.
            Then the root mean square below which a group dies does not depend on its size, as
            with sqrt(entries) for `GroupLasso`.
        block: as in `GroupLasso`.
        conv_groups: as in `GroupLasso`.

    Source: Xu, Chang, Xu & Zhang, L1/2 regularization: a thresholding representation theory and a
    fast solver (2012), for the prox; docs/math.md for the solution under a metric.
    """

    is_convex = False

    def group_weight(self, w: Tensor) -> float | Tensor:
        """lambda_g / strength: (entries in a group)^(3/4), or 1."""
        return super().group_weight(w) ** 1.5

    def value(self, w: Tensor) -> Tensor:
        """psi(w)."""
        slices = self.partition(w)
        return weighted_sum(slices.norm(slices.view(w)).sqrt(), self.group_strength(w))

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Half thresholding of each group's norm."""
        slices = self.partition(w)
        view = slices.view(w)
        norm = slices.norm(view)
        shortened = half_prox(norm, step * self.group_strength(w))
        return (view * torch.where(shortened == 0, 0, shortened / norm)).reshape(w.shape)

    def metric_prox(
        self, a: Tensor, d: float | Tensor, step: float | Tensor, start: Tensor | None = None
    ) -> tuple[Tensor, int]:
        """The point a / (d + mu) for the mu of `solve_half_equation`; 0 where it is infinite."""
        if isinstance(d, int | float) or d.dim() == 0:
            return self.prox(a / d, step / d), 0
        del start
        slices = self.partition(a)
        view, metric = slices.view(a), slices.view(d)
        mu, passes = solve_half_equation(view, metric, step * self.group_strength(a), slices)
        return slices.map(_damped, view, metric, mu).reshape(a.shape), passes

    def residual(self, w: Tensor, g: Tensor) -> Tensor:
        """dist(-g, d psi(w)); a dead group resists any gradient."""
        slices = self.partition(w)
        view, strength = slices.view(w), self.group_strength(w)
        slope = strength / (2 * slices.norm(view).sqrt())
        return self._group_residual(view, slices.view(g), _kink(strength), slope)


def _damped(a: Tensor, d: Tensor, mu: Tensor) -> Tensor:
    """The point a / (d + mu), exactly 0 for infinite mu."""
    return torch.where(mu == math.inf, 0, a / (d + mu))
