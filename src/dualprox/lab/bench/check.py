"""Does every implementation compute what the eager definition computes?

For each method, implementation, penalty and shape: a few steps that average, then one that puts
the iterate at the structured point. Iterates and state must agree within a tolerance, and the
supports of the structured points exactly, ties apart.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import dualprox as dp

from .contenders import IMPLS, METHODS, NotHereError, attempt, land, param_groups
from .workloads import STRENGTH, Training, Workload

# Relative to the largest entry of a tensor, and to its 2-norm.
LARGEST_TOLERANCE, NORM_TOLERANCE = 1e-4, 1e-5
# Groups this close, relatively, to living or dying may go either way.
TIE = 1e-4
_STEPS = 4

PENALTIES: dict[str, Callable[[int], dp.Penalty] | None] = {
    "none": None,
    "L1": lambda axis: dp.L1(STRENGTH),
    "ElasticNet": lambda axis: dp.ElasticNet(STRENGTH),
    "GroupLasso": lambda axis: dp.GroupLasso(STRENGTH, axis=axis),
    "GroupLasso, other axis": lambda axis: dp.GroupLasso(STRENGTH, axis=1 - axis),
    "GroupLasso, unweighted": lambda axis: dp.GroupLasso(
        10 * STRENGTH, axis=axis, size_weighted=False
    ),
    "SparseGroupLasso": lambda axis: dp.SparseGroupLasso(STRENGTH, axis=axis),
}


@dataclass(frozen=True)
class Check:
    """One implementation against the eager definition, on all shapes of a workload.

    Args:
        workload: its name.
        method: its name.
        penalty: its name.
        impl: its name.
        status: "ok", "wrong" or "not here".
        detail: what is wrong, or why it is not here.
        largest_difference: of an entry, relative to the largest in its tensor; the worst tensor's.
        norm_difference: of a tensor in the 2-norm, relative; the worst tensor's.
        support_errors: entries or groups dead in one and live in the other, ties apart.
    """

    workload: str
    method: str
    penalty: str
    impl: str
    status: str
    detail: str = ""
    largest_difference: float | None = None
    norm_difference: float | None = None
    support_errors: int | None = None


@dataclass(frozen=True)
class Quality:
    """What a step reached, over all penalized tensors; the last subproblem is solved in float64.

    Args:
        support_errors: groups dead or live against the exact solution, ties apart.
        objective_gap: (Q - min Q) / (Q at the iterate before - min Q), the worst tensor's.
        certificate: dist(0, dQ) relative to that of the iterate before, the worst tensor's.
        iterations: of the subproblem solver, the most of any tensor; None if it does not say.
    """

    support_errors: int
    objective_gap: float
    certificate: float
    iterations: int | None


def subproblem_of(
    opt: torch.optim.Optimizer, param: Tensor, before: Tensor, group: dict[str, Any]
) -> dp.Subproblem:
    """The subproblem of the step that `opt` has just taken, in float64, from its state.

    Args:
        opt: one of `METHODS`.
        param: one of its parameters.
        before: the parameter before the step.
        group: its group.
    """
    state = opt.state[param]
    step, penalty = float(state["step"]), group["penalty"]
    if isinstance(opt, dp.DualAveraging):
        metric: float | Tensor = step**0.5
        if isinstance(opt, dp.RAMDA):
            metric = state["grad_sq_sum"].double().pow(1 / 3) + group["eps"]
        linear, center = state["grad_sum"].double(), state["anchor"].double()
        return dp.Subproblem(linear, center, metric, float(state["penalty_sum"]), penalty)
    lr = float(group["lr"])
    if isinstance(opt, dp.ProxSGD):
        linear = state["momentum_buffer"].double()
        return dp.Subproblem(linear, before.double(), 1 / lr, 1.0, penalty)
    beta1, beta2 = group["betas"]
    linear = state["exp_avg"].double() * (lr / (1 - beta1**step))
    metric = (state["exp_avg_sq"].double() / (1 - beta2**step)).sqrt() + group["eps"]
    center = before.double() * (1 - lr * group["weight_decay"])
    return dp.Subproblem(linear, center, metric, lr, penalty)


def exact(problem: dp.Subproblem, start: Tensor) -> Tensor:
    """The minimizer, by `Exact`."""
    return dp.Exact().solve(problem, start).point


def support_errors(problem: dp.Subproblem, ours: Tensor, theirs: Tensor) -> int:
    """Entries or groups dead in one point and live in the other, ties apart.

    A tie is a group whose fate changes when the penalty does by a factor within 1 +- `TIE`.
    """
    penalty = problem.penalty
    assert penalty is not None
    differ = live(penalty, ours) != live(penalty, theirs)
    if not bool(differ.any()):
        return 0
    fates = []
    for factor in (1 - TIE, 1 + TIE):
        moved = dp.Subproblem(
            problem.linear,
            problem.center,
            problem.metric,
            problem.threshold * factor,
            penalty,
        )
        fates.append(live(penalty, exact(moved, ours.double())))
    return int((differ & (fates[0] == fates[1])).sum())


def live(penalty: dp.Penalty, point: Tensor) -> Tensor:
    """The mask of live groups, and of live entries after it where the penalty kills both."""
    structure = penalty.structure(point)
    assert isinstance(structure, dp.Support)
    if isinstance(penalty, dp.SparseGroupLasso):
        return torch.cat([structure.live, (point != 0).flatten()])
    return structure.live


def quality(
    make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer], training: Training
) -> Quality:
    """Take two steps of a group-LASSO method and say what the second one reached."""
    params = training.parameters()
    penalized = PENALTIES["GroupLasso"]
    opt = make(param_groups(training.workload, params, penalized))
    before = _steps(opt, params, training, 2)
    gaps, certificates, errors = [0.0], [0.0], 0
    for group in opt.param_groups:
        for param in group["params"] if group["penalty"] is not None else ():
            start, point = before[param].double(), param.detach().double()
            problem = subproblem_of(opt, param, before[param], group)
            best = exact(problem, start)
            least, first = problem.objective(best), problem.objective(start)
            reached = problem.objective(point) - least
            gaps.append(float(reached / (first - least)) if first > least else float(reached))
            begun = float(problem.certificate(start))
            certificates.append(float(problem.certificate(point)) / (begun or 1.0))
            errors += support_errors(problem, point, best)
    reports = opt.solver_report() if isinstance(opt, dp.ProximalOptimizer) else []
    taken = max((report.iterations for report in reports), default=None)
    return Quality(errors, max(gaps), max(certificates), taken)


def _steps(
    opt: torch.optim.Optimizer, params: list[torch.nn.Parameter], training: Training, count: int
) -> dict[Tensor, Tensor]:
    """Take steps, the last one onto the structured point; returns the iterates before it."""
    for step in range(count - 1):
        training.give(params, step)
        opt.step()
    before: dict[Tensor, Tensor] = {param: param.detach().clone() for param in params}
    land(opt)
    training.give(params, count - 1)
    opt.step()
    return before


def check(
    workload: Workload, device: torch.device, progress: Callable[[str], object] = lambda name: None
) -> Iterator[Check]:
    """Compare every implementation but the eager one, penalty by penalty, on distinct shapes."""
    training = Training(workload.distinct(), device)
    for method, make in METHODS.items():
        for penalty in PENALTIES if workload.groups else ("none",):
            progress(f"{method}, {penalty}")
            yield from _compare(training, method, make, penalty)


def _compare(
    training: Training, method: str, make: Callable[..., dp.ProximalOptimizer], penalty: str
) -> Iterator[Check]:
    """The implementations of one method and penalty."""
    workload, penalties = training.workload, PENALTIES[penalty]
    reference = training.parameters()
    defined: torch.optim.Optimizer | None = None
    iterates: dict[str, dict[Tensor, Tensor]] = {}
    for impl in IMPLS[1:]:
        params = training.parameters()

        def start(params: list[torch.nn.Parameter] = params, impl: str = impl) -> Any:
            opt = make(param_groups(workload, params, penalties), impl=impl)
            iterates[impl] = _steps(opt, params, training, _STEPS)
            return opt

        try:
            opt = attempt(start)
        except NotHereError as reason:
            yield Check(workload.name, method, penalty, impl, "not here", str(reason))
            continue
        if defined is None:
            defined = make(param_groups(workload, reference, penalties), impl="eager")
            iterates["eager"] = _steps(defined, reference, training, _STEPS)
        pairs = list(zip(params, reference, strict=True))
        averaged = [(iterates[impl][ours], iterates["eager"][theirs]) for ours, theirs in pairs]
        largest, norm, errors = _differences(opt, defined, pairs, averaged)
        bad = errors or not (largest <= LARGEST_TOLERANCE and norm <= NORM_TOLERANCE)
        detail = f"{errors} support errors, differences {largest:.1e}, {norm:.1e}" if bad else ""
        status = "wrong" if bad else "ok"
        found = (largest, norm, errors)
        yield Check(workload.name, method, penalty, impl, status, detail, *found)


def _differences(
    opt: torch.optim.Optimizer,
    defined: torch.optim.Optimizer,
    params: list[tuple[torch.nn.Parameter, torch.nn.Parameter]],
    averaged: list[tuple[Tensor, Tensor]],
) -> tuple[float, float, int]:
    """Worst differences of iterates and state, and support errors."""
    largest = norm = 0.0
    errors = 0
    groups = {param: group for group in defined.param_groups for param in group["params"]}
    for (ours, theirs), (_, before) in zip(params, averaged, strict=True):
        if groups[theirs]["penalty"] is not None:
            problem = subproblem_of(defined, theirs, before, groups[theirs])
            errors += support_errors(problem, ours.detach(), theirs.detach())
    pairs = averaged + [(ours.detach(), theirs.detach()) for ours, theirs in params]
    for ours, theirs in params:
        for key, value in defined.state[theirs].items():
            pairs.append((opt.state[ours][key], value))
    for mine, right in pairs:
        right = right.double()
        away = mine.double() - right
        largest = _worse(largest, away.abs().max(), right.abs().max())
        norm = _worse(norm, away.norm(), right.norm())
    return largest, norm, errors


def _worse(worst: float, difference: Tensor, scale: Tensor) -> float:
    """The larger of `worst` and difference / scale; infinite where that is NaN or x / 0."""
    if difference == 0:
        return worst
    ratio = float(difference / scale)
    return max(worst, ratio) if ratio == ratio else float("inf")


def passed(checks: list[dict[str, Any]]) -> bool:
    """Whether no check found anything wrong."""
    return all(row["status"] != "wrong" for row in checks)


def to_rows(checks: Iterator[Check]) -> list[dict[str, Any]]:
    """The checks for JSON."""
    return [asdict(found) for found in checks]
