"""Penalties on the singular values of a weight flattened to (out, rest)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import is_count, require
from ..sharding import sharded_like, whole
from .base import Penalty, Rank, require_strength
from .singular_values import shrink_singular_values


def rounding_level(matrix: Tensor, dtype: torch.dtype) -> float:
    """The largest singular value that rounding alone leaves in a (rows, columns) matrix.

        (eps(dtype) (1/sqrt(rows) + 1/sqrt(columns)) + eps(wide) + max(shape) eps(float64)) ||W||_F

    The parts are what rounding every entry to the dtype leaves, as in a random matrix; what
    multiplying the factors out in float32 or wider leaves; and what the decomposition itself, in
    float64, is good for. sigma_1 max(shape) eps(dtype), numpy's rule, is far above them in float32
    and narrower types: it discards singular values that training kept.
    """
    wide = torch.promote_types(dtype, torch.float32)
    stored = torch.finfo(dtype).eps * sum(1 / math.sqrt(side) for side in matrix.shape)
    computed = torch.finfo(wide).eps + max(matrix.shape) * torch.finfo(torch.float64).eps
    return (stored + computed) * float(torch.linalg.matrix_norm(matrix))


def numerical_rank(w: Tensor) -> int:
    """Singular values of w.flatten(1) above `rounding_level`; synchronises.

    The prox makes singular values exactly zero, but a matrix multiplied out from its factors
    keeps them only up to rounding: rank is the one structure that cannot be read with `== 0`.
    """
    matrix = whole(w).flatten(1).double()
    if matrix.numel() == 0:
        return 0
    return int((torch.linalg.svdvals(matrix) > rounding_level(matrix, w.dtype)).sum())


def normal_part(g: Tensor, u: Tensor, vh: Tensor) -> Tensor:
    """(I - U U') G (I - V V'): what of G is normal to the fixed-rank manifold at U S V'."""
    g = g - u @ (u.mT @ g)
    return g - (g @ vh.mT) @ vh


@dataclass(frozen=True)
class SpectralPenalty(Penalty):
    """A penalty on the singular values of w.flatten(1); sharded tensors are gathered for them."""

    def check(self, shape: torch.Size | tuple[int, ...]) -> None:
        """Raise ValueError unless the parameter has at least two axes."""
        if len(shape) < 2:
            raise ValueError(
                f"{type(self).__name__}: the parameter must have >= 2 axes, got shape "
                f"{tuple(shape)}"
            )

    def structure(self, w: Tensor) -> Rank:
        """The numerical rank; synchronises."""
        return Rank(numerical_rank(w), min(w.flatten(1).shape))

    def live_entries(self, w: Tensor) -> Tensor | None:
        """None: matrices of one rank are no subspace."""
        return None

    @staticmethod
    def _factors(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The singular vectors and values above rounding; synchronises."""
        u, s, vh = torch.linalg.svd(whole(w).flatten(1).double(), full_matrices=False)
        rank = numerical_rank(w)
        return u[:, :rank].to(w.dtype), s[:rank].to(w.dtype), vh[:rank].to(w.dtype)


@dataclass(frozen=True)
class NuclearNorm(SpectralPenalty):
    """psi(w) = strength * sum of the singular values of w flattened to (out, rest): low rank.

    Args:
        strength: lambda >= 0.

    Source: Cai, Candes & Shen, A singular value thresholding algorithm (2010), Theorem 2.1.

    Example:
        >>> import torch
        >>> NuclearNorm(1.0).prox(torch.diag(torch.tensor([3.0, 0.5])), step=1.0)
        tensor([[2., 0.], [0., 0.]])
    """

    strength: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require_strength(self.strength)

    def value(self, w: Tensor) -> Tensor:
        """Strength * sum of singular values."""
        return self.strength * torch.linalg.svdvals(whole(w).flatten(1)).sum()

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Singular values soft-thresholded at step * strength; synchronises."""
        return self.prox_with_value(w, step)[0]

    def prox_with_value(
        self, w: Tensor, step: float | Tensor, start: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The prox and psi of it from the singular values above the threshold; synchronises.

        Large float32 weights are solved to 1e-5, the faster the nearer `start` is; see
        `dualprox.penalties.singular_values`.
        """
        guess = None if start is None else whole(start).flatten(1).to(w.dtype)
        z, s = shrink_singular_values(whole(w).flatten(1), float(step * self.strength), guess)
        return sharded_like(z.reshape(w.shape), w), self.strength * s.sum()

    def residual(self, w: Tensor, g: Tensor) -> Tensor:
        """dist(-g, d psi(w)) with d psi(UsV') = lambda * {UV' + N : N normal, ||N||_2 <= 1}."""
        u, _, vh = self._factors(w)
        g = whole(g).flatten(1)
        normal = normal_part(g, u, vh)
        excess = (torch.linalg.svdvals(normal) - self.strength).clamp_min(0)
        tangent = torch.linalg.vector_norm(g - normal + self.strength * (u @ vh))
        return torch.hypot(tangent, torch.linalg.vector_norm(excess))


@dataclass(frozen=True)
class RankAtMost(SpectralPenalty):
    """The constraint rank(w) <= rank, for w flattened to (out, rest); nonconvex.

    Args:
        rank: the largest rank allowed, >= 0.

    Source: Eckart & Young, The approximation of one matrix by another of lower rank (1936).
    """

    is_convex = False
    is_constraint = True
    rank: int

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = is_count(self.rank) or (type(self.rank) is int and self.rank == 0)
        require(ok, "rank", "an int >= 0", self.rank)

    def value(self, w: Tensor) -> Tensor:
        """0, or infinity above the rank; synchronises."""
        return whole(w).new_tensor(0.0 if numerical_rank(w) <= self.rank else torch.inf)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """The nearest matrix of that rank; any one where singular values tie."""
        del step
        matrix = whole(w).flatten(1)
        if min(matrix.shape) <= self.rank:
            return w.clone()
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        kept = slice(self.rank)
        return sharded_like(((u[:, kept] * s[kept]) @ vh[kept]).reshape(w.shape), w)

    def prox_with_value(
        self, w: Tensor, step: float | Tensor, start: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The nearest matrix of that rank, and 0: no decomposition is needed to know that."""
        del start
        return self.prox(w, step), whole(w).new_zeros(())

    def residual(self, w: Tensor, g: Tensor) -> Tensor:
        """The part of g along the fixed-rank manifold; all of g below the rank allowed."""
        u, s, vh = self._factors(w)
        g = whole(g).flatten(1)
        if s.numel() > self.rank:
            return g.new_tensor(torch.inf)
        if s.numel() == self.rank:
            g = g - normal_part(g, u, vh)
        return torch.linalg.vector_norm(g)
