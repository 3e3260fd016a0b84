"""Which optimizer a run steps with, over which groups of parameters, at which rates."""

import math
from functools import partial
from typing import Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR
from torch.optim.optimizer import ParamsT

import dualprox as dp

from . import specs
from .networks import SPECIAL, example_input
from .rigl import make_rigl
from .settings import Run


def make_groups(run: Run, model: nn.Module) -> ParamsT:
    """The model's parameters, grouped by penalty; by name alone for a run without one."""
    if run.penalty is None:
        return model.named_parameters()
    example = None
    if run.coupled:
        example = example_input(run).to(next(model.parameters()).device)
    kind = type(run.model)
    free = SPECIAL[kind].free if kind in SPECIAL else ()
    return dp.param_groups(
        model, run.penalty, exclude=free, coupled=run.coupled, example_input=example
    )


def make_optimizer(run: Run, model: nn.Module, steps: int = 1) -> torch.optim.Optimizer:
    """The optimizer of the run over the model's parameters, penalized as the run says.

    Args:
        run: whose.
        model: RigL sets its dead weights to zero at once.
        steps: of the whole run; RigL alone has to know when training ends.
    """
    if isinstance(run.optimizer, specs.RiglSpec):
        return make_rigl(run.optimizer, model, steps, run.seed)
    kinds = {
        specs.RamdaSpec: dp.RAMDA,
        specs.RmdaSpec: dp.RMDA,
        specs.ProxSgdSpec: dp.ProxSGD,
        specs.ProxAdamwSpec: dp.ProxAdamW,
        specs.AdamwSpec: torch.optim.AdamW,
        specs.AdamSpec: torch.optim.Adam,
        specs.SgdSpec: torch.optim.SGD,
    }
    # Not asdict: it would take a solver apart, too.
    return kinds[type(run.optimizer)](make_groups(run, model), **vars(run.optimizer))


def make_schedule(run: Run, opt: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """The schedule of the run: stepped every epoch if multistep, else after every step.

    Args:
        run: the run.
        opt: its optimizer.
        steps: of the whole run.
    """
    if run.schedule != "multistep":
        return LambdaLR(opt, partial(falling, run.schedule, run.warmup, steps))
    if isinstance(opt, dp.ProximalOptimizer):
        return dp.StageSchedule(opt, run.milestones, run.gamma, refit=run.refit)
    return MultiStepLR(opt, list(run.milestones), run.gamma)


def falling(schedule: Literal["cosine", "linear"], warmup: int, steps: int, taken: int) -> float:
    """The factor on lr after some steps: rising along a line, then falling to 0.

    Args:
        schedule: falls along half a cosine, or a line.
        warmup: steps of the rise; the last of them has the factor 1.
        steps: after which the factor is 0.
        taken: steps before this one.

    Example:
        >>> [falling("linear", 2, 6, taken) for taken in range(7)]
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if taken < warmup:
        return (taken + 1) / warmup
    gone = min(1.0, (taken - warmup) / max(1, steps - warmup))
    return 1 - gone if schedule == "linear" else (1 + math.cos(math.pi * gone)) / 2
