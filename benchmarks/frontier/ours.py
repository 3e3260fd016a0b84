"""dualprox: train into a structure, reach the size asked for, shrink, refit."""

from functools import partial
from typing import Any

import dualprox as dp

from .methods import Method, Outcome, Setting
from .tasks import Task
from .training import Clock


def train_ours(task: Task, seed: int, target: float, setting: Setting, optimizer: str) -> Outcome:
    """One call of `dualprox.fit`; the setting goes to it as it is."""
    clock = Clock()
    fit: Any = getattr(dp, "fit")  # noqa: B009 pyright need not know it yet
    target_size: Any = getattr(dp, "TargetSize")  # noqa: B009
    with clock.counted():
        result = fit(
            task.make_model(seed),
            task.loader(seed),
            epochs=task.epochs,
            target=target_size(params=target),
            loss=task.loss,
            example_input=task.example_input,
            optimizer=optimizer,
            **setting,
        )
    return Outcome(result.model, clock)


RAMDA = Method(
    name="dualprox_ramda",
    train=partial(train_ours, optimizer="ramda"),
    settings=({},),
)
RMDA = Method(
    name="dualprox_rmda",
    train=partial(train_ours, optimizer="rmda"),
    settings=({},),
)
