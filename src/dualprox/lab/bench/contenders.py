"""The optimizers that are compared: ours in every implementation, the published, torch's own."""

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import dualprox as dp

from .settings import proc_line
from .workloads import STRENGTH, Training, Workload

IMPLS = ("eager", "native", "triton")
# Each method's lr moves the weights of `Training` at about the same pace.
METHODS: dict[str, Callable[..., dp.ProximalOptimizer]] = {
    "RMDA": lambda groups, **options: dp.RMDA(groups, lr=0.1, **options),
    "RAMDA": lambda groups, **options: dp.RAMDA(groups, lr=1e-3, **options),
    "ProxSGD": lambda groups, **options: dp.ProxSGD(groups, lr=0.1, **options),
    "ProxAdamW": lambda groups, **options: dp.ProxAdamW(groups, lr=1e-3, **options),
}
BASELINE = "AdamW fused"
_AGE = 20

Params = list[torch.nn.Parameter]


@dataclass(frozen=True)
class Contender:
    """One way to take a step.

    Args:
        name: what tables call it.
        method: the algorithm.
        impl: how it is implemented: one of `IMPLS`, or "torch", "package", "as published".
        make: the optimizer of given param groups.
        buffers: floats of state per parameter, for the estimate of the memory needed.
    """

    name: str
    method: str
    impl: str
    make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
    buffers: int


class NotHereError(Exception):
    """This machine or version cannot run the contender, and why not."""


def _madgrad(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    if importlib.util.find_spec("madgrad") is None:
        raise NotHereError("the package madgrad is not installed")
    from madgrad import MADGRAD

    return MADGRAD(groups, lr=1e-3)


def _ours(method: str, impl: str, **options: Any) -> Callable[..., dp.ProximalOptimizer]:
    return lambda groups: METHODS[method](groups, impl=impl, **options)


BUFFERS = {"RMDA": 2, "RAMDA": 3, "ProxSGD": 1, "ProxAdamW": 2}


def contenders() -> list[Contender]:
    """All of them, the baseline first."""
    found = [
        Contender(BASELINE, "AdamW", "torch", lambda g: torch.optim.AdamW(g, fused=True), 2),
        Contender(
            "AdamW foreach", "AdamW", "torch", lambda g: torch.optim.AdamW(g, foreach=True), 2
        ),
        Contender("MADGRAD", "MADGRAD", "package", _madgrad, 3),
    ]
    for method, buffers in BUFFERS.items():
        for impl in IMPLS:
            name = f"{method} {impl}"
            found.append(Contender(name, method, impl, _ours(method, impl), buffers))
    for solver, name in (
        (dp.ProximalGradient(max_iter=100), "RAMDA published, PG(100)"),
        (dp.NewtonRaphson(), "RAMDA published, ProxSSI"),
    ):
        make = _ours("RAMDA", "eager", solver=solver)
        found.append(Contender(name, "RAMDA", "as published", make, 3))
    return found


def param_groups(
    workload: Workload, params: Params, penalties: Callable[[int], dp.Penalty] | None
) -> list[dict[str, Any]]:
    """A group for each axis that is penalized, and one for the free weights.

    Args:
        workload: whose weights the parameters are.
        params: one for each weight.
        penalties: the penalty for groups along a given axis; None penalizes nothing.
    """
    by_axis: dict[int | None, Params] = {}
    for weight, param in zip(workload.weights, params, strict=True):
        axis = None if penalties is None else weight.axis
        by_axis.setdefault(axis, []).append(param)
    groups: list[dict[str, Any]] = []
    for axis, members in by_axis.items():
        group: dict[str, Any] = {"params": members}
        if axis is not None and penalties is not None:
            group["penalty"] = penalties(axis)
        groups.append(group)
    return groups


def group_lasso(axis: int) -> dp.Penalty:
    """The penalty of the benchmarks."""
    return dp.GroupLasso(STRENGTH, axis=axis)


class Runner:
    """A contender on a workload: its parameters, its state, its place among the gradients.

    Args:
        contender: what steps.
        training: weights and gradients.

    Raises:
        NotHereError: the contender cannot run here; not for the eager definition and torch's own.
    """

    def __init__(self, contender: Contender, training: Training) -> None:
        self.params = training.parameters()
        self.training = training
        self.steps = 0
        ours = contender.method in METHODS
        penalties = group_lasso if ours else None
        groups = param_groups(training.workload, self.params, penalties)

        def start() -> torch.optim.Optimizer:
            opt = contender.make(groups)
            self.prepare()
            opt.step()
            return opt

        # What may be missing shows at the first step at the latest; eager torch never is.
        if contender.impl in ("eager", "as published"):
            self.opt = contender.make(groups)
        else:
            self.opt = attempt(start)
        if isinstance(self.opt, dp.ProximalOptimizer):
            grow_up(self.opt, training, self.params)

    def prepare(self) -> None:
        """Hand out the next gradients."""
        self.training.give(self.params, self.steps)
        self.steps += 1

    def dead_share(self) -> float:
        """Dead groups over all groups, after one more step, onto the structured point."""
        land(self.opt)
        self.prepare()
        self.opt.step()
        dead = total = 0
        for group in self.opt.param_groups:
            for param in group["params"] if group.get("penalty") is not None else ():
                structure = group["penalty"].structure(param.detach())
                dead += structure.total() - structure.count()
                total += structure.total()
        return dead / max(total, 1)


def land(opt: torch.optim.Optimizer) -> None:
    """Let the next steps put the iterate at the structured point."""
    if isinstance(opt, dp.DualAveraging):
        for group in opt.param_groups:
            group["momentum"] = 0.0


def grow_up(opt: dp.ProximalOptimizer, training: Training, params: Params) -> None:
    """Give the state the sums that it would have after `_AGE` steps: those, not the first, count.

    The iterate and the anchor are the starting weights.
    """
    sets = training.gradients
    lr = float(opt.param_groups[0]["lr"])
    scales = [lr * math.sqrt(step) for step in range(1, _AGE + 1)]
    for index, param in enumerate(params):
        param.data.copy_(training.start[index])
        state, gradients = opt.state[param], [gradients[index] for gradients in sets]
        state["step"].fill_(_AGE)
        if isinstance(opt, dp.DualAveraging):
            state["penalty_sum"].fill_(sum(scales))
            state["restart"].zero_()
            state["anchor"].copy_(training.start[index])
            parts = [sum(scales[k :: len(sets)]) for k in range(len(sets))]
        else:
            parts = [1 / len(sets)] * len(sets)
        for name, power in (
            ("grad_sum", 1),
            ("grad_sq_sum", 2),
            ("momentum_buffer", 1),
            ("exp_avg", 1),
            ("exp_avg_sq", 2),
        ):
            if name in state:
                state[name].zero_()
                for part, gradient in zip(parts, gradients, strict=True):
                    state[name].add_(gradient.pow(power), alpha=part)


def attempt(start: Callable[[], torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """What `start` returns; what it raises for want of an implementation, as NotHereError."""
    try:
        return start()
    except (RuntimeError, ValueError, ImportError, NotImplementedError) as error:
        raise NotHereError(reason_of(error)) from None


def reason_of(error: Exception) -> str:
    """The first line of an error, kept short."""
    first = str(error).strip().partition("\n")[0] or type(error).__name__
    return first if len(first) <= 120 else f"{first[:117]}..."


def bytes_needed(
    workload: Workload, chosen: list[Contender], device: torch.device, sets: int = 2
) -> int:
    """Parameters and state of the contenders made for a device, weights, gradients; float32."""
    away = "native" if device.type == "cuda" else "triton"
    copies = sum(1 + one.buffers for one in chosen if one.impl != away) + 1 + sets
    largest = max(weight.parameters for weight in workload.weights)
    # Eager steps hold up to about eight temporaries of one tensor.
    return 4 * (copies * workload.parameters + 8 * largest)


def bytes_free(device: torch.device) -> int | None:
    """Memory free on the device; None where it cannot be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = proc_line("meminfo", "MemAvailable")
    return None if available is None else int(available.split()[0]) * 1024
