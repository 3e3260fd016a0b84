"""A run folder: what is checked before it is made, and the training that fills it."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..checks import is_real, require
from ..files import (
    WriteError,
    append_json_line,
    cut_lines,
    read_json_lines,
    remove_leftovers,
    write_atomically,
)
from . import checkpoints, data, interrupts, ranks, settings
from .finite import require_finite
from .folders import START, RunFolderError, alone, make, read_run, reading
from .networks import can_shrink, make_model
from .optimizers import make_optimizer
from .recipes import RECIPES
from .settings import Run
from .tasks import task_of
from .training import Training

# A line for each epoch.
LOGS = ("metrics.jsonl", "timing.jsonl")
Progress = Callable[[Run, dict[str, Any]], None]


def check(run: Run) -> None:
    """Raise ValueError for what `Run` cannot see by itself.

    That is the settings of the optimizer, whether the network fits the data, the files of the data
    set, and the baseline.
    """
    known = run.baseline is None or run.baseline in RECIPES
    require(known, "baseline", "the name of a recipe or none", run.baseline)
    require(can_shrink(run) or not run.coupled, "coupled", "false for this model", run.model)
    # Which weights read one channel takes seconds to find, and no setting can be wrong there.
    apart = replace(run, coupled=False, shrink_at_restart=False)
    try:
        with torch.device("meta"):  # where the largest network costs nothing
            make_optimizer(apart, make_model(apart))
    except ImportError as error:
        raise ValueError(str(error)) from None
    except (ArithmeticError, AssertionError, MemoryError, RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        require(False, "model", f"one that torch can make ({reason})", run.model)
    task_of(run).check(run)
    data.require_files(run.data, run.data_dir)
    there = run.device == "cpu" or torch.cuda.is_available()
    require(there, "device", "cpu, for torch finds no CUDA device", run.device)


def baseline_of(run: Run) -> Run | None:
    """The dense run to compare with: the same network, data and seed."""
    if run.baseline is None:
        return None
    shared = ("data", "data_dir", "augment", "normalization", "model", "init", "seed", "threads")
    shared += ("device", "precision", "epoch_steps")
    return replace(RECIPES[run.baseline](), **{name: getattr(run, name) for name in shared})


def start(run: Run, folder: Path) -> None:
    """Make the run folder.

    Raises:
        RunFolderError: the folder holds something already.
    """
    make(folder, settings.to_json(run))


def go_on_dense(run: Run, folder: Path, progress: Progress) -> None:
    """Train the baseline of a run, if it has one, in a folder that is made if it is not there."""
    dense = baseline_of(run)
    if dense is not None:
        if ranks.is_first() and not (folder / "config.json").exists():
            start(dense, folder)
        ranks.wait()
        go_on(folder, progress)


def go_on(folder: Path, progress: Progress) -> Training:
    """Train the run of a folder to its end, from its last checkpoint, baseline first.

    A folder with `start.safetensors` begins at these weights instead of at random ones. It is
    saved after every epoch and every `checkpoint_minutes`, and when it is asked to stop.

    Returns:
        The finished training; `checkpoints`, `metrics.jsonl`, `timing.jsonl` and
        `model.safetensors` are on disk. If it is interrupted or killed at any moment, calling it
        again leads to the same bits. Of several processes all call it, and the first one writes.

    Raises:
        RunFolderError: the folder cannot go on, or another process is training in it.
        DataError: the files of the data set are missing or damaged.
        FloatingPointError: a loss, a gradient or a weight is not finite.
        WriteError: the disk is full, or fails.
        Stopped: it was asked to stop, and has been saved.
    """
    with alone(folder) if ranks.is_first() else contextlib.nullcontext():
        return _go_on(folder, progress)


def _go_on(folder: Path, progress: Progress) -> Training:
    from safetensors.torch import load_file, save

    run = read_run(folder)
    found = checkpoints.newest(folder, run)
    last = _last_row(folder, found)
    go_on_dense(run, folder / "dense", progress)
    training = Training(ranks.placed(run))
    if found is not None:
        with reading(found.path):
            training.load_state_dict(found.state)
    elif (folder / START).exists():
        with reading(folder / START):
            training.model.load_state_dict(load_file(folder / START))
    ranks.wait()  # until all have read what the first one changes now
    if ranks.is_first():
        _tidy(folder, found, training.epoch)
    if last is not None:
        with reading(folder / "metrics.jsonl"):
            progress(run, last)
    with interrupts.postponed():
        try:
            _train_on(training, folder, progress)
        except (FloatingPointError, WriteError) as error:
            kept = checkpoints.listed(folder)
            told = f"the last checkpoint is {kept[0]}" if kept else "there is no checkpoint yet"
            raise type(error)(f"{error}; {told}") from error
    if ranks.is_first():
        weights = save(training.structured_weights())
        write_atomically(folder / "model.safetensors", lambda file: file.write(weights))
    return training


def _tidy(folder: Path, found: checkpoints.Checkpoint | None, epochs: int) -> None:
    """Leave in a folder what its newest whole checkpoint vouches for."""
    if found is not None:
        found.adopt()
    for place in (folder, folder / checkpoints.FOLDER):
        remove_leftovers(place)
    for name in LOGS:
        cut_lines(folder / name, epochs)


def _train_on(training: Training, folder: Path, progress: Progress) -> None:
    """The epochs that are left; lines first, then the checkpoint that vouches for them."""
    run = training.run
    keeper = checkpoints.Keeper(folder, run, training.state_dict)

    def after_step() -> None:
        # All processes save and stop after the same step, whichever of them was asked to.
        code, is_due = ranks.largest(interrupts.asked(), ranks.is_first() and keeper.is_due())
        if code or is_due:
            require_finite(training.model, training.place())
            keeper.save()
        interrupts.stop(code)

    training.after_step = after_step
    while training.epoch < run.epochs:
        row = training.train_epoch()
        ranks.require_same(training.model.parameters(), f"after epoch {training.epoch}")
        if ranks.is_first():
            append_json_line(folder / "metrics.jsonl", row)
            seconds = {"epoch": training.epoch, "seconds": training.seconds()}
            append_json_line(folder / "timing.jsonl", seconds)
        keeper.save()
        if ranks.is_first():
            progress(run, row)
        interrupts.stop(ranks.largest(interrupts.asked())[0])


def _last_row(folder: Path, found: checkpoints.Checkpoint | None) -> dict[str, Any] | None:
    """The metrics of the last epoch that a checkpoint vouches for; None before the first.

    Raises:
        RunFolderError: lines are damaged or missing, or there are some without a checkpoint.
    """
    epochs = found.state["epoch"] if found else 0
    last: dict[str, Any] | None = None
    for name in reversed(LOGS):
        path = folder / name
        rows = read_json_lines(path)
        # A line is written before its checkpoint.
        if len(rows) < epochs or (found is None and len(rows) > 1):
            raise RunFolderError(
                f"{path} has {len(rows)} epochs, the last checkpoint beside it {epochs}"
            )
        if [row.get("epoch") for row in rows[:epochs]] != [*range(1, epochs + 1)]:
            raise RunFolderError(f"{path} is damaged: it must have a row for each epoch")
        if name == "timing.jsonl" and not all(is_real(row.get("seconds")) for row in rows):
            raise RunFolderError(f"{path} is damaged: seconds must be numbers")
        last = rows[epochs - 1] if epochs else None
    return last
