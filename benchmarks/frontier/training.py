"""The one training loop of the peers."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from .tasks import Loader, Recipe, Task


@dataclass
class Clock:
    """Seconds of the epochs that a method counts.

    Args:
        epochs: of each.
    """

    epochs: list[float] = field(default_factory=list)


def make_optimizer(
    recipe: Recipe, model: nn.Module, lr: float | None = None
) -> torch.optim.Optimizer:
    """The recipe's optimizer; weight decay spares biases, norms and positions."""
    weights = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": weights, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    rate = recipe.lr if lr is None else lr
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=rate)


def train(
    task: Task,
    model: nn.Module,
    loader: Loader,
    epochs: int,
    opt: torch.optim.Optimizer,
    clock: Clock,
    *,
    schedule_on: torch.optim.Optimizer | None = None,
    span: tuple[int, int] | None = None,
    before_step: Callable[[], object] = lambda: None,
    after_step: Callable[[int], object] = lambda step: None,
    after_epoch: Callable[[int], object] = lambda epoch: None,
) -> None:
    """Train under a cosine schedule from the optimizer's lr to 0.

    Args:
        task: whose loss is minimized.
        model: in place.
        loader: one epoch per iteration; goes on where it was.
        epochs: how many; 0 does nothing.
        opt: over the model's parameters.
        clock: gets the seconds of each epoch.
        schedule_on: has the lr, where `opt` wraps it; None for `opt`.
        span: epochs that the schedule has behind it, and how long it is; None for a whole one.
        before_step: called between the gradient and the step.
        after_step: called with the number of steps taken.
        after_epoch: called with the number of epochs done.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    behind, whole = (0, epochs) if span is None else span
    start_step, steps = behind * len(loader), whole * len(loader)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        schedule_on or opt,
        lambda step: 0.5 * (1 + math.cos(math.pi * min((start_step + step) / max(steps, 1), 1.0))),
    )
    model.train()
    step, last = 0, 0.0
    for epoch in range(1, epochs + 1):
        start = time.perf_counter()
        for inputs, targets in loader:
            opt.zero_grad()
            loss = task.loss(model(inputs), targets)
            loss.backward()
            before_step()
            opt.step()
            schedule.step()
            step += 1
            after_step(step)
            last = loss.detach()
        if not math.isfinite(float(last)):
            raise FloatingPointError(f"the loss is {float(last)} after epoch {epoch} of {epochs}")
        after_epoch(epoch)
        clock.epochs.append(time.perf_counter() - start)
