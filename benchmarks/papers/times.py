"""What a training step costs with each solver of the subproblem: Table 2's comparison, and more.

All contenders train the same network on the same batches, in turns in one process, each with its
own structure as it develops. The times are those of whole steps: batch, forward, backward, update.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import count

import torch

import dualprox as dp
from dualprox.lab.bench.results import environment
from dualprox.lab.experiments.methods import OPTIMIZERS
from dualprox.lab.experiments.published import table_with
from dualprox.lab.settings import Run, with_settings
from dualprox.lab.specs import AdamSpec, ProxAdamwSpec, RamdaSpec
from dualprox.lab.train import check
from dualprox.lab.training import Training
from dualprox.timing import Budget, Case, clock_of, interleave

from .records import Record

# Whose rows give network, data and strength.
NETWORKS = {
    "lenet5_mnist": "lenet5_mnist_prox_ssi",
    "vgg19_cifar10": "vgg19_cifar10_prox_gen",
    "resnet50_cifar10": "resnet50_cifar10_prox_gen",
}


def contenders(base: Run) -> dict[str, Run]:
    """The run with each method and solver, the dense one first; all with the same penalty."""
    found = {
        "Adam": replace(base, optimizer=AdamSpec(), penalty=None),
        "ProxSGD": replace(base, optimizer=OPTIMIZERS["ProxSGD"]),
        "RMDA": replace(base, optimizer=OPTIMIZERS["RMDA"]),
        "ProxSSI": replace(base, optimizer=OPTIMIZERS["ProxSSI"]),
    }
    for name in ("ProxGen", "RAMDA"):
        optimizer = OPTIMIZERS[name]
        assert isinstance(optimizer, ProxAdamwSpec | RamdaSpec)
        assert isinstance(optimizer.solver, dp.ProximalGradient)
        never = replace(optimizer.solver, rtol=0.0)
        found[name] = replace(base, optimizer=optimizer)
        found[f"{name}, no early stopping"] = replace(
            base, optimizer=replace(optimizer, solver=never)
        )
        found[f"{name}, exact"] = replace(base, optimizer=replace(optimizer, solver=dp.Exact()))
    return found


def stepper(run: Run) -> tuple[Callable[[], None], Training]:
    """A call that takes the next step of a run's training, and that training."""
    training = Training(run)
    training.model.train()
    batches = (batch for epoch in count(1) for batch in training.task.batches(epoch))

    def step() -> None:
        training.opt.zero_grad()
        training.task.loss(training.model, next(batches)).backward()
        training.step()

    return step, training


def measure(network: str, assignments: Sequence[str], warm: int, budget: Budget) -> Record:
    """The times of a step of all contenders.

    Args:
        network: of `NETWORKS`.
        assignments: as for ``--set``.
        warm: steps that each takes before it is timed, so that there is a structure.
        budget: of each.

    Raises:
        ValueError: a setting is none, or breaks its rules.
        DataError: the files of the data set are missing.
    """
    table = table_with(NETWORKS[network])
    row = table.row(NETWORKS[network]) if table else None
    assert row is not None
    base = with_settings(row.run, list(assignments))
    check(base)
    cases, steps = {}, 0
    for name, run in contenders(base).items():
        step, training = stepper(run)
        steps = len(training.task)
        print(f"{name}: {warm} steps before the first that is timed", flush=True)
        for _ in range(warm):
            step()
        cases[name] = Case(step)
    found = interleave(cases, clock_of(torch.device(base.device)), budget)
    device = torch.device(base.device)
    return {
        "kind": "times",
        "network": row.block,
        "batch_size": base.batch_size,
        "steps_per_epoch": steps,
        "warm": warm,
        "environment": environment(device, base.threads),
        "seconds": {name: asdict(timing) for name, timing in found.items()},
    }
