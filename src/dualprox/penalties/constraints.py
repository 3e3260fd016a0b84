"""Constraint sets as indicator functions: 0 inside, infinite outside, the prox projects."""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import is_count, is_real, require
from ..sharding import sharded_like, whole
from .base import DiagonalPenalty, Faces, Penalty, SeparablePenalty


@dataclass(frozen=True)
class Interval(SeparablePenalty):
    """lower <= w_i <= upper for every entry."""

    is_constraint = True

    @property
    @abstractmethod
    def _bounds(self) -> tuple[float, float]:
        """Lower and upper."""

    def value(self, w: Tensor) -> Tensor:
        """0 inside, infinity outside, NaN for NaN."""
        lower, upper = self._bounds
        outside = torch.where((w < lower) | (w > upper), torch.inf, 0.0)
        return torch.where(w.isnan(), w, outside).sum().to(w.dtype)

    def entry_prox(self, a: Tensor, d: float | Tensor, step: float | Tensor) -> Tensor:
        """A / d, moved to the nearer bound."""
        del step
        return (a / d).clamp(*self._bounds)

    def structure(self, w: Tensor) -> Faces:
        """Which entries sit at which bound."""
        lower, upper = self._bounds
        side = (w >= upper).to(torch.int8) - (w <= lower).to(torch.int8)
        return Faces(side.flatten())

    def residual(self, w: Tensor, g: Tensor) -> Tensor:
        """dist(-g, normal cone); infinite outside."""
        lower, upper = self._bounds
        g = torch.where(w <= lower, g.clamp_max(0), g)
        g = torch.where(w >= upper, g.clamp_min(0), g)
        outside = (w < lower) | (w > upper)
        return torch.linalg.vector_norm(torch.where(outside, torch.inf, g))


@dataclass(frozen=True)
class Box(Interval):
    """The constraint lower <= w_i <= upper.

    Args:
        lower: any number, or -inf.
        upper: any number > lower, or inf.
    """

    lower: float
    upper: float

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lower", "upper"):
            bound = getattr(self, name)
            finite = is_real(bound) or (isinstance(bound, float) and math.isinf(bound))
            require(finite, name, "a number or an infinity", bound)
        require(self.lower < self.upper, "lower", f"< upper = {self.upper}", self.lower)

    @property
    def _bounds(self) -> tuple[float, float]:
        return self.lower, self.upper


@dataclass(frozen=True)
class NonNegative(Interval):
    """The constraint w_i >= 0."""

    @property
    def _bounds(self) -> tuple[float, float]:
        return 0.0, math.inf


@dataclass(frozen=True)
class L2Ball(Penalty):
    """The constraint ||w||_2 <= radius, for the whole tensor.

    A point is taken to be on the sphere when its norm equals the radius up to rounding.

    Args:
        radius: > 0.
    """

    is_constraint = True
    radius: float

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = is_real(self.radius) and self.radius > 0
        require(ok, "radius", "a finite number > 0", self.radius)

    def _norm_and_rounding(self, w: Tensor) -> tuple[Tensor, float]:
        rounding = 16 * torch.finfo(w.dtype).eps * self.radius
        return torch.linalg.vector_norm(w), rounding

    def value(self, w: Tensor) -> Tensor:
        """0 inside, infinity outside."""
        norm, rounding = self._norm_and_rounding(w)
        return torch.where(norm > self.radius + rounding, torch.inf, norm * 0)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """W scaled back to the ball."""
        del step
        norm = torch.linalg.vector_norm(w)
        return w * torch.where(norm <= self.radius, 1.0, self.radius / norm)

    def structure(self, w: Tensor) -> Faces:
        """One coordinate: 1 on the sphere, 0 inside."""
        norm, rounding = self._norm_and_rounding(w)
        return Faces((norm >= self.radius - rounding).to(torch.int8).view(1))

    def residual(self, w: Tensor, g: Tensor) -> Tensor:
        """dist(-g, normal cone); infinite outside."""
        norm, rounding = self._norm_and_rounding(w)
        outward = (-(g * w).sum()).clamp_min(0) / norm.square()
        on_sphere = torch.linalg.vector_norm(g + outward * w)
        inside = torch.linalg.vector_norm(g)
        found = torch.where(norm < self.radius - rounding, inside, on_sphere)
        return torch.where(norm > self.radius + rounding, torch.inf, found)


@dataclass(frozen=True)
class Cardinality(DiagonalPenalty):
    """The constraint that at most k entries of the whole tensor are nonzero; nonconvex.

    Args:
        k: >= 1.
    """

    is_convex = False
    is_constraint = True
    k: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(is_count(self.k), "k", "an int >= 1", self.k)

    def value(self, w: Tensor) -> Tensor:
        """0, or infinity with more than k nonzeros; NaN for NaN."""
        outside = torch.where((w != 0).sum() > self.k, torch.inf, 0.0)
        return torch.where(w.isnan().any(), torch.nan, outside).to(w.dtype)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """The k entries of largest magnitude; any of them where magnitudes tie."""
        return self.metric_prox(w, 1.0, step)[0]

    def metric_prox(
        self, a: Tensor, d: float | Tensor, step: float | Tensor, start: Tensor | None = None
    ) -> tuple[Tensor, int]:
        """A / d on the k entries with the largest a^2 / d, zero elsewhere."""
        del step, start
        free = a / d
        if self.k >= a.numel():
            return free, 0
        # a^2 / d as |a| * |a / d|, which neither over- nor underflows before its time.
        gain = whole(a.abs() * free.abs()).flatten()
        kept = torch.zeros_like(gain, dtype=torch.bool)
        kept[gain.topk(self.k, sorted=False).indices] = True
        # NaN ranks first in topk, so it is kept and shows.
        return torch.where(sharded_like(kept.reshape(a.shape), free), free, 0), 0

    def residual(self, w: Tensor, g: Tensor) -> Tensor:
        """The part of g on the support; all of g while there is room for more nonzeros."""
        nonzeros = (w != 0).sum()
        on_support = torch.where(w == 0, 0, g)
        found = torch.linalg.vector_norm(torch.where(nonzeros < self.k, g, on_support))
        return torch.where(nonzeros > self.k, torch.inf, found)
