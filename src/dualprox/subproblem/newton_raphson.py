"""ProxSSI's solver, kept for comparison."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import is_count, is_real, make_plain, require
from ..penalties import Coupled, GroupLasso, Penalty
from ..sharding import whole
from .problem import Solution, Solver, Subproblem


@dataclass(frozen=True)
class NewtonRaphson(Solver):
    """Newton-Raphson on sum_i a_i^2 / (d_i r + t)^2 - 1 = 0 per group; `GroupLasso` only.

    `Exact` solves the same equation in a form that Newton's method likes better: this left side
    is steep near zero and flat far out, so it takes many more steps.

    Args:
        max_iter: most Newton steps, >= 1.
        tol: stop when no r moves by more than tol * (1 + r).

    Source: Deleu & Bengio (2021), arXiv:2102.03869, section 3.
    """

    max_iter: int = 100
    tol: float = 1e-7

    def __post_init__(self) -> None:
        make_plain(self)
        require(is_count(self.max_iter), "max_iter", "an int >= 1", self.max_iter)
        require(is_real(self.tol) and self.tol >= 0, "tol", "a finite number >= 0", self.tol)

    def check(self, penalty: Penalty) -> None:
        """Raise TypeError for any penalty but `GroupLasso`, coupled or not."""
        penalty = _uncoupled(penalty)
        if not isinstance(penalty, GroupLasso):
            raise TypeError(
                f"NewtonRaphson() solves GroupLasso alone, got {type(penalty).__name__}"
            )

    def solve(self, problem: Subproblem, start: Tensor) -> Solution:
        """See `Solver.solve`; the start of the Newton steps is a lower bound, not `start`."""
        assert problem.penalty is not None
        self.check(problem.penalty)
        penalty = _uncoupled(problem.penalty)
        assert isinstance(penalty, GroupLasso)
        slices = penalty.partition(start)
        a = slices.view(problem.pull())
        d = slices.view(problem.diagonal(start).expand_as(start))
        threshold = problem.threshold * penalty.group_strength(start)
        norm = slices.norm(a)
        dead = norm <= threshold
        r = ((norm - threshold) / slices.amax(d)).clamp_min(0)
        steps = 0
        while steps < self.max_iter:
            steps += 1
            denominator = d * r + threshold
            share = (a / denominator).square()
            step = (slices.sum(share) - 1) / (2 * slices.sum(d * share / denominator))
            r = r + torch.where(dead, 0, step)
            if bool(whole((dead | ~(step.abs() > self.tol * (1 + r))).all())):
                break
        r = torch.where(dead, 0, r)
        point = a * r / torch.where(r == 0, 1, d * r + threshold)
        return Solution(point.reshape(start.shape), steps)


def _uncoupled(penalty: Penalty) -> Penalty:
    """A coupled penalty's own penalty, whose formulas hold for the coupled groups."""
    return penalty.penalty if isinstance(penalty, Coupled) else penalty
