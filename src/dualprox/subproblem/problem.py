"""The one subproblem that ends every step of every method."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ..joint import Joint
from ..penalties import Penalty
from ..sharding import whole


@dataclass(frozen=True, eq=False)
class Subproblem:
    """min_z Q(z) = <v, z> + 1/2 <z - z0, D (z - z0)> + tau * psi(z), D diagonal and positive.

    Args:
        linear: v, any shape.
        center: z0, of v's shape.
        metric: D, the diagonal of v's shape, or a number for a multiple of the identity.
        threshold: tau >= 0.
        penalty: psi, or None for zero.

    Source: arXiv:2403.14398, eqs. (4) and (6).
    """

    linear: Tensor
    center: Tensor
    metric: float | Tensor
    threshold: float | Tensor
    penalty: Penalty | None

    def smooth_gradient(self, z: Tensor) -> Tensor:
        """V + D (z - z0)."""
        return self.linear + self.metric * (z - self.center)

    def objective(self, z: Tensor, value: Tensor | None = None) -> Tensor:
        """Q(z), a 0-dim tensor, where psi(z) is `value` if that is known."""
        away = z - self.center
        smooth = (self.linear * z).sum() + 0.5 * (self.metric * away.square()).sum()
        if self.penalty is None:
            return whole(smooth)
        value = self.penalty.value(z) if value is None else value
        return whole(smooth) + self.threshold * whole(value)

    def unpenalized(self) -> Tensor:
        """The minimizer for psi = 0: z0 - v / D."""
        return self.center - self.linear / self.metric

    def pull(self) -> Tensor:
        """A = D z0 - v, so that Q(z) = 1/2 <z, D z> - <a, z> + tau * psi(z) + const."""
        return self.metric * self.center - self.linear

    def diagonal(self, like: Tensor) -> Tensor:
        """D in the dtype and on the device of `like`, of its shape or 0-dim."""
        metric = self.metric
        if isinstance(metric, Joint):
            return cast(Tensor, metric)
        return torch.as_tensor(metric, dtype=like.dtype, device=like.device)

    def certificate(self, z: Tensor) -> Tensor:
        """dist(0, dQ(z)), a 0-dim tensor: 0 at a solution. Source: eq. (7)."""
        gradient = self.smooth_gradient(z)
        if self.penalty is None or self.threshold == 0:
            return whole(torch.linalg.vector_norm(gradient))
        return whole(self.threshold * self.penalty.residual(z, gradient / self.threshold))


@dataclass(frozen=True, eq=False)
class Solution:
    """What a solver returns.

    Args:
        point: the minimizer found, of the subproblem's shape, zeros exact.
        iterations: how many the solver took; 0 for a closed form.
        certificate: the norm of a subgradient of Q at `point`, 0-dim, where the solver has one
            for nothing; `Subproblem.certificate` computes one for any point.
    """

    point: Tensor
    iterations: int
    certificate: Tensor | None = None


@dataclass(frozen=True)
class Solver(ABC):
    """A way to solve the subproblem under a diagonal metric."""

    @abstractmethod
    def solve(self, problem: Subproblem, start: Tensor) -> Solution:
        """Solve `problem` with a penalty, starting from `start` (the iterate before the step)."""

    def check(self, penalty: Penalty) -> None:
        """Raise TypeError if the solver cannot handle `penalty`."""
        del penalty
