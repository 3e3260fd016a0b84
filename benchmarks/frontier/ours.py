"""dualprox: train into a structure, reach the size asked for, shrink, refit."""

from functools import partial
from typing import Any, Literal

import dualprox as dp

from .methods import Method, Outcome, Setting
from .tasks import Task
from .training import Clock
from .unstructured import CAVEAT, nonzero


def train_ours(
    task: Task,
    seed: int,
    target: float,
    setting: Setting,
    optimizer: Literal["rmda", "ramda"],
    penalty: dp.Penalty | None = None,
    refit: bool = True,
    single: bool = False,
) -> Outcome:
    """One call of `dualprox.fit`; the setting goes to it as it is."""
    options: dict[str, Any] = {"select_inputs": task.selects_inputs, **setting}
    result = dp.fit(
        task.make_model(seed),
        task.loader(seed),
        epochs=task.epochs,
        target=dp.TargetSize(nonzeros=target) if single else dp.TargetSize(params=target),
        loss=task.loss,
        example_input=task.example_input,
        optimizer=optimizer,
        penalty=penalty,
        refit=refit,
        latency=False,
        **options,
    )
    count = nonzero(result.model) if single else None
    notes = {"fit": result.notes, "chosen": vars(result.plan)}
    return Outcome(result.model, Clock(), nonzero=count, notes=notes)


RATES: dict[Literal["ramda", "rmda"], tuple[Setting, ...]] = {
    "ramda": ({}, {"lr": 5e-3}, {"lr": 1e-3}),
    "rmda": ({}, {"refit_lr": 0.1}, {"refit_optimizer": "adamw"}),
}
# What a variant changes, and what must be said of it.
VARIANTS: dict[str, tuple[dict[str, Any], str]] = {
    "": ({}, ""),
    "_convex": (
        {"penalty": dp.GroupLasso(1.0)},
        "group LASSO in place of the number of live groups",
    ),
    "_no_refit": ({"refit": False}, "cut at the end, not trained after"),
    "_single": ({"single": True}, CAVEAT),
}
OURS = tuple(
    Method(
        f"dualprox_{optimizer}{suffix}",
        partial(train_ours, optimizer=optimizer, **changes),
        rates,
        unstructured="single" in changes,
        caveat=caveat,
    )
    for suffix, (changes, caveat) in VARIANTS.items()
    for optimizer, rates in RATES.items()
)
