"""`dualprox bench`: arguments, and what is printed and stored."""

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ...files import write_png
from ...timing import Budget, threads
from ..console import wide_console
from ..usage import UsageError, require_extras

# Each is a module of this package with QUESTION, MODELS and run(settings).
QUESTIONS = {
    "step": "one optimizer step: ours in every implementation, AdamW, MADGRAD, as published",
    "subproblem": "iterations and time of each solver to a given certificate",
    "nuclear": "the prox of the nuclear norm, cold and warm, beside a full SVD",
    "memory": "bytes of state per parameter, and the peak of a step",
    "scale": "time of a step against parameters, threads and number of tensors",
}
_QUICK = Budget(seconds=0.0, least=2, most=2)


def add_bench(commands: Any) -> None:
    """Add the group of commands to the subparsers of `dualprox`."""
    raw = argparse.RawDescriptionHelpFormatter
    bench = commands.add_parser(
        "bench",
        help="time optimizers, solvers and kernels",
        description="Time and check what dualprox does, one question per command. Contenders take\n"
        "turns in one process; a result names machine, versions and commit.",
        epilog="examples:\n"
        "  dualprox bench step                      everything on this CPU, up to half an hour\n"
        "  dualprox bench step --device cuda        check and time everything on a GPU\n"
        "  dualprox bench step --models tiny --seconds 0.5\n"
        "  dualprox bench nuclear --threads 1 --json -\n"
        "  dualprox bench step --save               store the result, from a clean git tree\n"
        "  dualprox bench table --write             the README's numbers from what is stored",
        formatter_class=raw,
    )
    questions = bench.add_subparsers(required=True, metavar="QUESTION")
    for name, about in QUESTIONS.items():
        module = import_module(f".{name}", __package__)
        parser = questions.add_parser(
            name, help=about, description=module.__doc__, formatter_class=raw
        )
        _add_options(parser, module.MODELS)
        parser.set_defaults(run=_run, question=name)
    table = questions.add_parser(
        "table",
        help="print the README's numbers, made from the stored results",
        description="Print the blocks of numbers in the README, made from the stored results.",
    )
    table.add_argument("--results", type=Path, metavar="DIR", help="benchmarks/results")
    table.add_argument(
        "--write",
        nargs="?",
        const="",
        metavar="README",
        help="replace the block in this file; the repository's README.md if none is named",
    )
    table.set_defaults(run=_table)


def _add_options(parser: argparse.ArgumentParser, models: tuple[str, ...]) -> None:
    parser.add_argument("--device", default="cpu", metavar="cpu|cuda", help="default: cpu")
    parser.add_argument("--threads", metavar="N", help="of torch on the CPU; default: torch's own")
    parser.add_argument(
        "--models", metavar="A,B", help=f"only these, of {', '.join(models)}; default: all"
    )
    parser.add_argument(
        "--seconds", metavar="S", help=f"to time each contender for; default: {Budget().seconds:g}"
    )
    parser.add_argument(
        "--repeats", metavar="N", help=f"fewest samples of each; default: {Budget().least}"
    )
    parser.add_argument("--json", metavar="PATH", help="write the result as JSON; - for stdout")
    parser.add_argument("--png", metavar="PATH", help="draw the result")
    parser.add_argument(
        "--save",
        nargs="?",
        const="",
        metavar="DIR",
        help="store JSON and PNG as QUESTION-DEVICE in DIR, default benchmarks/results; refused "
        "if files differ from the commit",
    )
    parser.add_argument(
        "--commit", metavar="HASH", help="what --save records for a copy of the code without git"
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny shapes, two samples: only to see that it runs"
    )


def _number(text: str | None, name: str, rule: str, kind: Any, least: float) -> Any:
    """A number of an option, or None where it is not given."""
    if text is None:
        return None
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not least <= value < float("inf"):
        raise UsageError(f"--{name} must be {rule}, got {text!r}")
    return value


def _device(name: str) -> torch.device:
    if name not in ("cpu", "cuda"):
        raise UsageError(f"--device must be cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda needs a GPU that torch can use, and finds none")
    return torch.device(name, 0) if name == "cuda" else torch.device(name)


def _models(text: str | None, known: tuple[str, ...]) -> tuple[str, ...]:
    if text is None:
        return known
    chosen = tuple(dict.fromkeys(text.split(",")))
    for name in chosen:
        if name not in known:
            raise UsageError(f"--models must be of {', '.join(known)}, got {name!r}")
    return chosen


def _writable(path: str | None, name: str) -> None:
    """Find out before the work whether a file can be written after it."""
    if path is None or path == "-":
        return
    folder = Path(path).parent
    if Path(path).is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"--{name} must be a file in a folder that exists, got {path!r}")


def _run(args: argparse.Namespace) -> int:
    """Answer one question."""
    from . import results
    from .settings import Settings

    module = import_module(f".{args.question}", __package__)
    device = _device(args.device)
    count = _number(args.threads, "threads", "a whole number >= 1", int, 1)
    seconds = _number(args.seconds, "seconds", "a number >= 0", float, 0.0)
    repeats = _number(args.repeats, "repeats", "a whole number >= 1", int, 1)
    models = _models(args.models, module.MODELS)
    _writable(args.json, "json")
    _writable(args.png, "png")
    if args.commit is not None and args.save is None:
        raise UsageError(f"--commit goes with --save, got {args.commit!r} alone")
    if args.save is not None:
        results.require_storable(args.quick, args.commit)
        _folder(args.save)  # raises now, not after the work
    require_extras()
    base = _QUICK if args.quick else Budget()
    least = base.least if repeats is None else repeats
    budget = Budget(base.seconds if seconds is None else seconds, least, max(base.most, least))
    settings = Settings(device, budget, models, args.quick)
    try:
        with threads(count) as used:
            environment = results.environment(device, used)
            found = module.run(settings)
    except KeyboardInterrupt:
        print("\nstopped; nothing was written", file=sys.stderr)
        return 130
    if args.save is not None:
        environment["commit"] = environment["commit"] or args.commit
    told = {
        "models": list(models),
        "seconds": budget.seconds,
        "repeats": budget.least,
        "quick": args.quick,
    }
    result = results.complete(args.question, found, environment, told)
    return _report(result, args)


def _report(result: dict[str, Any], args: argparse.Namespace) -> int:
    """Print the tables and write what was asked for; 1 if a check found something wrong."""
    from . import results
    from .check import passed
    from .plots import plot

    if args.json == "-":
        results.write_to(result, "-")
    else:
        _print(result)
    right = passed(result.get("checks", []))
    if not right:
        print("dualprox: implementations differ from the eager definition", file=sys.stderr)
    if args.json is not None and args.json != "-":
        results.write_to(result, args.json)
    if args.png is not None:
        write_png(Path(args.png), plot(result))
    if args.save is not None and right:
        paths = results.store(result, _folder(args.save))
        print(f"stored {paths[0]} and {paths[1]}", file=sys.stderr)
    elif args.save is not None:
        print("dualprox: not stored", file=sys.stderr)
    return 0 if right else 1


def _folder(given: str) -> Path:
    """The folder of the stored results: the one named, or the repository's."""
    from .results import repository

    if given:
        return Path(given)
    root = repository()
    if root is None:
        raise UsageError("there is no git checkout to find benchmarks/results in; name a folder")
    return root / "benchmarks" / "results"


def _print(result: dict[str, Any]) -> None:
    from rich.table import Table as Printed

    from .tables import origin, tables

    console = wide_console()
    for table in tables(result):
        printed = Printed(title=table.title, title_justify="left")
        for index, column in enumerate(table.columns):
            printed.add_column(
                column, justify="left" if index < table.left else "right", no_wrap=index == 0
            )
        for row in table.rows:
            printed.add_row(*row)
        console.print(printed)
        for note in table.notes:
            console.print(note, highlight=False, markup=False)
    console.print(origin(result), highlight=False, markup=False)


def _table(args: argparse.Namespace) -> int:
    """Print or write the README's block."""
    from .readme import blocks, rewrite
    from .results import repository

    folder = args.results or _folder("")
    if args.write is None:
        found = [content for content in blocks(folder).values() if content]
        print("\n\n".join(found) or f"no results are stored in {folder}")
        return 0
    root = repository()
    if not args.write and root is None:
        raise UsageError("there is no git checkout to find README.md in; name the file")
    assert args.write or root is not None
    rewrite(Path(args.write) if args.write else Path(str(root)) / "README.md", folder)
    return 0
