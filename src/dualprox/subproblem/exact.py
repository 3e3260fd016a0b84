"""The exact solution, where the penalty knows it."""

from dataclasses import dataclass

from torch import Tensor

from ..penalties import DiagonalPenalty, Penalty
from .problem import Solution, Solver, Subproblem


@dataclass(frozen=True)
class Exact(Solver):
    """The penalty's own solution: a closed form, or a few Newton steps on one scalar per group.

    Minimizes Q to machine precision. Under a multiple of the identity any penalty has it (the
    prox); under a diagonal metric those of kind `DiagonalPenalty`.
    """

    def check(self, penalty: Penalty) -> None:
        """Raise TypeError for a penalty without an exact solution under a metric."""
        if not isinstance(penalty, DiagonalPenalty):
            raise TypeError(
                f"Exact() has no solution for {type(penalty).__name__} under a diagonal metric; "
                "use solver=ProximalGradient()"
            )

    def solve(self, problem: Subproblem, start: Tensor) -> Solution:
        """See `Solver.solve`; `start` only saves work."""
        penalty, metric, threshold = problem.penalty, problem.metric, problem.threshold
        assert penalty is not None
        if isinstance(metric, int | float):
            target = problem.unpenalized()
            return Solution(penalty.prox_with_value(target, threshold / metric, start)[0], 0)
        self.check(penalty)
        assert isinstance(penalty, DiagonalPenalty)
        point, iterations = penalty.metric_prox(problem.pull(), metric, threshold, start)
        return Solution(point, iterations)
