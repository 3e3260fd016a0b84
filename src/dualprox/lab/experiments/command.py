"""`dualprox reproduce` and `dualprox report`: arguments, and what is printed."""

import argparse
import difflib
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import console
from ..usage import UsageError, require_extras
from .published import TABLES
from .tables import Table

if TYPE_CHECKING:
    from .reproduce import Job


def add_reproduce(commands: Any) -> None:
    """Add `dualprox reproduce` to the subparsers of `dualprox`."""
    parser = commands.add_parser(
        "reproduce",
        help="train the rows of a published table",
        description="Train the rows of a published table, one run after the other, and set what\n"
        "they come to beside the published figures.\n\n"
        "Every row with every seed is a run folder as `dualprox train` makes it. The same command\n"
        "again goes on where it was stopped, skips what is finished, and adds rows and seeds that\n"
        "are new. At the end the folder holds report.md, report.html, a csv and plots.\n\n"
        "The published runs take days to weeks. --set makes them shorter: with other epochs the\n"
        "milestones keep their place, unless they are set, too. Whatever differs from the\n"
        "published run is named in the folder's name, in config.json and in every table, and is\n"
        "never averaged with published runs.",
        epilog="examples:\n"
        "  dualprox list                                  the tables\n"
        "  dualprox show ramda-table7                     its rows and published figures\n"
        "  dualprox reproduce ramda-table7 --rows 'logistic_*' --set data_dir=DIR\n"
        "  dualprox reproduce ramda-table8 --seeds 1 --set data_dir=DIR epochs=30 threads=4\n\n"
        "Ctrl-C or a kill at any moment loses no finished epoch. Exit code: 0 if all runs are\n"
        "finished, 1 if one failed (the others are trained all the same), 2 for a mistake.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", help="a name from `dualprox list`")
    parser.add_argument(
        "--rows",
        action="extend",
        nargs="+",
        default=[],
        metavar="RECIPE",
        help="only these rows; * stands for any text",
    )
    parser.add_argument("--seeds", metavar="A,B,...", help="of each row; those of the paper")
    console.add_set(parser, "every row")
    parser.add_argument(
        "--exact",
        action="store_true",
        help="solve the subproblems of RAMDA, ProxGen and ProxSSI by the library's own solver, "
        "many times faster on a CPU than the papers', which need up to 100 iterations a step",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write; runs/TABLE")
    parser.set_defaults(run=_reproduce)


def add_report(commands: Any) -> None:
    """Add `dualprox report` to the subparsers of `dualprox`."""
    parser = commands.add_parser(
        "report",
        help="set finished runs beside the published figures",
        description="Turn run folders into the papers' tables: mean and standard deviation over\n"
        "seeds beside the published figures, as Markdown, CSV, plots over epochs and of the last\n"
        "epochs, and one HTML page that needs no other file.\n\n"
        "Runs that differ in more than their seeds stand in lines of their own, marked with what\n"
        "differs from the published run. Runs of recipes that no table has stand beside nothing.",
        epilog="examples:\n"
        "  dualprox report runs/ramda-table7\n"
        "  dualprox report runs/digits_mlp_ramda-1 runs/digits_mlp_rmda-1 --out report",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="of `dualprox train` or `dualprox reproduce`",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write; the first FOLDER")
    parser.add_argument(
        "--optimum",
        action="store_true",
        help="set runs of logistic regression with group LASSO beside the optimum of their "
        "convex problem, too; it takes minutes for MNIST once, and the data",
    )
    parser.set_defaults(run=_report)


def table_named(name: str) -> Table:
    """The table of that name; UsageError offers the nearest one if there is none."""
    if name not in TABLES:
        nearest = difflib.get_close_matches(name, TABLES, n=1, cutoff=0.4)
        hint = f"did you mean {nearest[0]}?" if nearest else "see `dualprox list`"
        raise UsageError(f"there is no table {name!r}; {hint}")
    return TABLES[name]


def seeds_of(text: str | None) -> list[int]:
    """The numbers of "1,2,3"; none for nothing."""
    try:
        return [int(part) for part in (text or "").split(",") if part.strip()]
    except ValueError:
        raise UsageError(f"--seeds must be whole numbers with commas, got {text!r}") from None


def _reproduce(args: argparse.Namespace) -> int:
    require_extras()
    from .reproduce import begin, plan

    table = table_named(args.table)
    folder = args.out or Path("runs") / table.name
    try:
        jobs = plan(table, folder, args.rows, seeds_of(args.seeds), args.settings, args.exact)
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from None
    failed: list[Job] = []

    def work() -> int:
        _train_all(jobs, failed)
        if len(failed) < len(jobs):
            _write([folder], folder)
        return 1 if failed else 0

    with console.begun(folder, table.name, functools.partial(begin, table, jobs)):
        return console.exit_code(work, f"{folder} goes on with the same command")


def _train_all(jobs: "list[Job]", failed: "list[Job]") -> None:
    """Train what is left; what cannot be trained is said and put into `failed`."""
    import dualprox as dp

    from .reproduce import carry_out

    for number, job in enumerate(jobs, start=1):
        name = f"{number}/{len(jobs)} {job.folder.name}"
        if job.is_finished:
            print(f"{name}  finished already")
            continue
        console.print_caveat(job.run)
        try:
            with console.progress([name]) as show:
                carry_out(job, lambda run, row, name=name, show=show: show(name, run.epochs, row))
        except (FloatingPointError, dp.ShrinkError) as error:
            print(f"dualprox: {job.folder}: {error}", file=sys.stderr)
            failed.append(job)


def _report(args: argparse.Namespace) -> int:
    require_extras()
    from ..data import DataError
    from ..folders import RunFolderError

    try:
        _write(args.folders, args.out or args.folders[0], args.optimum)
    except (RunFolderError, DataError, OSError) as error:
        raise UsageError(str(error)) from None
    return 0


def _write(folders: list[Path], out: Path, optimum: bool = False) -> None:
    """Write the report of what is finished, and print its tables."""
    from ..folders import reading
    from .optimality import beside_optimum
    from .page import write_report
    from .results import compare, gather

    with reading(folders[0]):
        results, unfinished = gather(folders)
        comparisons = compare(results)
    for folder in unfinished:
        print(f"unfinished, left out: {folder}")
    if not results:
        raise UsageError(f"no finished run in {', '.join(map(str, folders))}")
    if optimum:
        found = [beside_optimum(comparison, out, print) for comparison in comparisons]
        comparisons += [comparison for comparison in found if comparison is not None]
    with reading(folders[0]):
        said = [(each.table, each.cells(), each.notes()) for each in comparisons]
        write_report(comparisons, out)
    for table, cells, notes in said:
        _print(table, cells, notes)
    print(f"report: {out / 'report.html'}")


def _print(table: Table, cells: list[list[str]], notes: list[str]) -> None:
    """Cells whose first column, the block, becomes lines of its own: terminals are narrow."""
    from rich import box
    from rich.table import Table as Printed

    printed = Printed(
        title=f"{table.name}: {table.title} ({table.source})",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    (_, first, *head), *lines = cells
    printed.add_column(first, no_wrap=True)
    for name in head:
        printed.add_column(name, justify="right")
    for block, name, *values in lines:
        if block:
            printed.add_row(block)
        printed.add_row(f"  {name}", *values)
    console.wide_console().print(printed)
    for note in notes:
        print(f"note: {note}")


def show_reproduced(folder: Path) -> None:
    """Print what is finished of a folder of `dualprox reproduce`."""
    from .results import compare, gather

    results, unfinished = gather([folder])
    for comparison in compare(results):
        _print(comparison.table, comparison.cells(), comparison.notes())
    total = len(results) + len(unfinished)
    if unfinished:
        print(f"unfinished, {len(results)} of {total} runs; the same command goes on with them")


def show_table(table: Table) -> None:
    """Print the rows of a table and its published figures."""
    cells = [["", "recipe", "seeds", "epochs", *(column.heading for column in table.columns)]]
    for number, row in enumerate(table.rows):
        again = number > 0 and table.rows[number - 1].block == row.block
        seeds = ",".join(map(str, row.seeds))
        first = ["" if again else row.block, row.run.recipe, seeds, str(row.run.epochs)]
        values = [row.published.get(column.metric) for column in table.columns]
        cells.append(first + [value.text(table.digits) if value else "-" for value in values])
    notes = [table.note] if table.note else []
    _print(table, cells, notes + [f"{r.run.recipe}: {r.note}" for r in table.rows if r.note])
