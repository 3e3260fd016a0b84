"""The checkpoints of a run: whole or not used, the last few kept.

A run folder holds them as `checkpoints/epoch-E-step-S-SUM.pt`: E epochs are finished, S steps of
the next one taken, and SUM is the beginning of the file's SHA-256. A file whose content does not
have the sum of its name is damaged.
"""

import hashlib
import io
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..files import faults_named, load_tensors, settle, sync_folder, temporary
from . import ranks, settings
from .folders import RunFolderError
from .settings import Run

FOLDER = "checkpoints"
_NAME = re.compile(r"epoch-(\d+)-step-(\d+)-([0-9a-f]{16})\.pt")
# What a caller may change in config.json between two parts of a run.
FREE = ("device", "keep_checkpoints", "checkpoint_minutes")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read, and those after it that were not whole.

    Args:
        path: its file.
        state: what `Training.state_dict` gave, on the CPU.
        damaged: newer files, and what is wrong with each.
    """

    path: Path
    state: dict[str, Any]
    damaged: dict[Path, str]

    def adopt(self) -> None:
        """Say on stderr which files were damaged, and put them out of the way."""
        for path, reason in self.damaged.items():
            print(f"dualprox: {path} {reason}: going on from {self.path.name}", file=sys.stderr)
            path.rename(path.with_name(f"damaged-{path.name}"))


class _Summed(io.RawIOBase):
    """A file that is written, and the checksum of what has been."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sum = file, hashlib.sha256()

    def write(self, part: Any) -> int:
        self.sum.update(part)
        return self.file.write(part)


def listed(folder: Path) -> list[Path]:
    """The checkpoints of a run folder, whole or not, the newest first."""
    found = [(_NAME.fullmatch(path.name), path) for path in (folder / FOLDER).glob("epoch-*")]
    places = [(int(name[1]), int(name[2]), path) for name, path in found if name]
    return [path for *_, path in sorted(places, reverse=True)]


def newest(folder: Path, run: Run) -> Checkpoint | None:
    """The newest whole checkpoint of a run; None before its first. Changes nothing.

    Raises:
        RunFolderError: there are some and none is whole, or it belongs to another run.
    """
    damaged: dict[Path, str] = {}
    for path in listed(folder):
        try:
            state, theirs = _read(path)
        except _DamagedError as error:
            damaged[path] = str(error)
            continue
        if settings.differences(theirs, run).keys() - FREE:
            raise RunFolderError(f"{path} belongs to another run than config.json beside it")
        return Checkpoint(path, state, damaged)
    if damaged:
        reasons = "; ".join(f"{path.name} {reason}" for path, reason in damaged.items())
        raise RunFolderError(f"no checkpoint in {folder / FOLDER} is whole: {reasons}")
    return None


class _DamagedError(Exception):
    """A file that is no whole checkpoint; the message goes on a sentence about it."""


def _read(path: Path) -> tuple[dict[str, Any], Run]:
    name = _NAME.fullmatch(path.name)
    assert name is not None
    if _sum_of(path) != name[3]:
        raise _DamagedError("is damaged, its checksum is not that of its name")
    try:
        state = load_tensors(path)
        return state, settings.from_json(json.loads(state["run"]))
    except Exception as error:  # torch raises many kinds
        reason = str(error).partition("\n")[0]
        raise _DamagedError(f"is no checkpoint of dualprox ({reason})") from None


def _sum_of(path: Path) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()[:16]


def save(folder: Path, state: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint, and then remove all but the last few.

    Args:
        folder: of the run.
        state: with the place, "epoch" and "taken".
        keep: how many stay, >= 1.

    Raises:
        WriteError: it could not be written; the others are as they were.
    """
    place = folder / FOLDER
    if not place.exists():
        with faults_named(place):
            place.mkdir()
        sync_folder(folder)
    name = f"epoch-{state['epoch']}-step-{state['taken']}-"
    with temporary(place / f"{name}new.pt") as beside:
        with open(beside, "wb") as file:
            summed = _Summed(file)
            torch.save(state, summed)  # pyright: ignore[reportArgumentType]
        path = place / f"{name}{summed.sum.hexdigest()[:16]}.pt"
        settle(beside, path)
    others = [old for old in listed(folder) if old != path]
    again = [old for old in others if old.name.startswith(name)]
    for old in [*again, *[old for old in others if old not in again][keep - 1 :]]:
        old.unlink()
    return path


class Keeper:
    """Saves a training in its folder: whenever it is told to, and in time.

    Args:
        folder: of the run.
        run: says how many to keep and how often to save.
        state: makes what is saved.
    """

    def __init__(self, folder: Path, run: Run, state: Callable[[], dict[str, Any]]) -> None:
        self.folder, self.run, self.state = folder, run, state
        self.saved_at = time.monotonic()

    def is_due(self) -> bool:
        """Whether the last one is older than the run allows."""
        return time.monotonic() - self.saved_at >= 60 * self.run.checkpoint_minutes

    def save(self) -> None:
        """Save now; of several processes all call it.

        Raises:
            WriteError: it could not be written; the others are as they were.
        """
        state = self.state()  # which all processes put together
        if ranks.is_first():
            save(self.folder, state, self.run.keep_checkpoints)
        self.saved_at = time.monotonic()
