"""Run folders: what they hold, and what is refused as none."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from ..files import DamagedFile, WriteError, read_json, remove_leftovers, write_json
from . import settings
from .settings import Run

START = "start.safetensors"
_LAUNCH = "launch.json"
# Those that make folders of their own kind.
COMMANDS = ("path", "fit", "reproduce")


class RunFolderError(Exception):
    """A folder that is not a run, or not one that can go on."""


def make(folder: Path, config: dict[str, Any]) -> None:
    """Make a run folder with its config.json; of processes that begin it at once one succeeds.

    Raises:
        RunFolderError: the folder holds something already.
    """
    advice = f"continue it with --resume {folder} or choose another --out"
    if (folder / "config.json").exists():  # whoever trains there keeps it locked
        raise RunFolderError(f"{folder} is not empty; {advice}")
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder, wait=True):
        remove_leftovers(folder)
        if any(folder.iterdir()):
            raise RunFolderError(f"{folder} is not empty; {advice}")
        write_json(folder / "config.json", config)


@contextlib.contextmanager
def alone(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep other processes from writing in a folder; the system forgets it when this one ends.

    Does nothing on Windows and on file systems without locks.

    Args:
        folder: it.
        wait: for them, which is for moments only.

    Raises:
        RunFolderError: another process trains there, and there is no waiting.
    """
    if fcntl is None:
        yield
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise RunFolderError(f"{folder} is not a run folder: {error.strerror}") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise RunFolderError(f"another process is training in {folder}") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)


def mark_launch(folder: Path, launch: str) -> None:
    """Write down which start of torchrun made the folder."""
    write_json(folder / _LAUNCH, {"launch": launch})


def marked_launch(folder: Path) -> str | None:
    """Which start of torchrun made the folder; None if none did."""
    try:
        return json.loads((folder / _LAUNCH).read_text())["launch"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


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
    return command if isinstance(command, str) and command in COMMANDS else None


@contextlib.contextmanager
def reading(what: Path) -> Iterator[None]:
    """Refuse a file, or what a folder holds, that is not as this library writes it.

    Raises:
        RunFolderError: what is read within has other fields, or values of other kinds.
    """
    try:
        yield
    except (DamagedFile, RunFolderError, WriteError, OSError, MemoryError):
        raise
    # What Python, torch and safetensors raise for values that are not what they should be.
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise RunFolderError(f"{what} is damaged: {type(error).__name__}: {reason}") from error


def read_config(folder: Path) -> dict[str, Any]:
    """The content of a folder's config.json.

    Raises:
        RunFolderError: there is none, or a damaged one.
    """
    try:
        saved = read_json(folder / "config.json")
    except (OSError, ValueError):  # ValueError: no name of a file
        raise RunFolderError(f"{folder} is not a run folder: it has no config.json") from None
    except DamagedFile as error:
        raise RunFolderError(str(error)) from None
    if not isinstance(saved, dict):
        raise RunFolderError(f"{folder / 'config.json'} is damaged: it holds no object")
    return saved
