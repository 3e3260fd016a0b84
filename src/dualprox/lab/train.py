"""The one training loop, and the run folder it writes."""

import contextlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

import dualprox as dp

from ..checks import require
from ..files import read_json_lines, write_atomically, write_json, write_json_lines
from . import data, settings, specs
from .data.normalization import PUBLISHED, published
from .networks import example_input, make_model
from .recipes import RECIPES
from .settings import Run

Progress = Callable[[Run, dict[str, Any]], None]
START = "start.safetensors"
# Those that make folders of their own kind.
COMMANDS = ("path", "fit", "reproduce")


class RunFolderError(Exception):
    """A folder that is not a run, or not one that can go on."""


def make_split(run: Run) -> data.Data:
    """The data of the run, its pixels normalized as the run says.

    Raises:
        DataError: the files of the data set are missing or damaged.
    """
    if run.normalization == "own":
        return data.load(run.data, run.data_dir)
    return replace(data.load_split(run.data, run.data_dir), normalize=published(run.data))


def make_groups(run: Run, model: nn.Module) -> ParamsT:
    """The model's parameters, grouped by penalty; by name alone for a run without one."""
    if run.penalty is None:
        return model.named_parameters()
    example = example_input(run) if run.coupled else None
    return dp.param_groups(model, run.penalty, coupled=run.coupled, example_input=example)


def make_optimizer(run: Run, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of the run over the model's parameters, penalized as the run says."""
    kinds = {
        specs.RamdaSpec: dp.RAMDA,
        specs.RmdaSpec: dp.RMDA,
        specs.ProxSgdSpec: dp.ProxSGD,
        specs.ProxAdamwSpec: dp.ProxAdamW,
        specs.AdamwSpec: torch.optim.AdamW,
        specs.SgdSpec: torch.optim.SGD,
    }
    # Not asdict: it would take a solver apart, too.
    return kinds[type(run.optimizer)](make_groups(run, model), **vars(run.optimizer))


def check(run: Run) -> None:
    """Raise ValueError for what `Run` cannot see by itself.

    That is the settings of the optimizer, whether the network fits the data, the files of the data
    set, and the baseline.
    """
    known = run.baseline is None or run.baseline in RECIPES
    require(known, "baseline", "the name of a recipe or none", run.baseline)
    augmented = data.CATALOGUE[run.data].augment is not None
    require(augmented or not run.augment, "augment", f"false for data={run.data}", run.augment)
    own = run.normalization == "own"
    rule = f"own for data={run.data}"
    require(own or run.data in PUBLISHED, "normalization", rule, run.normalization)
    # Which weights read one channel takes seconds to find, and no setting can be wrong there.
    make_optimizer(replace(run, coupled=False, shrink_at_restart=False), make_model(run))
    data.require_files(run.data, run.data_dir)


class Training:
    """A run in progress: everything that an epoch changes.

    Args:
        run: what to do.
    """

    def __init__(self, run: Run) -> None:
        # Dead groups of an iterate halve at every step, down to subnormal numbers, on which a CPU
        # is many times slower. Before the first parallel work: threads take the mode they are
        # born under.
        torch.set_flush_denormal(True)
        torch.set_num_threads(run.threads)
        torch.manual_seed(run.seed)
        self.run = run
        self.split = make_split(run)
        self.augment = data.CATALOGUE[run.data].augment if run.augment else None
        self.model = make_model(run)
        self.opt = make_optimizer(run, self.model)
        self.schedule: torch.optim.lr_scheduler.LRScheduler
        self.monitor: dp.StructureMonitor | None = None
        if isinstance(self.opt, dp.ProximalOptimizer):
            self.schedule = dp.StageSchedule(self.opt, run.milestones, run.gamma, refit=run.refit)
            self.monitor = dp.StructureMonitor(self.opt)
        else:
            milestones = list(run.milestones)
            multistep = torch.optim.lr_scheduler.MultiStepLR
            self.schedule = multistep(self.opt, milestones, run.gamma)
        self.epoch = 0
        self.plan = dp.Plan()
        # The structure that everything is counted against if the network gets smaller.
        self.whole: dp.NetworkStructure | None = None
        if run.shrink_at_restart and isinstance(self.opt, dp.ProximalOptimizer):
            self.whole = dp.structure(self.opt)

    def structured(self) -> contextlib.AbstractContextManager[None]:
        """The structured point swapped in; the network as it is for optimizers without one."""
        if isinstance(self.opt, dp.ProximalOptimizer):
            return self.opt.structured()
        return contextlib.nullcontext()

    def train_epoch(self) -> dict[str, Any]:
        """One epoch and what it led to, measured at the structured point."""
        self.epoch += 1
        run, losses = self.run, []
        self.model.train()
        batches = self.split.batches(run.batch_size, run.seed, self.epoch, self.augment)
        for step, (inputs, labels) in enumerate(batches, start=1):
            self.opt.zero_grad()
            loss = nn.functional.cross_entropy(self.model(inputs), labels)
            loss.backward()
            self.opt.step()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(
                    f"the loss is {losses[-1]} in epoch {self.epoch}, step {step}: try a smaller "
                    "lr; the checkpoint of the epoch before is untouched"
                )
        row: dict[str, Any] = {
            "epoch": self.epoch,
            "lr": self.opt.param_groups[0]["lr"],
            "loss": sum(losses) / len(losses),
            **self.evaluate(),
        }
        if self.monitor is not None and isinstance(self.opt, dp.ProximalOptimizer):
            record = asdict(self.monitor.update())
            row |= self.sparsity(dp.structure(self.opt)) | {
                name: value for name, value in record.items() if name != "epoch"
            }
        self.schedule.step()
        if run.shrink_at_restart and self.epoch in run.milestones:
            self.shrink_()
        return row

    def sparsity(self, found: dp.NetworkStructure) -> dict[str, float | None]:
        """The shares of `NetworkStructure`; what has left the network counts as zero."""
        if not self.plan.keep or self.whole is None:
            return found.to_dict()
        groups = sum(layer.total for layer in self.whole.layers)
        entries = sum(layer.parameters for layer in self.whole.layers)
        live = sum(layer.parameters - (layer.in_dead_groups or 0) for layer in found.layers)
        nonzero = sum(layer.parameters - layer.zeros for layer in found.layers)
        return found.to_dict() | {
            "group_sparsity": 1 - sum(layer.size for layer in found.layers) / groups,
            "weighted_group_sparsity": 1 - live / entries,
            "unstructured_sparsity": 1 - nonzero / entries,
        }

    def shrink_(self) -> None:
        """Remove what is dead at the structured point, and go on with the rest."""
        assert isinstance(self.opt, dp.ProximalOptimizer)
        example = example_input(self.run)
        self.model, plan = dp.shrink_training(self.model, self.opt, example)
        self.plan = plan.after(self.plan)

    def evaluate(self) -> dict[str, float]:
        """Validation loss and accuracy at the structured point.

        Batch norms keep the running statistics of the iterate, so a network with them scores low
        until the final ramp brings the two points together.
        """
        with self.structured():
            return evaluate(self.model, self.split)

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how training goes on, loadable with ``weights_only=True``."""
        return {
            "run": json.dumps(settings.to_json(self.run)),
            "epoch": self.epoch,
            "plan": json.dumps(self.plan.to_dict()),
            "model": self.model.state_dict(),
            "optimizer": self.opt.state_dict(),
            "schedule": self.schedule.state_dict(),
            "monitor": self.monitor.state_dict() if self.monitor else {},
            "rng": torch.get_rng_state(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        plan = dp.Plan.from_dict(json.loads(saved["plan"]))
        if plan.keep:
            assert isinstance(self.opt, dp.ProximalOptimizer)
            dense, self.model = self.model, dp.apply_plan(self.model, plan)
            dp.narrow_(self.opt, dense, self.model, plan)
            self.plan = plan
        self.model.load_state_dict(saved["model"])
        self.opt.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        if self.monitor is not None:
            self.monitor.load_state_dict(saved["monitor"])
        torch.set_rng_state(saved["rng"])
        self.epoch = saved["epoch"]

    def structured_weights(self) -> dict[str, Tensor]:
        """Copies of the model's tensors at the structured point."""
        with self.structured():
            return {name: t.detach().clone() for name, t in self.model.state_dict().items()}


@torch.no_grad()
def evaluate(model: nn.Module, split: data.Data) -> dict[str, float]:
    """Validation loss and accuracy of a model, which is in evaluation mode from then on."""
    model.eval()
    pairs = [(model(inputs), labels) for inputs, labels in split.validation()]
    scores, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return {
        "val_loss": nn.functional.cross_entropy(scores, labels).item(),
        "val_accuracy": (scores.argmax(1) == labels).double().mean().item(),
    }


def baseline_of(run: Run) -> Run | None:
    """The dense run to compare with: the same network, data and seed."""
    if run.baseline is None:
        return None
    shared = ("data", "data_dir", "augment", "normalization", "model", "init", "seed", "threads")
    return replace(RECIPES[run.baseline](), **{name: getattr(run, name) for name in shared})


def require_empty(folder: Path) -> None:
    """Raise RunFolderError if the folder holds something."""
    if folder.exists() and any(folder.iterdir()):
        raise RunFolderError(
            f"{folder} is not empty; continue it with --resume {folder} or choose another --out"
        )


def start(run: Run, folder: Path) -> None:
    """Make the run folder, and the one of its baseline within.

    Raises:
        RunFolderError: the folder holds something already.
    """
    require_empty(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dense = baseline_of(run)
    if dense is not None:
        start(dense, folder / "dense")
    write_json(folder / "config.json", settings.to_json(run))


def read_run(folder: Path) -> Run:
    """The run that a folder holds.

    Raises:
        RunFolderError: it holds none.
    """
    if (command := made_by(folder)) is not None:
        raise RunFolderError(f"{folder} was made by `dualprox {command}`: it is no single run")
    try:
        return settings.from_json(read_config(folder))
    except ValueError as error:
        raise RunFolderError(f"{folder / 'config.json'} is damaged: {error}") from None


def made_by(folder: Path) -> str | None:
    """Which command other than train made a folder: one of `COMMANDS`; None for a run.

    Raises:
        RunFolderError: it has no config.json, or a damaged one.
    """
    command = read_config(folder).get("command")
    return command if command in COMMANDS else None


def read_config(folder: Path) -> dict[str, Any]:
    """The content of a folder's config.json.

    Raises:
        RunFolderError: there is none, or a damaged one.
    """
    try:
        saved = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        raise RunFolderError(f"{folder} is not a run folder: it has no config.json") from None
    except ValueError as error:  # of JSON or of UTF-8
        raise RunFolderError(f"{folder / 'config.json'} is damaged: {error}") from None
    if not isinstance(saved, dict):
        raise RunFolderError(f"{folder / 'config.json'} is damaged: it holds no object")
    return saved


def read_checkpoint(folder: Path, run: Run) -> dict[str, Any] | None:
    """The checkpoint of a run, or None before its first.

    Raises:
        RunFolderError: it is damaged, or that of another run.
    """
    path = folder / "checkpoint.pt"
    if not path.exists():
        return None
    try:
        saved = torch.load(path, weights_only=True)
        theirs = settings.from_json(json.loads(saved["run"]))
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = str(error).partition("\n")[0]
        raise RunFolderError(f"{path} is damaged or no checkpoint: {reason}") from None
    if theirs != run:
        raise RunFolderError(f"{path} belongs to another run than config.json beside it")
    return saved


def go_on(folder: Path, progress: Progress) -> Training:
    """Train the run of a folder to its end, from its last checkpoint, baseline first.

    A folder with `start.safetensors` begins at these weights instead of at random ones.

    Returns:
        The finished training; `checkpoint.pt`, `metrics.jsonl`, `timing.jsonl` and
        `model.safetensors` are on disk. If it is interrupted or killed at any moment, calling it
        again leads to the same bits.

    Raises:
        RunFolderError: the folder cannot go on.
        DataError: the files of the data set are missing or damaged.
        FloatingPointError: the loss is not finite.
    """
    from safetensors.torch import load_file, save

    run = read_run(folder)
    saved = read_checkpoint(folder, run)
    if run.baseline is not None:
        go_on(folder / "dense", progress)
    training = Training(run)
    if saved is not None:
        training.load_state_dict(saved)
    elif (folder / START).exists():
        training.model.load_state_dict(load_file(folder / START))
    metrics = read_json_lines(folder / "metrics.jsonl")[: training.epoch]
    timing = read_json_lines(folder / "timing.jsonl")[: training.epoch]
    if metrics:
        progress(run, metrics[-1])
    while training.epoch < run.epochs:
        began = time.perf_counter()
        metrics.append(training.train_epoch())
        timing.append({"epoch": training.epoch, "seconds": time.perf_counter() - began})
        # The checkpoint comes last: what it vouches for is on disk, and lines beyond it are cut.
        write_json_lines(folder / "metrics.jsonl", metrics)
        write_json_lines(folder / "timing.jsonl", timing)
        state = training.state_dict()
        write_atomically(
            folder / "checkpoint.pt", lambda file, state=state: torch.save(state, file)
        )
        progress(run, metrics[-1])
    weights = save(training.structured_weights())
    write_atomically(folder / "model.safetensors", lambda file: file.write(weights))
    return training
