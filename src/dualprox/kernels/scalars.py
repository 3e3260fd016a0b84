"""The few numbers that a fused step needs of each tensor, worked out on the host."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Method = Literal["rmda", "ramda", "prox_sgd", "prox_adamw"]

ROW = 12  # the most numbers of a tensor; `device.steps` says which


def host_row(
    method: Method, counters: Sequence[float], settings: Mapping[str, Any], lr: float
) -> tuple[list[float], list[float]]:
    """The scalars that the kernels need for a step, and the counters after it.

    Args:
        method: the optimizer's.
        counters: before the step, in the order of the states' names.
        settings: as for `TritonGroup.step`.
        lr: > 0.

    Returns:
        The row of scalars, see `device.steps`, and the counters.

    Example:
        >>> host_row("prox_sgd", [0.0], {"momentum": 0.75, "maximize": False}, 0.5)
        ([1.0, 0.0, 0.5, 0.0, 1.0, 0.25, 2.0], [1.0])
    """
    sign = -1.0 if settings["maximize"] else 1.0
    if method in ("rmda", "ramda"):
        fresh = counters[2] != 0
        step = (0.0 if fresh else counters[0]) + 1
        beta = math.sqrt(step)
        scale = lr * beta  # s_t
        penalty_sum = (0.0 if fresh else counters[1]) + scale  # alpha_t
        after = [step, penalty_sum, 0.0]
        weight = 1 - settings["momentum"]  # c
        if settings["ramp"]:
            weight = min(weight * beta, 1.0)
        if method == "rmda":
            return [1.0, fresh, penalty_sum / beta, weight, sign * scale, beta], after
        eps = settings["eps"]
        return [1.0, fresh, penalty_sum, weight, sign * scale, scale, eps], [*after, eps]
    step = counters[0] + 1
    if method == "prox_sgd":
        metric = 1 / lr
        row = [1.0, 0.0, 1.0 / metric, 0.0, sign, 1 - settings["momentum"], metric]
        return row, [step]
    b1, b2 = settings["betas"]
    corrections = lr / (1 - b1**step), (1 - b2**step) ** 0.5
    decay = 1 - lr * settings["weight_decay"]
    averages = 1 - b1, b2, 1 - b2
    return [1.0, 0.0, lr, 0.0, sign, *averages, *corrections, settings["eps"], decay], [step]
