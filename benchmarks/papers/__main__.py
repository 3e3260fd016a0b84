"""The command: python -m benchmarks.papers add | time | write."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from dualprox.lab.bench.results import require_storable
from dualprox.lab.experiments.optimality import is_convex
from dualprox.lab.experiments.results import gather
from dualprox.lab.usage import UsageError
from dualprox.timing import Budget

from . import page, records, times

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "benchmarks" / "results" / "papers"


def commit(text: str) -> str:
    """A hash of git's."""
    if not re.fullmatch("[0-9a-f]{7,40}", text):
        raise argparse.ArgumentTypeError(f"must be a hash of git's, got {text!r}")
    return text


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.papers")
    commands = made.add_subparsers(dest="command", required=True)
    add = commands.add_parser("add", help="keep records of run folders")
    add.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    add.add_argument("--commit", type=commit, required=True, help="of the code that trained them")
    add.add_argument(
        "--optimum",
        type=Path,
        metavar="FOLDER",
        help="measure convex runs beside their optimum, too, and keep that in this folder",
    )
    time = commands.add_parser("time", help="time steps with every solver of the subproblem")
    time.add_argument("network", choices=times.NETWORKS)
    time.add_argument("--set", nargs="+", default=[], dest="settings", metavar="FIELD=VALUE")
    time.add_argument("--warm", type=int, default=50, help="steps before the first timed; 50")
    time.add_argument("--seconds", type=float, default=5.0, help="for each contender; 5")
    commands.add_parser("write", help="make docs/results.md of the records")
    for command in commands.choices.values():
        command.add_argument("--records", type=Path, default=RECORDS, metavar="DIR")
    return made


def add(folders: Sequence[Path], given: str, optimum: Path | None, to: Path) -> None:
    """Keep what is finished in the folders."""
    for folder in folders:
        if (folder / "planted-variance.csv").exists():
            records.keep(records.planted_record(folder, given), to / "planted.json")
            continue
        results, unfinished = gather([folder])
        for each in unfinished:
            print(f"unfinished, left out: {each}")
        for result in results:
            assert result.folder is not None
            name = result.folder.name
            if optimum is not None and is_convex(result.run):
                result, best = records.optimum_of(result, optimum)
                strength = f"{best['strength']:g}"
                records.keep(best, to / f"optimum-{result.run.data}-{strength}.json")
            records.keep(records.record_of(result, given), to / f"{name}.json")
            print(name)


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        if args.command == "add":
            add(args.folders, args.commit, args.optimum, args.records)
        elif args.command == "time":
            require_storable(False, None)
            budget = Budget(seconds=args.seconds)
            found = times.measure(args.network, args.settings, args.warm, budget)
            device = found["environment"]["device"]
            records.keep(found, args.records / f"times-{args.network}-{device}.json")
        else:
            page.write(args.records, ROOT / "docs")
    except (UsageError, ValueError) as error:
        print(f"papers: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
