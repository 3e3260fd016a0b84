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


RAMDA_RATES = ({}, {"lr": 5e-3}, {"lr": 1e-3})
RMDA_RATES = ({}, {"refit_lr": 0.1}, {"refit_optimizer": "adamw"})
RAMDA = Method("dualprox_ramda", partial(train_ours, optimizer="ramda"), RAMDA_RATES)
RMDA = Method("dualprox_rmda", partial(train_ours, optimizer="rmda"), RMDA_RATES)
RAMDA_CONVEX = Method(
    "dualprox_ramda_convex",
    partial(train_ours, optimizer="ramda", penalty=dp.GroupLasso(1.0)),
    RAMDA_RATES,
    caveat="group LASSO in place of the number of live groups",
)
RMDA_CONVEX = Method(
    "dualprox_rmda_convex",
    partial(train_ours, optimizer="rmda", penalty=dp.GroupLasso(1.0)),
    RMDA_RATES,
    caveat="group LASSO in place of the number of live groups",
)
RAMDA_NO_REFIT = Method(
    "dualprox_ramda_no_refit",
    partial(train_ours, optimizer="ramda", refit=False),
    RAMDA_RATES,
    caveat="cut at the end, not trained after",
)
RMDA_NO_REFIT = Method(
    "dualprox_rmda_no_refit",
    partial(train_ours, optimizer="rmda", refit=False),
    RMDA_RATES,
    caveat="cut at the end, not trained after",
)
RAMDA_SINGLE = Method(
    "dualprox_ramda_single",
    partial(train_ours, optimizer="ramda", single=True),
    RAMDA_RATES,
    unstructured=True,
    caveat=CAVEAT,
)
RMDA_SINGLE = Method(
    "dualprox_rmda_single",
    partial(train_ours, optimizer="rmda", single=True),
    RMDA_RATES,
    unstructured=True,
    caveat=CAVEAT,
)
OURS = (
    RAMDA,
    RMDA,
    RAMDA_CONVEX,
    RMDA_CONVEX,
    RAMDA_NO_REFIT,
    RMDA_NO_REFIT,
    RAMDA_SINGLE,
    RMDA_SINGLE,
)
