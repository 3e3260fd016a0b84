"""Short runs in folders, stopped and compared."""

import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from dualprox.lab import checkpoints, interrupts, train
from dualprox.lab.recipes import RECIPES
from dualprox.lab.settings import Run, with_settings
from dualprox.lab.training import Training

SHORT = ("epochs=4", "milestones=1,2", "model.hidden=12", "baseline=none")


def short(*more: str, recipe: str = "digits_mlp_ramda") -> Run:
    """A recipe in a second; 45 steps an epoch."""
    return with_settings(RECIPES[recipe](), [*SHORT, *more])


def finish(folder: Path, run: Run | None = None) -> Training:
    """Train a run in its folder to the end: from the start, or on where it stopped."""
    if run is not None:
        train.start(run, folder)
    return train.go_on(folder, lambda run, row: None)


def stop_at(steps: Iterable[int], folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start a run, and send SIGTERM within its steps, counted over the whole run and its parts."""
    step, taken = Training.step, [0]

    def counted(self: Training) -> None:
        step(self)
        taken[0] += 1
        if taken[0] in steps:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Training, "step", counted)
    train.start(run, folder)
    for _ in steps:
        with pytest.raises(interrupts.Stopped), interrupts.listening():
            finish(folder)
    monkeypatch.undo()


def assert_same_run(one: Path, other: Path) -> None:
    """Metrics, weights and all that the last checkpoints hold are equal, bit by bit."""
    for name in ("metrics.jsonl", "model.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    ours, theirs = (
        torch.load(checkpoints.listed(folder)[0], weights_only=True) for folder in (one, other)
    )
    # How often it is saved is no part of what was trained.
    assert ours.pop("run") and theirs.pop("run")
    assert_equal(ours, theirs, "")


def assert_equal(ours: Any, theirs: Any, where: str) -> None:
    """Bitwise equality of nested values."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_equal(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), where
        for number, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(*pair, f"{where}.{number}")
    elif isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), where
    else:
        assert ours == theirs, where
