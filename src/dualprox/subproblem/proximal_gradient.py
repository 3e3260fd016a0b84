"""Proximal gradient iterations, for any penalty that has a prox."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import is_count, is_real, make_plain, require
from ..sharding import whole
from .problem import Solution, Solver, Subproblem


@dataclass(frozen=True)
class ProximalGradient(Solver):
    """Proximal gradient: Z <- prox_{theta tau psi}(Z - theta (v + D (Z - z0))).

    theta = 1 / max D, halved for a nonconvex penalty, so Q never increases. Groups that must be
    zero at the solution are zero in the starting point already.

    Args:
        max_iter: most iterations, >= 1.
        rtol: stop when (Q(Z_old) - Q(Z)) / (|Q(Z)| + 1) < rtol, after `min_iter` iterations;
            0 never stops so.
        min_iter: fewest iterations before `rtol` may stop, >= 1. With one iteration alone a
            step of ProxAdamW would forget its metric.
        tol: stop when the subgradient s = (D - I / theta)(Z - Z_old) of Q at Z has
            ||s|| <= tol; None never stops so.

    Asking for Q costs one synchronisation of the device per iteration.

    Source: arXiv:2403.14398, Algorithm 2, eq. (7) and section 6.
    """

    max_iter: int = 100
    rtol: float = 1e-8
    min_iter: int = 2
    tol: float | None = None

    def __post_init__(self) -> None:
        make_plain(self)
        require(is_count(self.max_iter), "max_iter", "an int >= 1", self.max_iter)
        require(is_count(self.min_iter), "min_iter", "an int >= 1", self.min_iter)
        require(is_real(self.rtol) and self.rtol >= 0, "rtol", "a finite number >= 0", self.rtol)
        if self.tol is not None:
            ok = is_real(self.tol) and self.tol >= 0
            require(ok, "tol", "None or a finite number >= 0", self.tol)

    def solve(self, problem: Subproblem, start: Tensor) -> Solution:
        """See `Solver.solve`; beyond rounding, never returns a Q above that of `start`."""
        penalty = problem.penalty
        assert penalty is not None
        if start.numel() == 0:
            return Solution(start.clone(), 0, start.new_tensor(0.0))
        metric = problem.diagonal(start)
        theta = 1 / whole(metric.max())
        if not penalty.is_convex:
            theta = theta / 2
        dead = penalty.dead_groups(problem.pull(), problem.threshold)
        z = start if dead is None else torch.where(dead, 0, start)
        start_cost = problem.objective(start)
        # A rise within rounding must not give up the structure that z has and start has not.
        ceiling = start_cost + 64 * torch.finfo(start.dtype).eps * (start_cost.abs() + 1)
        cost = start_cost if dead is None else problem.objective(z)
        iterations, certificate = 0, start.new_tensor(0.0)
        for iterations in range(1, self.max_iter + 1):
            target = z - theta * problem.smooth_gradient(z)
            ahead, value = penalty.prox_with_value(target, theta * problem.threshold, z)
            moved = ahead - z
            certificate = whole(torch.linalg.vector_norm(metric * moved - moved / theta))
            ahead_cost = problem.objective(ahead, value)
            gain = (cost - ahead_cost) / (ahead_cost.abs() + 1)
            z, cost = ahead, ahead_cost
            if self.tol is not None and bool((certificate <= self.tol) & (cost <= ceiling)):
                break
            if self.rtol > 0 and iterations >= self.min_iter and bool(gain < self.rtol):
                break
        if bool(cost > ceiling):  # only a prox that is none gets here
            return Solution(start.clone(), iterations, problem.certificate(start))
        return Solution(z, iterations, certificate)
