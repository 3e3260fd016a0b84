"""The command: python -m benchmarks.frontier run | report."""

import argparse
import sys
from pathlib import Path

from . import runner
from .record import Job
from .registry import METHODS
from .report import report
from .tasks import TASKS


def names(text: str, known: dict, option: str) -> list[str]:
    """The names in a list with commas, or all.

    Raises:
        SystemExit: one is not known.
    """
    chosen = list(known) if text == "all" else text.split(",")
    for name in chosen:
        if name not in known:
            raise SystemExit(f"{option} must be all or of {', '.join(known)}, got {name!r}")
    return chosen


def fractions(text: str) -> list[float]:
    """Sizes in (0, 1), with commas between them."""
    found = [float(word) for word in text.split(",")]
    if not all(0 < size < 1 for size in found):
        raise argparse.ArgumentTypeError(f"must be fractions in (0, 1), got {text!r}")
    return found


def whole(text: str) -> list[int]:
    """Whole numbers, with commas between them."""
    return [int(word) for word in text.split(",")]


def interpreter(text: str) -> tuple[str, str]:
    """METHOD=PATH, in two."""
    method, mark, path = text.partition("=")
    if not mark or method not in METHODS:
        raise argparse.ArgumentTypeError(f"must be METHOD=PATH of a known method, got {text!r}")
    return method, path


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.frontier")
    commands = made.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="tune and run what is not done yet")
    run.add_argument("--task", default="all", help="names with commas, or all")
    run.add_argument("--methods", default="all", help="names with commas, or all")
    run.add_argument("--sizes", type=fractions, default=[0.02, 0.05, 0.1, 0.3])
    run.add_argument("--seeds", type=whole, default=[0, 1, 2])
    run.add_argument("--tries", type=int, default=3, help="settings that each method may try")
    run.add_argument("--workers", type=int, default=4, help="processes at a time; 0: this one")
    run.add_argument("--retry", action="store_true", help="run again what failed")
    run.add_argument(
        "--python",
        action="append",
        type=interpreter,
        default=[],
        metavar="METHOD=PATH",
        help="another interpreter for a method that cannot run in this one",
    )
    one = commands.add_parser("one", help="one run; what the queue calls")
    one.add_argument("--task", required=True)
    one.add_argument("--method", required=True)
    one.add_argument("--seed", type=int, required=True)
    one.add_argument("--size", type=float)
    one.add_argument("--setting", type=int, default=0)
    one.add_argument("--tries", type=int, default=1)
    one.add_argument("--tuning", action="store_true")
    for command in (run, one):
        command.add_argument("--data", type=Path, required=True, help="the data folder")
    told = commands.add_parser("report", help="table, CSV and figures of what is done")
    told.add_argument("--to", type=Path, default=runner.ROOT / "benchmarks/results/frontier")
    for command in (run, one, told):
        command.add_argument("--out", type=Path, required=True, help="the folder of the records")
    return made


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.command == "report":
        print(report(args.out, args.to))
        return 0
    if args.command == "one":
        job = Job(args.task, args.method, args.seed, args.size, args.setting, args.tuning)
        plan = runner.Plan(TASKS, METHODS, (), (), args.tries, args.data, args.out, 0)
        return 0 if runner.in_process(plan, job)["status"] == "ok" else 1
    if args.tries < 1 or args.workers < 0:
        raise SystemExit(
            f"--tries must be >= 1 and --workers >= 0, got {args.tries} and {args.workers}"
        )
    runner.run(
        runner.Plan(
            {name: TASKS[name] for name in names(args.task, TASKS, "--task")},
            {name: METHODS[name] for name in names(args.methods, METHODS, "--methods")},
            args.sizes,
            args.seeds,
            args.tries,
            args.data,
            args.out,
            args.workers,
            args.retry,
            dict(args.python),
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
