"""`dualprox path`: arguments, and what is printed."""

import argparse
import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import console
from ..settings import with_settings
from ..usage import UsageError, require_extras

FROM, TO, COUNT = 0.5, 0.002, 8


def add_path(commands: Any) -> None:
    """Add the command to the subparsers of `dualprox`."""
    parser = commands.add_parser(
        "path",
        help="train a recipe at many strengths: accuracy against size",
        description="Train a recipe at strengths from weak to strong, shrink the network of each,\n"
        "and show what accuracy each size costs.\n\n"
        "Strengths are fractions of strength_max, the least strength with which every group\n"
        "wants to die at the first step: 1 kills nearly any network at once.\n\n"
        "Each point starts from the structured point of the weaker one before it: groups die\n"
        "one after the other and seldom have to come back. From strong to weak, as for convex\n"
        "problems, it would begin with a dead network, which no gradient revives (docs/fit.md).\n"
        "The first point takes the recipe's epochs, the others a share of them.\n\n"
        "The knee is where accuracy begins to fall: the point farthest above the chord that\n"
        "joins the smallest network with the largest, in accuracy against log(parameters),\n"
        "scaled to the unit square.\n\n"
        "The folder holds path.jsonl, path.csv, path.png, the dense baseline, and for each point\n"
        "a run folder 01, 02, ... with its slim network.",
        epilog="examples:\n"
        "  dualprox path digits_mlp_ramda\n"
        "  dualprox path digits_mlp_ramda --strengths 5 --from 0.2 --to 0.01 --refit 5\n"
        "  dualprox path digits_mlp_lowrank --strengths 0.3,0.1,0.03 --set epochs=20\n"
        "  dualprox path --resume runs/digits_mlp_ramda-path-1\n\n"
        "Ctrl-C or a kill at any moment leaves a folder that --resume finishes, bit for bit as if\n"
        "nothing had happened. `dualprox show DIR` prints the table again.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", nargs="?", help="a name from `dualprox list`, with a penalty")
    parser.add_argument(
        "--strengths",
        metavar="N|A,B,...",
        help=f"how many, with equal ratios, or which fractions of strength_max; {COUNT}",
    )
    parser.add_argument("--from", type=float, dest="first", metavar="X", help=f"one end; {FROM:g}")
    parser.add_argument("--to", type=float, dest="last", metavar="X", help=f"the other; {TO:g}")
    parser.add_argument(
        "--share",
        type=float,
        metavar="X",
        help="epochs of a warm-started point over those of the first; 0.5",
    )
    parser.add_argument(
        "--refit",
        type=int,
        metavar="EPOCHS",
        help="train each slim network on without penalty, by the dense baseline's optimizer; 0",
    )
    parser.add_argument(
        "--select-inputs",
        action="store_true",
        help="let layers select the inputs that they have weights for, where these have to stay",
    )
    console.add_settings(parser, "runs/RECIPE-path-N")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="go on with a path")
    parser.set_defaults(run=_path)


def _path(args: argparse.Namespace) -> int:
    require_extras()
    from ..data import DataError
    from ..train import check
    from .sweep import Sweep, begin, log_spaced, natural_strength

    given = (args.recipe, args.strengths, args.first, args.last, args.share, args.refit)
    if args.resume is not None:
        given += (args.out, args.seed)
        if args.settings or args.select_inputs or any(value is not None for value in given):
            raise UsageError("--resume takes everything from its folder: give nothing beside it")
        return _finish(args.resume)
    if args.recipe is None:
        raise UsageError("path needs a recipe from `dualprox list`, or --resume DIR")
    try:
        run = with_settings(console.recipe_named(args.recipe), args.settings)
        if args.seed is not None:
            run = replace(run, seed=args.seed)
        check(run)
        listed = _listed(args.strengths)
        if isinstance(listed, int):
            first, last = (
                default if value is None else value
                for value, default in ((args.first, FROM), (args.last, TO))
            )
            fractions = log_spaced(first, last, listed)
        elif args.first is not None or args.last is not None:
            raise UsageError("--from and --to go with a number of strengths, not with a list")
        else:
            fractions = tuple(sorted(listed))
        share = 0.5 if args.share is None else args.share
        # Once without and once with strength_max: mistakes are found before the data are read.
        sweep = Sweep(run, fractions, 1.0, share, args.refit or 0, args.select_inputs)
        sweep = replace(sweep, strength_max=natural_strength(run))
    except (ValueError, DataError, OSError) as error:
        raise UsageError(str(error)) from None
    name = f"{run.recipe}-path"
    with console.begun(args.out, name, functools.partial(begin, sweep)) as folder:
        return _finish(folder)


def _listed(text: str | None) -> int | list[float]:
    """How many strengths, or which."""
    if text is None:
        return COUNT
    try:
        if "," in text or "." in text or "e" in text:
            return [float(part) for part in text.split(",") if part.strip()]
        return int(text)
    except ValueError:
        raise UsageError(
            f"--strengths must be a whole number or numbers with commas, got {text!r}"
        ) from None


def _finish(folder: Path) -> int:
    """Train what is left of a path, and print its table."""
    from ..folders import reading
    from ..train import check
    from .curve import write_curve
    from .sweep import DENSE, read_sweep, walk

    def sweep_on() -> int:
        sweep = read_sweep(folder)
        if (folder / "summary.json").exists():
            print(f"{folder} is finished already:")
        else:
            try:
                check(sweep.run)
            except ValueError as error:
                raise UsageError(str(error)) from None
            console.print_caveat(sweep.run)
            names = [*([DENSE] if sweep.run.baseline else []), *sweep.names()]
            with console.progress(names, lines=1) as show:
                rows = walk(folder, show)
                with reading(folder / "path.jsonl"):
                    write_curve(sweep, rows, folder)
        with reading(folder):
            show_path(folder)
        return 0

    return console.exit_code(sweep_on, f"go on with: dualprox path --resume {folder}")


def show_path(folder: Path) -> None:
    """Print the points of a path that there are, and its knee if it is finished."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from ...files import read_json, read_json_lines
    from .curve import accuracy_of, columns
    from .sweep import read_sweep

    sweep = read_sweep(folder)
    rows = read_json_lines(folder / "path.jsonl")
    finished = (folder / "summary.json").exists()
    summary = read_json(folder / "summary.json") if finished else {"knee": None}
    if rows:
        head, *lines = columns(rows, summary)
        title = f"{sweep.run.recipe}, seed {sweep.run.seed}, strength_max {sweep.strength_max:.3g}"
        table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for number, name in enumerate(head):
            table.add_column(name, justify="left" if number == 0 else "right")
        for line in lines:
            table.add_row(*line)
        Console().print(table)
    if not finished:
        print(
            f"unfinished, {len(rows)} of {len(sweep.fractions)} strengths; go on with: "
            f"dualprox path --resume {folder}"
        )
        return
    if summary["dense_val_accuracy"] is not None:
        print(f"accuracy of the dense network: {summary['dense_val_accuracy']:.1%}")
    knees = [row for row in rows if row["point"] == summary["knee"]]
    for row in knees:
        accuracy = row[accuracy_of(rows)]
        print(f"knee: {row['params_share']:.1%} of the parameters, {accuracy:.1%}", end="")
        print(f"; its slim network: {folder / row['point']}")
    if not knees:
        print("no knee: no point lies above the chord between the ends")
    print(f"path: {folder}")
