"""The subproblem of a step, given to the solver that the penalty and the settings call for."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..joint import Joint
from ..penalties import Coupled, DiagonalPenalty, GroupPenalty
from ..penalties.coupled import taken_by
from ..subproblem import Exact, ProximalGradient, Solution, Solver, Subproblem
from .bundle import as_tensor, tensors_of


def solve(
    problem: Subproblem, start: Tensor, solver: Solver | None, certify: bool = False
) -> Solution:
    """Solve a subproblem: in closed form without penalty, else by `solver` or the best there is.

    None stands for `Exact` where the penalty offers it under the metric, `ProximalGradient` else.
    Where the penalty couples tensors, the problem's are bundles of them, and so is the point. Where
    it has groups, sharded tensors are solved in their parts, and the point is sharded alike.
    """
    problem = _within_range(problem)
    if isinstance(problem.penalty, Coupled | GroupPenalty):
        penalty = problem.penalty
        parts: dict[str, Any] = {
            name: taken_by(penalty, tensors_of(getattr(problem, name)))
            for name in ("linear", "center", "metric")
            if not isinstance(getattr(problem, name), int | float)
        }
        problem, start = replace(problem, **parts), taken_by(penalty, tensors_of(start))
    if problem.penalty is None:
        solution = Solution(problem.unpenalized(), 0)
    else:
        if isinstance(problem.metric, int | float):
            solver = Exact()
        elif solver is None:
            exact = isinstance(problem.penalty, DiagonalPenalty)
            solver = Exact() if exact else ProximalGradient()
        solution = solver.solve(problem, start)
    if certify and solution.certificate is None:
        solution = replace(solution, certificate=problem.certificate(solution.point))
    if isinstance(solution.point, Joint):
        solution = replace(solution, point=as_tensor(solution.point.tensors()))
    return solution


def _within_range(problem: Subproblem) -> Subproblem:
    """The problem with a strength whose products and squares are numbers of its dtype.

    A strength that has to be lowered for that removes all there is, before and after.
    """
    strength = None if problem.penalty is None else problem.penalty.own_strength()
    largest = torch.finfo(problem.linear.dtype).max
    if strength is None or problem.penalty is None or strength <= largest**0.25:
        return problem
    most = min(largest**0.5 * 2**-10, largest * 2**-20 / max(float(problem.threshold), 1.0))
    return replace(problem, penalty=problem.penalty.with_strength(min(strength, most)))
