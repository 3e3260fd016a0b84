"""The command in this process, without the training: how it ends, and what it leaves."""

import contextlib
import functools
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from dualprox.lab import fit_run, slim
from dualprox.lab.bench import command as bench
from dualprox.lab.bench import memory, nuclear, scale, step, subproblem
from dualprox.lab.cli import main
from dualprox.lab.experiments import study_command
from dualprox.lab.path import sweep
from dualprox.lab.training import Training


class Works(BaseException):
    """The command has understood everything, and would work from here on."""


def _works(*args: object, **kwargs: object) -> None:
    raise Works


@contextlib.contextmanager
def without_work() -> Iterator[None]:
    """Every command stops where its work would begin."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "train_epoch", _works)
        patch.setattr(fit_run, "go", _works)
        patch.setattr(sweep, "natural_strength", lambda run: 1.0)
        patch.setattr(study_command, "_write_epochs", _works)
        patch.setattr(study_command, "_write_variance", _works)
        patch.setattr(slim, "shrink_run", functools.partial(slim.shrink_run, latency=False))
        for module in (memory, nuclear, scale, step, subproblem):
            patch.setattr(module, "run", _works)
        patch.setattr(bench, "require_extras", lambda: None)
        yield


@dataclass(frozen=True)
class End:
    """How a command ended.

    Args:
        code: its exit code; None where it would have gone on to work.
        told: what it wrote to stderr.
    """

    code: int | None
    told: str


def run(argv: Sequence[str]) -> End:
    """Run the command; any exception but `Works` comes through, as a traceback would."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    code: int | None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(argv)
        except Works:
            code = None
        except SystemExit as end:  # of argparse
            code = end.code if isinstance(end.code, int) else 1
    return End(code, err.getvalue())


def tree(folder: Path) -> dict[str, object]:
    """All that lies in a folder: the bytes of files, and what links lead to."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = path.readlink()
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


def check_end(end: End, before: dict[str, object], folder: Path) -> None:
    """The law of every command line.

    The exit code is 0, or 1 or 2 with a short message; after 2, everything is as it was.
    """
    assert end.code in (None, 0, 1, 2), end
    assert "Traceback" not in end.told
    if end.code in (1, 2):
        # What argparse says holds the whole arguments.
        ours = end.told.startswith("dualprox:")
        assert "dualprox" in end.told and (len(end.told) < 2100 or not ours), end.told
    if end.code == 2:
        after = tree(folder)
        assert after.keys() == before.keys(), sorted(after.keys() ^ before.keys())
        assert after == before, [name for name in after if after[name] != before[name]]
