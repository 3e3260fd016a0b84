"""Convex penalties that make entries or whole groups exactly zero."""

from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor

from ..checks import is_real, require
from ..geometry import Slices
from ..joint import Joint, Partition
from .base import (
    DiagonalPenalty,
    Penalty,
    SeparablePenalty,
    SparseGroupForm,
    Support,
    require_strength,
    soft_threshold,
)
from .norm_equation import solve_norm_equation


def kink_residual(w: Tensor, g: Tensor, kink: float, slope: float | Tensor) -> Tensor:
    """dist(-g, d psi(w)) for psi(w) = sum phi(|w_i|), phi'(0) = kink, phi'(|w_i|) = slope."""
    at_zero = (g.abs() - kink).clamp_min(0)
    return torch.linalg.vector_norm(torch.where(w == 0, at_zero, g + w.sign() * slope))


def weighted_sum(x: Tensor, weight: float | Tensor) -> Tensor:
    """Sum of weight * x, a weight for each group or one for all."""
    return (weight * x).sum() if isinstance(weight, Tensor) else weight * x.sum()


@dataclass(frozen=True)
class L1(SeparablePenalty):
    """psi(w) = strength * ||w||_1, sparse entries.

    Args:
        strength: lambda >= 0.

    Example:
        >>> import torch
        >>> L1(1.0).prox(torch.tensor([3.0, -0.5]), step=2.0)
        tensor([1., 0.])
    """

    strength: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require_strength(self.strength)

    def value(self, w: Tensor) -> Tensor:
        """Strength * sum |w_i|."""
        return self.strength * w.abs().sum()

    def entry_prox(self, a: Tensor, d: float | Tensor, step: float | Tensor) -> Tensor:
        """soft(a, step * strength) / d."""
        return soft_threshold(a, step * self.strength) / d

    def residual(self, w: Tensor, g: Tensor) -> Tensor:
        """dist(-g, d psi(w)); see `Penalty.residual`."""
        return kink_residual(w, g, self.strength, self.strength)

    def dead_groups(self, a: Tensor, step: float | Tensor) -> Tensor:
        """|a_i| <= step * strength."""
        return a.abs() <= step * self.strength

    def sparse_group_form(self, w: Tensor) -> SparseGroupForm:
        """Entries alone."""
        del w
        return SparseGroupForm(self.strength, 0.0, None)


@dataclass(frozen=True)
class ElasticNet(SeparablePenalty):
    """psi(w) = strength * (l1_ratio * ||w||_1 + (1 - l1_ratio) / 2 * ||w||^2).

    Args:
        strength: lambda >= 0.
        l1_ratio: in [0, 1], as in scikit-learn; 1 is `L1`.

    Source: Zou & Hastie, Regularization and variable selection via the elastic net (2005).
    """

    strength: float
    l1_ratio: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_strength(self.strength)
        require_ratio(self.l1_ratio)

    def value(self, w: Tensor) -> Tensor:
        """psi(w)."""
        ridge = (1 - self.l1_ratio) / 2 * w.square().sum()
        return self.strength * (self.l1_ratio * w.abs().sum() + ridge)

    def entry_prox(self, a: Tensor, d: float | Tensor, step: float | Tensor) -> Tensor:
        """soft(a, step * strength * l1_ratio) / (d + step * strength * (1 - l1_ratio))."""
        curvature = d + step * (self.strength * (1 - self.l1_ratio))
        return soft_threshold(a, step * (self.strength * self.l1_ratio)) / curvature

    def residual(self, w: Tensor, g: Tensor) -> Tensor:
        """dist(-g, d psi(w)); see `Penalty.residual`."""
        kink = self.strength * self.l1_ratio
        return kink_residual(w, g, kink, kink + self.strength * (1 - self.l1_ratio) * w.abs())

    def dead_groups(self, a: Tensor, step: float | Tensor) -> Tensor:
        """|a_i| <= step * strength * l1_ratio."""
        return a.abs() <= step * (self.strength * self.l1_ratio)


def require_ratio(value: float) -> None:
    """The rule that every l1_ratio obeys."""
    require(is_real(value) and 0 <= value <= 1, "l1_ratio", "in [0, 1]", value)


# Whoever asks for the groups of a penalty gets the same checked object each time.
_slices = lru_cache(maxsize=1024, typed=True)(Slices)


@dataclass(frozen=True)
class GroupPenalty(DiagonalPenalty):
    """A penalty on the norms of slices along one axis.

    Args:
        strength: lambda >= 0.
        axis: the axis whose slices are the groups. 1 is the inputs of a Linear or Conv weight.
        size_weighted: whether a group's lambda is strength * sqrt(entries in it), the papers'
            weighting, or strength itself.
        block: consecutive slices per group, e.g. the head size for attention heads.
        conv_groups: `groups` of the convolution the weight belongs to; see `Slices`.
    """

    strength: float
    axis: int = 1
    size_weighted: bool = True
    block: int = 1
    conv_groups: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_strength(self.strength)
        require(isinstance(self.size_weighted, bool), "size_weighted", "a bool", self.size_weighted)
        Slices(self.axis, self.block, self.conv_groups)  # checks them

    @property
    def slices(self) -> Slices:
        """The partition into groups."""
        return _slices(self.axis, self.block, self.conv_groups)

    def partition(self, w: Tensor) -> Slices | Partition:
        """The groups of w: slices of a tensor, or what the coupling of a `Joint` says.

        Formulas that ask this, not `slices`, hold for groups over several tensors and over
        several processes as well.
        """
        return w.coupling if isinstance(w, Joint) else self.slices

    def check(self, shape: torch.Size | tuple[int, ...]) -> None:
        """Raise ValueError if a parameter of this shape cannot be cut into the groups."""
        try:
            self.slices.check(shape)
        except ValueError as error:
            raise ValueError(f"{type(self).__name__}: {error}") from None

    def along(self, axis: int, block: int, conv_groups: int) -> Penalty:
        """The same penalty with other groups."""
        return replace(self, axis=axis, block=block, conv_groups=conv_groups)

    def group_weight(self, w: Tensor) -> float | Tensor:
        """lambda_g / strength: sqrt(entries in a group), or 1 where sizes do not count."""
        return self.partition(w).weight(w, self.size_weighted)

    def group_strength(self, w: Tensor) -> float | Tensor:
        """lambda_g."""
        return self.strength * self.group_weight(w)

    def reweighted(self, factor: float) -> "GroupPenalty":
        """The same penalty with every lambda_g times a factor."""
        return replace(self, strength=self.strength * factor)

    def structure(self, w: Tensor) -> Support:
        """Which groups have a nonzero entry, in the order of the slices."""
        slices = self.partition(w)
        live = slices.amax(slices.view(w != 0).to(torch.uint8)) != 0
        return Support(live=live.flatten(), group_size=slices.size(w.shape))

    def live_entries(self, w: Tensor) -> Tensor | None:
        """The entries of live groups, zeros among them included."""
        slices = self.partition(w)
        view = slices.view(w != 0)
        live = slices.amax(view.to(torch.uint8)) != 0
        return live.expand_as(view).reshape(w.shape)

    def _group_residual(
        self, w: Tensor, g: Tensor, kink: float | Tensor, slope: float | Tensor
    ) -> Tensor:
        """dist(-g, d psi(w)) for psi = sum phi(||w_g||), phi'(0) = kink; w, g are views."""
        slices = self.partition(w)
        norm = slices.norm(w)
        # clamp: a zero group takes the other branch, and 0/0 must not poison this one.
        tilted = g + w * (slope / norm.clamp_min(torch.finfo(w.dtype).tiny))
        at_zero = (slices.norm(g) - kink).clamp_min(0)
        return torch.linalg.vector_norm(torch.where(norm == 0, at_zero, slices.norm(tilted)))


def _of_norm(a: Tensor, d: Tensor, r: Tensor, threshold: float | Tensor) -> Tensor:
    """z_i = a_i r / (d_i r + t), where r is the norm of z."""
    # The denominator of a dead group may be 0; the numerator already is.
    return a * r / torch.where(r == 0, 1, d * r + threshold)


@dataclass(frozen=True)
class GroupLasso(GroupPenalty):
    """psi(w) = sum_g lambda_g ||w_g||_2, whole slices exactly zero.

    Args:
        strength: lambda >= 0.
        axis: the axis whose slices are the groups. 1 is the inputs of a Linear or Conv weight.
        size_weighted: whether lambda_g is strength * sqrt(entries in g), the papers' weighting,
            or strength itself.
        block: consecutive slices per group, e.g. the head size for attention heads.
        conv_groups: `groups` of the convolution the weight belongs to; see `Slices`.

    Source: Yuan & Lin, Model selection and estimation in regression with grouped variables (2006);
    under a metric, the norm equation of docs/math.md.

    Example:
        >>> import torch
        >>> w = torch.tensor([[3.0, 0.1], [4.0, 0.2]])
        >>> GroupLasso(1.0, size_weighted=False).prox(w, step=2.5)
        tensor([[1.5000, 0.0000], [2.0000, 0.0000]])
    """

    def value(self, w: Tensor) -> Tensor:
        """The weighted sum of the groups' norms."""
        slices = self.partition(w)
        return weighted_sum(slices.norm(slices.view(w)), self.group_strength(w))

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Shorten each group by step * lambda_g, stopping at zero."""
        slices, threshold = self.partition(w), step * self.group_strength(w)
        view = slices.view(w)
        norm = slices.norm(view)
        # "<=", not the negated ">": 0/0 stays out, and a NaN norm is not taken for a dead group.
        return (view * torch.where(norm <= threshold, 0, 1 - threshold / norm)).reshape(w.shape)

    def metric_prox(
        self, a: Tensor, d: float | Tensor, step: float | Tensor, start: Tensor | None = None
    ) -> tuple[Tensor, int]:
        """z_i = a_i r / (d_i r + t), t = step * lambda_g, where ||a_g|| > t; zero elsewhere."""
        if isinstance(d, int | float) or d.dim() == 0:
            return self.prox(a / d, step / d), 0
        slices, threshold = self.partition(a), step * self.group_strength(a)
        view, slope = slices.view(a), slices.view(d)
        guess = None if start is None else slices.norm(slices.view(start))
        r, steps = solve_norm_equation(view, slope, threshold, slices, guess)
        scale = torch.where(slices.norm(view) <= threshold, 0, r)
        return slices.map(_of_norm, view, slope, scale, threshold).reshape(a.shape), steps

    def residual(self, w: Tensor, g: Tensor) -> Tensor:
        """dist(-g, d psi(w)); see `Penalty.residual`."""
        slices, strength = self.partition(w), self.group_strength(w)
        return self._group_residual(slices.view(w), slices.view(g), strength, strength)

    def dead_groups(self, a: Tensor, step: float | Tensor) -> Tensor:
        """||a_g|| <= step * lambda_g, spread over the entries of g."""
        slices = self.partition(a)
        view = slices.view(a)
        dead = slices.norm(view) <= step * self.group_strength(a)
        return dead.expand_as(view).reshape(a.shape)

    def sparse_group_form(self, w: Tensor) -> SparseGroupForm:
        """Groups alone."""
        return SparseGroupForm(0.0, float(self.group_strength(w)), self.slices)


@dataclass(frozen=True)
class SparseGroupLasso(GroupPenalty):
    """psi(w) = strength * (l1_ratio ||w||_1 + (1 - l1_ratio) sum_g sqrt(size_g) ||w_g||_2).

    Args:
        strength: lambda >= 0.
        axis: as in `GroupLasso`.
        size_weighted: as in `GroupLasso`; without it the factor sqrt(size_g) is 1.
        block: as in `GroupLasso`.
        conv_groups: as in `GroupLasso`.
        l1_ratio: share of the entrywise penalty, in [0, 1]; keyword only.

    The minimizer under a diagonal metric, as without one, is that of `GroupLasso` after soft
    thresholding: an entry of the minimizer is zero iff soft thresholding makes it so, and has the
    sign of the input otherwise.

    Source: Simon et al., A sparse-group lasso (2013).
    """

    l1_ratio: float = field(default=0.5, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_ratio(self.l1_ratio)

    def _entry_strength(self, w: Tensor) -> float | Tensor:
        return self.strength * self.l1_ratio * self.partition(w).weight(w, by_size=False)

    @property
    def _groups(self) -> GroupLasso:
        strength = self.strength * (1 - self.l1_ratio)
        return GroupLasso(strength, self.axis, self.size_weighted, self.block, self.conv_groups)

    def live_entries(self, w: Tensor) -> Tensor | None:
        """The nonzero entries: the entrywise penalty has a kink at each zero of a live group."""
        return w != 0 if self.l1_ratio > 0 else super().live_entries(w)

    def reweighted(self, factor: float) -> GroupPenalty:
        """See `GroupPenalty.reweighted`; the entrywise penalty stays."""
        strength = self.strength * (self.l1_ratio + (1 - self.l1_ratio) * factor)
        return replace(self, strength=strength, l1_ratio=self.strength * self.l1_ratio / strength)

    def value(self, w: Tensor) -> Tensor:
        """psi(w)."""
        return weighted_sum(w.abs(), self._entry_strength(w)) + self._groups.value(w)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """The group prox of the soft-thresholded entries."""
        return self._groups.prox(soft_threshold(w, step * self._entry_strength(w)), step)

    def metric_prox(
        self, a: Tensor, d: float | Tensor, step: float | Tensor, start: Tensor | None = None
    ) -> tuple[Tensor, int]:
        """The group solution for the soft-thresholded numerator."""
        softened = soft_threshold(a, step * self._entry_strength(a))
        return self._groups.metric_prox(softened, d, step, start)

    def residual(self, w: Tensor, g: Tensor) -> Tensor:
        """dist(-g, d psi(w)): of a dead group, what soft thresholding leaves of g beyond lambda."""
        slices, groups, entries = self.partition(w), self._groups, self._entry_strength(w)
        dead = slices.norm(slices.view(w)) == 0
        # In a live group a zero entry has the free choice of [-l1, l1]; in a dead one all have.
        softened = soft_threshold(g, entries)
        tilted = torch.where(w == 0, softened, g + w.sign() * entries)
        chosen = torch.where(dead, slices.view(softened), slices.view(tilted))
        strength = groups.group_strength(w)
        return self._group_residual(slices.view(w), chosen, strength, strength)

    def dead_groups(self, a: Tensor, step: float | Tensor) -> Tensor:
        """Entries that are soft-thresholded to zero, or whose whole group is."""
        softened = soft_threshold(a, step * self._entry_strength(a))
        return (softened == 0) | self._groups.dead_groups(softened, step)

    def sparse_group_form(self, w: Tensor) -> SparseGroupForm:
        """Both."""
        strengths = self._entry_strength(w), self._groups.group_strength(w)
        return SparseGroupForm(float(strengths[0]), float(strengths[1]), self.slices)
