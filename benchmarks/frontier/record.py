"""One run: train a network, measure it, and say everything that is needed to judge it."""

import importlib.metadata
import math
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import dualprox as dp
from dualprox.files import write_json
from dualprox.lab.bench import results

from .methods import Method, Outcome, parameters
from .tasks import Task

FORMAT = 1
# A try is one run, or where runs differ by more than settings do, the mean over several.
TUNING_SEED = 100
TUNING_SEEDS: dict[str, tuple[int, ...]] = dict.fromkeys(
    ("resnet20_cifar4000", "fsdd_conv1d"), (TUNING_SEED, 101, 102)
)
# Settings are tried at a tenth of the parameters, or at what a network can be made to have.
TUNING_SIZES = {"lm_wikitext2": 0.3}
TUNING_SIZE = 0.1
BATCH_SIZES = (1, 64)


@dataclass(frozen=True)
class Job:
    """A cell of the benchmark.

    Args:
        task, method: names.
        seed: of the network and the order of the batches.
        target: size asked for, as a fraction of the parameters; None for methods without one.
        setting: which of the method's settings.
        tuning: whether it is a try, whose test metric is not read.
    """

    task: str
    method: str
    seed: int
    target: float | None
    setting: int
    tuning: bool = False

    def path(self, out: Path) -> Path:
        """Where its record lies; a final run has one place whatever its setting."""
        size = "dense" if self.target is None else f"{self.target:g}"
        name = f"size{size}-seed{self.seed}"
        if self.tuning:
            again = "" if self.seed == TUNING_SEED else f"-seed{self.seed}"
            name = f"try{self.setting}{again}"
        return out / self.task / self.method / f"{name}.json"


def latencies(dense: nn.Module, slim: nn.Module, task: Task, seconds: float) -> dict[str, Any]:
    """MACs, and milliseconds of both networks at each batch size, taken in turns."""
    costs = dp.compare(dense, slim, task.example_input, batch_sizes=BATCH_SIZES, seconds=seconds)
    found: dict[str, Any] = {"macs_dense": costs[0].macs, "macs": costs[1].macs}
    for name, cost in zip(("dense", "slim"), costs, strict=True):
        for latency in cost.latencies:
            milliseconds = None if latency.timing is None else 1e3 * latency.timing.median
            found[f"latency_{name}_ms_batch_{latency.batch_size}"] = milliseconds
    return found


def judged(
    task: Task, seed: int, outcome: Outcome, took: float, tuning: bool, seconds: float = 0.3
) -> dict[str, Any]:
    """What there is to say of a network that it took so many seconds to train, all included.

    Raises:
        FloatingPointError: the metric is not finite.
    """
    dense = task.make_model(seed)
    whole, left = parameters(dense), parameters(outcome.model)
    counted = left if outcome.nonzero is None else outcome.nonzero
    for p in outcome.model.parameters():
        p.requires_grad_(False)
    validation = task.evaluate(outcome.model, "validation")
    if not math.isfinite(validation):
        raise FloatingPointError(f"the {task.metric} on the validation part is {validation}")
    found = {
        "params_dense": whole,
        "params": left,
        "nonzero": outcome.nonzero,
        "size": counted / whole,
        "validation": validation,
        "test": None if tuning else task.evaluate(outcome.model, "test"),
        "train_seconds": took,
        "epoch_seconds": outcome.clock.epochs,
        "notes": outcome.notes,
    }
    return found if tuning else found | latencies(dense, outcome.model, task, seconds)


def version(package: str) -> str | None:
    """The installed version of a distribution; None if there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def heading(job: Job, method: Method, task: Task, tries: int) -> dict[str, Any]:
    """What is known of a run before it begins."""
    return {
        "format": FORMAT,
        "task": job.task,
        "method": job.method,
        "seed": job.seed,
        "target": job.target,
        "tuning": job.tuning,
        "metric": task.metric,
        "epochs": task.epochs,
        "setting": dict(method.settings[job.setting]),
        "setting_number": job.setting,
        "tries": tries,
        "unstructured": method.unstructured,
        "caveat": method.caveat,
        "note": task.note,
        "versions": {package: version(package) for package in method.packages},
        "environment": results.environment(torch.device("cpu"), torch.get_num_threads()),
    }


def failed(head: Mapping[str, Any], error: str, trace: str = "") -> dict[str, Any]:
    """The record of a run that came to nothing."""
    return {**head, "status": "failed", "error": error, "traceback": trace}


def calls_of(error: Exception) -> str:
    """Where it was raised, outermost call first, without the folders of this machine."""
    frames = traceback.extract_tb(error.__traceback__)
    return "\n".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames)


def perform(job: Job, method: Method, task: Task, tries: int, out: Path) -> dict[str, Any]:
    """Do a run in this process and write its record, whatever happens."""
    torch.set_num_threads(1)
    # Weights that decay to subnormal numbers make a CPU many times slower.
    torch.set_flush_denormal(True)
    head = heading(job, method, task, tries)
    try:
        torch.manual_seed(job.seed)
        target = 1.0 if job.target is None else job.target
        began = time.perf_counter()
        outcome = method.train(task, job.seed, target, method.settings[job.setting])
        took = time.perf_counter() - began
        record = {**head, "status": "ok", **judged(task, job.seed, outcome, took, job.tuning)}
    except Exception as error:  # a peer may raise anything, and the others shall go on
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        record = failed(head, reason, calls_of(error))
    save(record, job.path(out))
    return record


def save(record: dict[str, Any], path: Path) -> None:
    """Write a record; it is either there and whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
