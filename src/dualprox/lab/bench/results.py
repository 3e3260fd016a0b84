"""Results with the machine, the versions and the commit they come from; stored whole or not."""

import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import dualprox as dp

from ...files import write_json, write_png
from ..usage import UsageError
from .settings import proc_line

# Raised when a stored result can no longer be read as this version writes it.
FORMAT = 1
# Files that a benchmark itself writes do not make the tree dirty for the next one.
_WRITTEN = ("benchmarks/results", "README.md")


def repository() -> Path | None:
    """The git checkout that this package is run from; None for an installed one."""
    source = Path(__file__).resolve().parents[4]
    return source if (source / ".git").exists() and (source / "src" / "dualprox").exists() else None


def _git(*args: str) -> str | None:
    """What git says about the repository; None if it cannot."""
    root = repository()
    if root is None:
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *args], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def commit() -> str | None:
    """The commit checked out; None outside a git checkout."""
    return _git("rev-parse", "HEAD")


def changes() -> list[str] | None:
    """Files that differ from the commit, those apart that benchmarks write; None without git."""
    excluded = [f":(exclude){path}" for path in _WRITTEN]
    status = _git("status", "--porcelain", "--", ".", *excluded)
    return None if status is None else [line[2:].strip() for line in status.splitlines()]


def cpu_model() -> str:
    """What the processor calls itself."""
    return proc_line("cpuinfo", "model name") or platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment(device: torch.device, threads: int) -> dict[str, Any]:
    """Machine, versions and commit."""
    changed = changes()
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": device.type,
        "gpu": gpu,
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": _version("triton"),
        "madgrad": _version("madgrad"),
        "dualprox": dp.__version__,
        "commit": commit(),
        "dirty": None if changed is None else bool(changed),
    }


def require_storable(quick: bool, given_commit: str | None) -> None:
    """Raise UsageError unless a result of this code may be stored.

    Args:
        quick: whether the shapes are those of `--quick`.
        given_commit: the commit of a copy without git, as the user says it.
    """
    if quick:
        raise UsageError("--save does not go with --quick: its times mean nothing")
    changed = changes()
    if changed is None and given_commit is None:
        raise UsageError(
            "--save needs the commit that is timed and finds no git checkout; give --commit HASH"
        )
    if changed:
        more = f" and {len(changed) - 1} more differ" if len(changed) > 1 else " differs"
        raise UsageError(
            f"--save needs a clean git tree, {changed[0]}{more} from the commit; "
            "commit first, or look at the result without --save"
        )


def complete(
    question: str,
    found: dict[str, Any],
    environment: dict[str, Any],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """The content of a result's JSON; numbers that are not finite become None."""
    return {
        "question": question,
        "format": FORMAT,
        "settings": settings,
        "environment": environment,
        **_finite(found),
    }


def _finite(value: Any) -> Any:
    """The same with None for infinities and NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def store(result: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write `question-device.json` and `.png` into the folder, the JSON last; their paths."""
    from .plots import plot

    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{result['question']}-{result['environment']['device']}"
    data, picture = folder / f"{stem}.json", folder / f"{stem}.png"
    write_png(picture, plot(result))
    write_json(data, result)
    return data, picture


def write_to(result: dict[str, Any], path: str) -> None:
    """Write the JSON to a path, or to stdout for "-"."""
    if path == "-":
        json.dump(result, sys.stdout, indent=2, allow_nan=False)
        print()
    else:
        write_json(Path(path), result)


def read_stored(folder: Path) -> list[dict[str, Any]]:
    """The stored results, in the order of their names.

    Raises:
        UsageError: a file is not a result of this version.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            result = json.loads(path.read_text())
            theirs = result["format"]
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"{path} must be a stored result, and is not one") from None
        if theirs != FORMAT:
            raise UsageError(f"{path} must be a result of format {FORMAT}, got {theirs!r}")
        found.append(result)
    return found
