"""How many iterations and how much time does each solver need for a given certificate?

    dualprox bench subproblem

The subproblems are those of RAMDA with group LASSO after thirty steps, metric included. A
certificate is dist(0, dQ), here relative to that of the starting point, which is the iterate
before the step; it is computed in float64 for the point that the solver found in float32. For
each solver the loosest setting that reaches the target is timed.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import dualprox as dp

from ...timing import Case, clock_of, interleave
from .check import exact, subproblem_of, support_errors
from .contenders import METHODS, group_lasso, param_groups
from .settings import Settings
from .workloads import Training, Weight, Workload

QUESTION = "How many iterations and how much time does each solver need for a given certificate?"
PROBLEMS: dict[str, Weight] = {
    "linear_512x784": Weight("weight", (512, 784), 1),
    "linear_768x3072": Weight("weight", (768, 3072), 1),
    "conv_256x256x3x3": Weight("weight", (256, 256, 3, 3), 1),
}
MODELS = tuple(PROBLEMS)
TARGETS = (1e-2, 1e-4, 1e-6)
_STEPS = 30
_MOST_ITERATIONS = 2000


@dataclass(frozen=True)
class Problem:
    """A subproblem with what is known about it.

    Args:
        single: in float32, as a solver gets it.
        double: the same in float64.
        start: the iterate before the step.
        solution: of `double`.
        begun: certificate of `start`.
    """

    single: dp.Subproblem
    double: dp.Subproblem
    start: Tensor
    solution: Tensor
    begun: float

    def certificate(self, point: Tensor) -> float:
        """Relative to that of the start."""
        return float(self.double.certificate(point.double())) / self.begun

    def gap(self, point: Tensor) -> float:
        """(Q - min Q) / (Q(start) - min Q)."""
        least, first = self.double.objective(self.solution), self.double.objective(self.start)
        return float((self.double.objective(point.double()) - least) / (first - least))


def problem_of(weight: Weight, device: torch.device) -> Problem:
    """The subproblem of RAMDA's thirtieth step on a weight."""
    training = Training(Workload("", "", (weight,)), device, sets=8)
    params = training.parameters()
    opt = METHODS["RAMDA"](param_groups(training.workload, params, group_lasso), impl="eager")
    before = params[0].detach().clone()
    for step in range(_STEPS):
        training.give(params, step)
        before = params[0].detach().clone()
        opt.step()
    # Rounded to float32 first, so that both precisions state the same problem.
    found = subproblem_of(opt, params[0], before, opt.param_groups[0])
    single, double = (
        dp.Subproblem(
            found.linear.float().to(dtype),
            found.center.float().to(dtype),
            torch.as_tensor(found.metric).float().to(dtype),
            found.threshold,
            found.penalty,
        )
        for dtype in (torch.float32, torch.float64)
    )
    start = before.double()
    return Problem(single, double, before, exact(double, start), float(double.certificate(start)))


def attempts(problem: Problem, target: float) -> dict[str, list[dp.Solver]]:
    """For each solver its settings from loose to tight."""
    # In float32 the solver's own certificate falls a little short of the true one.
    absolute = [share * target * problem.begun for share in (1.0, 0.9, 0.5)]
    tolerances = [10.0**-digits for digits in range(1, 9)]
    return {
        "Exact": [dp.Exact()],
        "Newton-Raphson": [dp.NewtonRaphson(_MOST_ITERATIONS, tol) for tol in tolerances],
        "proximal gradient": [
            dp.ProximalGradient(_MOST_ITERATIONS, rtol=0.0, tol=tol) for tol in absolute
        ],
        "proximal gradient, as published": [dp.ProximalGradient(max_iter=100)],
    }


def run(settings: Settings) -> dict[str, Any]:
    """The result without its environment; see `results`."""
    rows: list[dict[str, Any]] = []
    for name in settings.models:
        with settings.progress(f"subproblem {name}") as tell:
            rows += list(_rows(name, settings, tell))
    return {"rows": rows}


def _rows(name: str, settings: Settings, tell: Callable[[str], object]) -> Iterator[dict[str, Any]]:
    weight = PROBLEMS[name]
    if settings.quick:
        weight = Workload("", "", (weight,)).shrunk().weights[0]
    problem = problem_of(weight, settings.device)
    solvers: dict[str, dp.Solver] = {}
    for target in TARGETS:
        for label, settings_of in attempts(problem, target).items():
            tell(f"{label}, {target:g}")
            solvers[f"{label}|{target:g}"] = _loosest(problem, settings_of, target)
    # The same solver often serves several targets: time it once.
    cases: dict[str, Case] = {}
    for solver in dict.fromkeys(solvers.values()):
        cases[repr(solver)] = _case(solver, problem)
    timings = interleave(cases, clock_of(settings.device), settings.budget, tell)
    for key, solver in solvers.items():
        label, _, target = key.partition("|")
        found = solver.solve(problem.single, problem.start)
        certificate = problem.certificate(found.point)
        yield {
            "workload": name,
            "shape": list(weight.shape),
            "solver": label,
            "setting": repr(solver),
            "target": float(target),
            "reached": certificate <= float(target),
            "certificate": certificate,
            "iterations": found.iterations,
            **asdict(timings[repr(solver)]),
            "objective_gap": problem.gap(found.point),
            "support_errors": support_errors(problem.double, found.point, problem.solution),
            "condition": _condition(problem.double.metric),
            "dead_share": float((problem.solution == 0).double().mean()),
        }


def _case(solver: dp.Solver, problem: Problem) -> Case:
    return Case(lambda: solver.solve(problem.single, problem.start))


def _loosest(problem: Problem, settings_of: list[dp.Solver], target: float) -> dp.Solver:
    """The first that reaches the target, or the last."""
    for solver in settings_of:
        if problem.certificate(solver.solve(problem.single, problem.start).point) <= target:
            return solver
    return settings_of[-1]


def _condition(metric: float | Tensor) -> float:
    """Max D / min D."""
    return float(metric.max() / metric.min()) if isinstance(metric, Tensor) else 1.0
