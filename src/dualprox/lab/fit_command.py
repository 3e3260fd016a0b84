"""`dualprox fit`: arguments, and what is printed."""

import argparse
import functools
import sys
from pathlib import Path
from typing import Any

import dualprox as dp

from ..files import read_json
from ..fitting.target import COUNTS, MEASURES
from . import console
from .usage import UsageError, require_extras

# Of the arguments, those that a folder knows.
_NAMED = ("recipe", "out", "seed", "epochs", "batch_size", "tolerance", *MEASURES)


def add_fit(commands: Any) -> None:
    """Add the command to the subparsers of `dualprox`."""
    parser = commands.add_parser(
        "fit",
        help="train a recipe's network into the size that you name",
        description="Train the network of a recipe into the size that is asked for: there is no\n"
        "strength to tune. While it trains, the strength is steered until the structured point\n"
        "has the size (search); then it stays (hold); then the slim network alone is trained\n"
        "without penalty (refit). The recipe gives network, data, kind of penalty, and\n"
        "RAMDA or RMDA; fit decides learning rates, stages and strength and says so at the end.\n\n"
        "A share is a number with a point (0.1: a tenth), a whole number is a count. Writes\n"
        "config.json, metrics.jsonl (validation, epoch by epoch), slim.safetensors and plan.json\n"
        "(from which dualprox.load_slim rebuilds the slim network), shrink.json, shrink.png,\n"
        "summary.json; checkpoint.pt, after every epoch, from which --resume goes on.",
        epilog="examples:\n"
        "  dualprox fit digits_mlp_ramda --params 0.1\n"
        "  dualprox fit digits_mlp_ramda --macs 5000 --epochs 40 --select-inputs\n"
        "  dualprox fit cifar_resnet_ramda --latency-ms 0.8 --set data_dir=DIR seed=3\n"
        "  dualprox fit digits_mlp_rmda --weighted-group-sparsity 0.9\n"
        "  dualprox fit digits_mlp_ramda --nonzeros 0.05\n\n"
        "Ctrl-C or a kill at any moment loses no finished epoch: --resume goes on, to the same\n"
        "bits. Exit code: 0 if the size was reached, 1 if not (the notes say why), 2 for a\n"
        "mistake. Which size to ask for: `dualprox path`.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "recipe", nargs="?", help="a name from `dualprox list`, with groups and RAMDA or RMDA"
    )
    size = parser.add_argument_group("the size of the slim network, one of")
    size.add_argument("--params", metavar="SIZE", help="parameters: share of dense, or number")
    size.add_argument("--macs", metavar="SIZE", help="multiplications for one example; likewise")
    size.add_argument(
        "--latency-ms", metavar="MS", help="median time of one run, on this machine as it trains"
    )
    size.add_argument(
        "--weighted-group-sparsity", metavar="SHARE", help="weights in dead groups over all"
    )
    size.add_argument(
        "--nonzeros",
        metavar="SIZE",
        help="parameters but single zeros: share or number; no smaller or faster by itself",
    )
    parser.add_argument("--batch-size", type=int, metavar="N", help="of the run of --latency-ms; 1")
    parser.add_argument("--tolerance", type=float, metavar="X", help="relative, of the size; 0.03")
    parser.add_argument("--epochs", type=int, metavar="N", help="all stages; the recipe's")
    parser.add_argument(
        "--select-inputs",
        action="store_true",
        help="let layers select the inputs that they have weights for, where these have to stay",
    )
    console.add_settings(parser, "runs/RECIPE-fit-N")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="go on with a fit")
    parser.set_defaults(run=_fit)


def _fit(args: argparse.Namespace) -> int:
    require_extras()
    from .fit_run import begin, fit_run

    if args.resume is not None:
        given = [getattr(args, name) for name in _NAMED]
        if args.settings or args.select_inputs or any(value is not None for value in given):
            raise UsageError("--resume takes everything from its folder: give nothing beside it")
        return _finish(args.resume)
    if args.recipe is None:
        raise UsageError("fit needs a recipe from `dualprox list`, or --resume DIR")
    settings = list(args.settings)
    for name in ("epochs", "seed"):
        if getattr(args, name) is not None:
            settings.append(f"{name}={getattr(args, name)}")
    recipe = console.recipe_named(args.recipe)
    try:
        wish = fit_run(recipe, settings, _target(args), args.select_inputs)
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from None
    name = f"{recipe.recipe}-fit"
    with console.begun(args.out, name, functools.partial(begin, wish)) as folder:
        return _finish(folder)


def _finish(folder: Path) -> int:
    """Train what is left of a fit, and print what it came to."""
    from .fit_run import go, read_fit

    def train() -> int:
        wish = read_fit(folder)
        if (folder / "summary.json").exists():
            print(f"{folder} is finished already:")
            summary = read_json(folder / "summary.json")
        else:
            console.print_caveat(wish.run)
            name, epochs = wish.run.recipe, wish.run.epochs
            try:
                with console.progress([name]) as show:
                    summary = go(wish, folder, lambda row: show(name, epochs, row))
            except (ValueError, dp.ShrinkError) as error:
                raise UsageError(str(error)) from None
        show_fit(folder)
        if summary["is_reached"]:
            return 0
        for note in summary["notes"]:
            print(f"dualprox: {note}", file=sys.stderr)
        return 1

    return console.exit_code(train, f"go on with: dualprox fit --resume {folder}")


def _target(args: argparse.Namespace) -> dp.TargetSize:
    """The size that the arguments name."""
    beside = {name: getattr(args, name) for name in ("batch_size", "tolerance")}
    given: dict[str, Any] = {name: value for name, value in beside.items() if value is not None}
    for name in MEASURES:
        text = getattr(args, name)
        if text is None:
            continue
        try:
            whole = name in COUNTS and text.strip().isdecimal()
            given[name] = int(text) if whole else float(text)
        except ValueError:
            raise UsageError(f"--{name.replace('_', '-')} must be a number, got {text!r}") from None
    return dp.TargetSize(**given)


def show_fit(folder: Path) -> None:
    """Print what a fit came to, or that it did not end."""
    from .fit_run import rows

    if not (folder / "summary.json").exists():
        print(f"{folder} holds a fit that did not end; go on with: dualprox fit --resume {folder}")
        return
    summary = read_json(folder / "summary.json")
    title = f"fit of {summary['recipe']}, seed {summary['seed']}"
    console.print_summary(title, rows(summary), folder)
