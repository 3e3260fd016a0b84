"""`dualprox.fit` on the network and the data of a recipe, and the folder it writes."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dualprox as dp

from ..checks import is_count, require
from ..files import append_json_line, cut_lines, read_json_lines, remove_leftovers, write_json
from ..fitting import checkpoint
from ..fitting.result import Progress
from ..kinds import check_kinds
from . import data, settings
from .folders import RunFolderError, alone, made_by, make, read_config
from .networks import can_shrink, example_input, make_model
from .settings import Run, with_settings
from .slim import summary_of, write_slim
from .specs import RamdaSpec, RmdaSpec
from .tasks.classification import evaluate, make_split
from .train import check

# What a fit decides by itself, whatever the recipe says.
DECIDED = ("milestones", "gamma", "baseline", "coupled", "shrink_at_restart")
DECIDED += ("optimizer.eps", "penalty.strength")
CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class FitRun:
    """A fit, resolved.

    Args:
        run: network, data, penalty, optimizer and epochs.
        target: the size.
        lr: of search and hold; None lets `dualprox.fit` decide.
        momentum: of search and hold.
        select_inputs: as in `dualprox.fit`.

    Raises:
        ValueError: a setting breaks its rule.
    """

    run: Run
    target: dp.TargetSize
    lr: float | None = None
    momentum: float = 0.9
    select_inputs: bool = False

    def __post_init__(self) -> None:
        run = self.run
        dual_averaging = isinstance(run.optimizer, RamdaSpec | RmdaSpec)
        kind = type(run.optimizer).__name__
        require(dual_averaging, "optimizer", "RamdaSpec or RmdaSpec for a fit", kind)
        rule = "a network that classifies for a fit"
        require(can_shrink(run), "model", rule, run.model)
        require(run.device == "cpu", "device", "cpu for a fit", run.device)
        kinds, rule = dp.GroupPenalty, "one of groups for a fit, which removes channels"
        if self.target.measure == "nonzeros":
            kinds, rule = kinds | dp.SeparablePenalty, "one of groups or entries for nonzeros"
        require(isinstance(run.penalty, kinds), "penalty", rule, run.penalty)
        rule = "an int >= 2 for a fit, which has stages"
        require(is_count(run.epochs) and run.epochs >= 2, "epochs", rule, run.epochs)

    @property
    def penalty(self) -> dp.Penalty | None:
        """What `dualprox.fit` is given: for nonzeros no groups, so that it counts entries."""
        own = self.run.penalty
        by_groups = isinstance(own, dp.GroupPenalty)
        return None if by_groups and self.target.measure == "nonzeros" else own

    def to_json(self) -> dict[str, Any]:
        """Content of config.json."""
        return {
            "command": "fit",
            "run": settings.to_json(self.run),
            "target": {"measure": self.target.measure, "value": self.target.value},
            "tolerance": self.target.tolerance,
            "batch_size": self.target.batch_size,
            "lr": self.lr,
            "momentum": self.momentum,
            "select_inputs": self.select_inputs,
        }


def fit_run(
    recipe: Run, assignments: list[str], target: dp.TargetSize, select_inputs: bool = False
) -> FitRun:
    """The fit of a recipe with fields changed as by `--set`.

    The recipe's own learning rate, momentum, stages and strength suit a training without a target
    and are not used; learning rate and momentum are, where `assignments` set them.

    Raises:
        ValueError: a setting breaks its rule, or is one that a fit decides by itself.
    """
    bare = replace(recipe, milestones=(), baseline=None, coupled=False, shrink_at_restart=False)
    run = with_settings(bare, assignments)
    named = [assignment.partition("=")[0] for assignment in assignments]
    for name in named:
        if name in DECIDED:
            raise ValueError(f"{name} is decided by fit itself and cannot be set")
    check(run)
    chosen = {
        name: getattr(run.optimizer, name)
        for name in ("lr", "momentum")
        if f"optimizer.{name}" in named
    }
    return FitRun(run, target, select_inputs=select_inputs, **chosen)


class Batches:
    """The batches of a run: those of another epoch each time it is iterated."""

    def __init__(self, run: Run, split: data.Data) -> None:
        self.run, self.split, self.epoch = run, split, 0
        self.augment = data.CATALOGUE[run.data].augment if run.augment else None

    def __len__(self) -> int:
        return math.ceil(len(self.split) / self.run.batch_size)

    def state_dict(self) -> dict[str, int]:
        """Which epoch was the last."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after that epoch."""
        self.epoch = state["epoch"]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.epoch += 1
        run = self.run
        return self.split.batches(run.batch_size, run.seed, self.epoch, self.augment)


def begin(wish: FitRun, folder: Path) -> None:
    """Make the folder of a fit.

    Raises:
        RunFolderError: the folder holds something already.
    """
    make(folder, wish.to_json())


def read_fit(folder: Path) -> FitRun:
    """The fit that a folder holds.

    Raises:
        RunFolderError: it holds none.
    """
    if made_by(folder) != "fit":
        raise RunFolderError(f"{folder} was not made by `dualprox fit`")
    saved = read_config(folder)
    try:
        target = dp.TargetSize(
            **{saved["target"]["measure"]: saved["target"]["value"]},
            batch_size=saved["batch_size"],
            tolerance=saved["tolerance"],
        )
        chosen = {name: saved[name] for name in ("lr", "momentum", "select_inputs")}
        check_kinds(FitRun, chosen)
        return FitRun(settings.from_json(saved["run"]), target, **chosen)
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(f"{folder / 'config.json'} is damaged: {error}") from None


def go(wish: FitRun, folder: Path, show: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Fit, and write `metrics.jsonl` (an epoch a row), the slim network and `summary.json`.

    A fit that is stopped or killed at any moment goes on after its last epoch, to the same bits.

    Args:
        wish: what is asked for.
        folder: made by `begin`; may hold a part of the fit.
        show: called with the metrics of every epoch, measured on the validation set at the
            structured point, or of the slim network in the refit.

    Returns:
        The content of summary.json.

    Raises:
        DataError: the files of the data set are missing or damaged.
        ValueError: the target is none for this network, or the loss is not finite.
        ShrinkError: the network cannot be traced.
        RunFolderError: another process trains in the folder.
    """
    with alone(folder):
        return _go(wish, folder, show)


def _go(wish: FitRun, folder: Path, show: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    run, kept = wish.run, folder / CHECKPOINT
    # Before the first parallel work: threads take the mode they are born under.
    torch.set_flush_denormal(True)
    torch.set_num_threads(run.threads)
    torch.manual_seed(run.seed)
    split = make_split(run)
    model = make_model(run)

    def watch(now: Progress) -> None:
        row = {name: value for name, value in vars(now).items() if name != "model"}
        row |= evaluate(now.model, split)
        append_json_line(metrics, row)
        show(row)

    remove_leftovers(folder)
    done = checkpoint.load(kept)["epoch"] if kept.exists() else 0
    metrics = folder / "metrics.jsonl"
    cut_lines(metrics, done)
    known = read_json_lines(metrics)
    if len(known) < done:
        raise RunFolderError(f"{metrics} has {len(known)} epochs, the checkpoint beside it {done}")
    for row in known[-1:]:
        show(row)
    found = dp.fit(
        model,
        Batches(run, split),
        run.epochs,
        wish.target,
        example_input=example_input(run),
        optimizer="ramda" if isinstance(run.optimizer, RamdaSpec) else "rmda",
        penalty=wish.penalty,
        select_inputs=wish.select_inputs,
        lr=wish.lr,
        momentum=wish.momentum,
        watch=watch,
        checkpoint=kept,
    )
    write_slim(found.model, folder)
    summary: dict[str, Any] = {
        "recipe": run.recipe,
        "seed": run.seed,
        "epochs": run.epochs,
        "target": {"measure": wish.target.measure, "value": wish.target.value},
        "reached": found.reached,
        "is_reached": found.is_reached,
        "val_accuracy": evaluate(found.model, split)["val_accuracy"],
        "train_seconds": found.seconds,
        "chosen": dict(vars(found.plan)),
        "notes": found.notes,
        "caveat": data.caveat(run.data, run.data_dir),
        **summary_of(found.report),
    }
    write_json(folder / "summary.json", summary)
    return summary


def rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines of the closing table."""
    from .report import saved

    measure, value = summary["target"]["measure"], summary["target"]["value"]

    def shown(size: float) -> str:
        if measure == "latency_ms":
            return f"{size:.3g} ms"
        return f"{size:.2%}" if isinstance(value, float) else f"{size:,.0f}"

    verdict = "reached" if summary["is_reached"] else "NOT reached"
    lines = [
        ("asked for", f"{measure.replace('_', ' ')} {shown(value)}"),
        ("came to", f"{shown(summary['reached'])}, {verdict}"),
        ("accuracy of the slim network", f"{summary['val_accuracy']:.1%}"),
        *saved(summary),
        ("training time", f"{summary['train_seconds']:.1f} s"),
    ]
    for name, picked in summary["chosen"].items():
        text = f"{picked:.4g}" if isinstance(picked, float) else str(picked)
        lines.append((f"fit's {name.replace('_', ' ')}", text))
    lines += [("note", note) for note in summary["notes"]]
    if summary["caveat"]:
        lines.append(("note", summary["caveat"]))
    return lines
