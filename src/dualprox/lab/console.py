"""What the commands share: recipes by name, run folders, progress, and stopping in good order."""

import argparse
import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import DamagedFile, WriteError
from . import ranks
from .data import DataError, caveat
from .interrupts import Stopped, listening
from .recipes import RECIPES
from .scores import score_of
from .settings import Run
from .usage import UsageError

if TYPE_CHECKING:
    from rich.console import Console

# Which bar, how many epochs it has, and the row of metrics of the last one.
Show = Callable[[str, int, dict[str, Any]], None]


def add_settings(parser: argparse.ArgumentParser, folder: str) -> None:
    """Add --out, whose default is described by `folder`, --seed and --set."""
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"where to write; {folder}")
    parser.add_argument("--seed", type=int, metavar="N", help="the same as --set seed=N")
    add_set(parser, "the recipe")


def add_set(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --set, which changes fields of `what`."""
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        dest="settings",
        metavar="FIELD=VALUE",
        help=f"change fields of {what}; `dualprox show RECIPE` lists them",
    )


def recipe_named(name: str) -> Run:
    """The recipe's run; UsageError offers the nearest name if there is none."""
    if name not in RECIPES:
        import difflib

        nearest = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.4)
        hint = f"did you mean {nearest[0]}?" if nearest else "see `dualprox list`"
        raise UsageError(f"there is no recipe {name!r}; {hint}")
    return RECIPES[name]()


def print_caveat(run: Run) -> None:
    """Say, before any figure, what its data set lacks, or that its files are gone."""
    try:
        note = caveat(run.data, run.data_dir)
    except DataError as error:
        note = str(error)
    if note:
        print(f"note: {note}")


@contextlib.contextmanager
def begun(out: Path | None, name: str, begin: Callable[[Path], bool | None]) -> Iterator[Path]:
    """A folder for new work: `out`, or the first of runs/NAME-1, runs/NAME-2, ... that is free.

    If the work is refused, what `begin` made in an empty folder is taken away again, and so is the
    folder, if it was made here. From the first epoch on it stays, and can go on when the reason is
    gone. What another process has made stays in any case.

    Args:
        out: the folder, if one was named.
        name: of the folder otherwise.
        begin: makes the folder's content, and returns False if there was some before; or raises
            ValueError, OSError or RunFolderError.

    Raises:
        UsageError: what `begin` raised.
    """
    from .folders import RunFolderError

    folder, made = _claimed(name) if out is None else (out, _missing(out))
    is_ours = False
    try:
        try:
            is_ours = begin(folder) is not False
        except (ValueError, OSError, RunFolderError) as error:
            raise UsageError(str(error)) from None
        yield folder
    except UsageError:
        if is_ours and not any(folder.rglob("metrics.jsonl")):
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        with contextlib.suppress(OSError):  # those that are not empty stay
            for path in made:
                path.rmdir()
        raise


def _claimed(name: str) -> tuple[Path, list[Path]]:
    """The first folder runs/NAME-N that is free, now made, and what was made with it."""
    number = 1
    while True:
        folder = Path("runs") / f"{name}-{number}"
        made = _missing(folder)
        try:
            folder.mkdir(parents=True)
            return folder, made
        except FileExistsError:
            number += 1
        except OSError as error:
            raise UsageError(str(error)) from None


def _missing(folder: Path) -> list[Path]:
    """The folder and its parents, as far as they are not there."""
    return [path for path in (folder, *folder.parents) if not os.path.exists(path)]


def exit_code(work: Callable[[], int], advice: str) -> int:
    """Do the work of a run folder, and return its exit code, or that of its failure.

    Args:
        work: training and printing; returns its exit code. It is stopped by signals.
        advice: what to do after Ctrl-C, SIGTERM or a full disk.

    Raises:
        UsageError: the folder or the data cannot be used.
    """
    from .folders import RunFolderError

    try:
        with listening():
            return work()
    except (RunFolderError, DataError, DamagedFile) as error:
        raise UsageError(str(error)) from None
    except FloatingPointError as error:
        ranks.complain(f"dualprox: {error}")
        return 1
    except (WriteError, OSError) as error:
        ranks.complain(f"dualprox: {error}; when that is mended {advice}")
        return 1
    except (KeyboardInterrupt, Stopped) as reason:
        ranks.complain(f"\nstopped; {advice}")
        return reason.code if isinstance(reason, Stopped) else 130


def print_summary(title: str, rows: Iterable[tuple[str, str]], folder: Path) -> None:
    """Names and values as a table, and where they come from."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, show_header=False)
    for name, value in rows:
        table.add_row(name, value)
    Console().print(table)
    print(f"run folder: {folder}")


def wide_console() -> "Console":
    """Where tables of many columns go: not cut to the width of a terminal that is not there."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=200)


@contextlib.contextmanager
def progress(names: Sequence[str], lines: int = 6) -> Iterator[Show]:
    """A bar per name with the latest metrics; without a terminal about `lines` lines for each."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console()
    if not console.is_terminal:

        def line(name: str, epochs: int, row: dict[str, Any]) -> None:
            first = row["epoch"] == 1 and lines > 1
            if first or row["epoch"] == epochs or row["epoch"] % max(1, epochs // lines) == 0:
                print(f"{name}  epoch {row['epoch']:>3}/{epochs}  {live(row)}", flush=True)

        yield line
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[live]}"),
        console=console,
    )
    with bar:
        tasks = {name: bar.add_task(name, total=None, start=False, live="") for name in names}

        def advance(name: str, epochs: int, row: dict[str, Any]) -> None:
            bar.start_task(tasks[name])
            bar.update(tasks[name], total=epochs, completed=row["epoch"], live=live(row))

        yield advance


def live(row: dict[str, Any]) -> str:
    """The metrics of an epoch in one line."""
    score = score_of(row)
    text = f"loss {row['loss']:.4f}  {score.label} {score.text(row[score.metric]):>6}"
    shares = (
        ("weighted_group_sparsity", "sparsity"),
        ("low_rank_level", "low rank"),
        ("size", "size"),
    )
    for name, label in shares:
        if row.get(name) is not None:
            text += f"  {label} {row[name]:6.1%}"
    return f"{text}  {row['stage']}" if "stage" in row else text
