"""The `dualprox` command."""

import argparse
import contextlib
import functools
import json
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import dualprox as dp

from ..files import DamagedFile, WriteError, read_json, read_json_lines
from . import console, ranks
from .bench.command import add_bench
from .doctor import doctor
from .experiments.command import add_report, add_reproduce, show_reproduced, show_table
from .experiments.published import TABLES, table_with
from .experiments.study_command import add_study
from .fit_command import add_fit, show_fit
from .path.command import add_path, show_path
from .recipes import RECIPES
from .settings import Run, to_json, with_settings
from .usage import UsageError, require_extras

_DEFAULT = "digits_mlp_ramda"
# Commands for which torchrun may start several processes.
_TOGETHER = ("train",)
_LONGEST = 2000  # letters of a message


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` and return its exit code."""
    args = _parsed(argv)
    if ranks.launched() > 1 and args.command not in _TOGETHER:
        ranks.complain(f"dualprox: {args.command} is for one process: run it without torchrun")
        return 2
    try:
        code = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except (UsageError, DamagedFile, OSError) as error:
        text = str(error)
        ranks.complain(f"dualprox: {text[:_LONGEST]}{'...' * (len(text) > _LONGEST)}")
        code = 2
    except WriteError as error:
        ranks.complain(f"dualprox: {error}")
        code = 1
    except MemoryError as error:
        ranks.complain(f"dualprox: not enough memory: {error}")
        code = 1
    except Exception as error:
        if ranks.world() == 1:
            raise
        gone = "dualprox: another process of this run is gone"
        ranks.complain(gone if ranks.is_loss_of_another(error) else traceback.format_exc())
        code = 1
    return ranks.leave(code)


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; of several processes, which all have the same, one says what is wrong."""
    with contextlib.ExitStack() as stack:
        if os.environ.get("RANK", "0") != "0":
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        return _parser().parse_args(argv)


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="dualprox",
        description="Train networks into a structure: sparse channels, dead neurons, low rank.",
        epilog="start here:\n  dualprox train          a sparse network on handwritten digits\n"
        "  dualprox list           what else there is to train\n"
        "  dualprox fit digits_mlp_ramda --params 0.1\n"
        "                          a network of the size that you name\n"
        "  dualprox path digits_mlp_ramda\n"
        "                          what accuracy each size costs\n"
        "  dualprox reproduce ramda-table7 --set data_dir=DIR\n"
        "                          a published table, trained again",
        formatter_class=raw,
    )
    parser.add_argument("--version", action="version", version=f"dualprox {dp.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    train = commands.add_parser(
        "train",
        help="train a recipe into a run folder",
        description="Train a recipe, beside its dense baseline, and write a run folder:\n"
        "config.json, metrics.jsonl, checkpoints, model.safetensors (the structured point),\n"
        "summary.json, training.png and, for an MLP on images, pixels.png.",
        epilog="examples:\n"
        "  dualprox train\n"
        "  dualprox train digits_mlp_rmda --seed 3 --out runs/rmda\n"
        "  dualprox train --set epochs=40 milestones=15,30 penalty.strength=5e-4\n"
        "  dualprox train fsdd_conv1d_ramda --set data_dir=DIR\n"
        "  dualprox train --resume runs/rmda\n"
        "  torchrun --nproc-per-node 4 -m dualprox train cifar_resnet_ramda --set device=cuda\n\n"
        "Ctrl-C, SIGTERM and SIGUSR1 finish the step and save; a second one stops at once. A kill\n"
        "loses what is younger than the last checkpoint: there is one after every epoch and every\n"
        "checkpoint_minutes. Either leaves a folder that --resume finishes, bit for bit as if\n"
        "nothing had happened. `dualprox show RECIPE` lists the fields that --set takes.\n\n"
        "Processes that torchrun starts train one run together, batch_size examples in a step of\n"
        "all of them, and --resume goes on with any number of processes. With --max-restarts and\n"
        "--out, a run whose processes fail goes on by itself: docs/distributed.md.",
        formatter_class=raw,
    )
    train.add_argument("recipe", nargs="?", help=f"a name from `dualprox list`; {_DEFAULT}")
    console.add_settings(train, "runs/RECIPE-N")
    train.add_argument("--resume", type=Path, metavar="DIR", help="go on with a run folder")
    train.set_defaults(run=_train)

    add_path(commands)
    add_fit(commands)
    add_reproduce(commands)
    add_report(commands)
    add_study(commands)

    shrinking = commands.add_parser(
        "shrink",
        help="make the network of a run folder physically smaller",
        description="Remove what is dead in the network of a finished run, prove and check that\n"
        "it computes the same, and write slim.safetensors, plan.json (from which\n"
        "dualprox.load_slim rebuilds it), shrink.json and shrink.png.",
        epilog="examples:\n"
        "  dualprox shrink runs/digits_mlp_ramda-1\n"
        "  dualprox shrink runs/cifar_resnet_ramda-1 --round-to 8 --onnx --out slim",
        formatter_class=raw,
    )
    shrinking.add_argument("folder", type=Path, metavar="RUN", help="a finished run folder")
    shrinking.add_argument("--out", type=Path, metavar="DIR", help="where to write; RUN itself")
    shrinking.add_argument(
        "--round-to",
        type=int,
        default=1,
        metavar="N",
        help="keep widths that shrink multiples of N, padded with dead channels; 1",
    )
    shrinking.add_argument(
        "--select-inputs",
        action="store_true",
        help="let layers select the inputs that they have weights for, where these have to stay",
    )
    shrinking.add_argument(
        "--onnx", action="store_true", help="write slim.onnx too, checked in onnxruntime"
    )
    shrinking.add_argument(
        "--program", action="store_true", help="write slim.pt2 too, a torch.export program"
    )
    shrinking.set_defaults(run=_shrink)

    listing = commands.add_parser("list", help="list the recipes and the tables")
    listing.set_defaults(run=_list)

    show = commands.add_parser(
        "show",
        help="show a run folder, a recipe or a table",
        epilog="example: dualprox show runs/rmda",
    )
    show.add_argument("what", metavar="RUN", help="a run folder, or the name of a recipe or table")
    show.set_defaults(run=_show)

    add_bench(commands)

    checkup = commands.add_parser("doctor", help="versions, devices, kernels and self-checks")
    checkup.set_defaults(run=doctor)
    return parser


def _train(args: argparse.Namespace) -> int:
    require_extras()
    from .train import check

    ranks.join()
    if args.resume is not None:
        if args.recipe or args.settings or args.out or args.seed is not None:
            raise UsageError("--resume takes everything from its folder: give nothing beside it")
        return _finish(args.resume)
    run = console.recipe_named(args.recipe or _DEFAULT)
    try:
        run = with_settings(run, args.settings)
        if args.seed is not None:
            run = replace(run, seed=args.seed)
        check(run)
    except ValueError as error:
        raise UsageError(str(error)) from None
    with contextlib.ExitStack() as stack:

        def begin() -> Path:
            work = functools.partial(_begin, run, is_named=args.out is not None)
            return stack.enter_context(console.begun(args.out, run.recipe, work))

        return _finish(ranks.from_first(begin))


def _begin(run: Run, folder: Path, is_named: bool) -> bool:
    """Make a run folder, unless torchrun's processes had made it before it restarted them.

    Returns:
        Whether it was made.
    """
    from .folders import mark_launch, marked_launch
    from .train import start

    if ranks.has_restarted() and is_named and marked_launch(folder) == ranks.launch():
        return False
    if ranks.may_restart() and not is_named:
        raise UsageError("--max-restarts needs --out DIR, where restarted processes find the run")
    start(run, folder)
    if ranks.may_restart():
        mark_launch(folder, ranks.launch())
    return True


def _finish(folder: Path) -> int:
    """Train what is left of a run folder, write its report and print it."""
    from .folders import read_run, reading
    from .report import write_report
    from .train import check, go_on

    def train() -> int:
        run = read_run(folder)
        if (folder / "summary.json").exists():
            print(f"{folder} is finished already:")
        else:
            try:
                check(run)
            except ValueError as error:
                raise UsageError(str(error)) from None
            console.print_caveat(run)
            names = [name for name in (run.baseline, run.recipe) if name]
            with console.progress(names) as show:
                training = go_on(folder, lambda run, row: show(run.recipe, run.epochs, row))
                if ranks.is_first():
                    with reading(folder):
                        write_report(training, folder)
        if ranks.is_first():
            _print_summary(folder, run)
        return 0

    return console.exit_code(train, f"go on with: dualprox train --resume {folder}")


def _print_summary(folder: Path, run: Run) -> None:
    from .folders import reading
    from .report import rows

    summary = read_json(folder / "summary.json")
    with reading(folder / "summary.json"):
        console.print_summary(f"{run.recipe}, seed {run.seed}", rows(summary), folder)


def _shrink(args: argparse.Namespace) -> int:
    require_extras()
    from .folders import RunFolderError
    from .networks import example_input
    from .slim import shrink_run, trained_model

    out = args.folder if args.out is None else args.out
    try:
        run, model, plan = trained_model(args.folder)
        slim, report = shrink_run(run, model, plan, out, args.round_to, args.select_inputs)
        print(report)
        if args.program:
            dp.save_program(slim, example_input(run), out / "slim.pt2")
        if args.onnx:
            apart = dp.save_onnx(slim, example_input(run), out / "slim.onnx")
            print(f"slim.onnx: onnxruntime's outputs differ from torch's by at most {apart:.3g}")
    except (RunFolderError, ValueError, ImportError, OSError) as error:
        raise UsageError(str(error)) from None
    except dp.ShrinkError as error:
        print(f"dualprox: {error}", file=sys.stderr)
        return 1
    print(f"written to {out}")
    return 0


def _list(args: argparse.Namespace) -> int:
    del args
    width = max(map(len, [*RECIPES, *TABLES]))
    for name, recipe in RECIPES.items():
        first_line = (recipe.__doc__ or "").partition("\n")[0]
        mark = "  (default)" if name == _DEFAULT else ""
        print(f"{name:{width}}  {recipe().epochs:>4} epochs  {first_line}{mark}")
    print("\ntables for `dualprox reproduce`:")
    for name, table in TABLES.items():
        print(f"{name:{width}}  {len(table.rows):>4} rows    {table.title} ({table.source})")
    return 0


def _show_named(name: str) -> bool:
    """Show the recipe, the table, or the row of a table of that name; False if there is none."""
    if name in TABLES:
        require_extras()
        show_table(TABLES[name])
        return True
    table = table_with(name)
    row = table.row(name) if table else None
    if name not in RECIPES and row is None:
        return False
    print(json.dumps(to_json(RECIPES[name]() if row is None else row.run), indent=2))
    return True


def _show(args: argparse.Namespace) -> int:
    folder = Path(args.what)
    there = os.path.exists(folder)
    if not there and _show_named(args.what):
        return 0
    from .folders import RunFolderError, made_by, reading

    shows = {"path": show_path, "fit": show_fit, "reproduce": show_reproduced}
    try:
        command = made_by(folder)
        if command is None:
            _show_run(folder)
        else:
            require_extras()
            with reading(folder):
                shows[command](folder)
    except RunFolderError as error:
        if there:
            raise UsageError(str(error)) from None
        raise UsageError(f"{args.what!r} is neither a run folder nor a recipe or table") from None
    return 0


def _show_run(folder: Path) -> None:
    """Print the settings of a run, and what it came to, or how far it is."""
    from .folders import read_run, reading

    run = read_run(folder)
    print(json.dumps(to_json(run), indent=2))
    if (folder / "summary.json").exists():
        require_extras()
        _print_summary(folder, run)
        return
    metrics = read_json_lines(folder / "metrics.jsonl")
    if metrics:
        console.print_caveat(run)
        with reading(folder / "metrics.jsonl"):
            print(console.live(metrics[-1]))
    print(
        f"unfinished, {len(metrics)} of {run.epochs} epochs; go on with: "
        f"dualprox train --resume {folder}"
    )
