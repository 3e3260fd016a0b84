"""`dualprox study`: small experiments whose right answer is known."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...files import write_csv, write_png
from ..usage import UsageError, require_extras
from .command import seeds_of

_PROBLEMS = ("logistic", "convolutions")


def add_study(commands: Any) -> None:
    """Add `dualprox study` to the subparsers of `dualprox`."""
    parser = commands.add_parser(
        "study",
        help="who finds a planted support, and whose gradient error vanishes",
        description="Train RMDA, RAMDA, ProxSGD and ProxGen on made-up data whose labels a sparse\n"
        "network decided, and write for each problem, as csv and png, which share of the groups\n"
        "is dead or live as planted and the accuracy, after every epoch, at the structured point;\n"
        "and for the logistic one how far the methods' gradient estimates are off (Lemma 1).",
        epilog="examples:\n"
        "  dualprox study planted\n"
        "  dualprox study planted --problems logistic --epochs 40 --seeds 0,1,2,3,4",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", choices=["planted"], help="which")
    parser.add_argument(
        "--problems", nargs="+", choices=_PROBLEMS, default=list(_PROBLEMS), help="which; all"
    )
    parser.add_argument("--epochs", type=int, default=20, metavar="N", help="of each run; 20")
    parser.add_argument("--seeds", default="0,1,2", metavar="A,B,...", help="0,1,2")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/planted"), metavar="DIR", help="runs/planted"
    )
    parser.set_defaults(run=_study)


def _study(args: argparse.Namespace) -> int:
    require_extras()
    seeds = seeds_of(args.seeds)
    if args.epochs < 1 or not seeds or min(seeds) < 0:
        raise UsageError("--epochs must be >= 1, and --seeds at least one number >= 0")
    import torch

    # As in every run: results are bit-identical only at the same number of threads.
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        for problem in args.problems:
            _write_epochs(problem, args.epochs, seeds, args.out)
        if "logistic" in args.problems:
            _write_variance(args.epochs, seeds, args.out)
    except OSError as error:
        raise UsageError(str(error)) from None
    print(f"written to {args.out}")
    return 0


def _write_epochs(problem: str, epochs: int, seeds: list[int], out: Path) -> None:
    """Train all methods on a problem; print where they end, write what was on the way."""
    from .planted_study import METHODS, follow, plot_epochs

    records = []
    for method in METHODS:
        runs = [follow(problem, method, epochs, seed) for seed in seeds]
        ends = " ".join(f"{run[-1].support_correctness:.1%}" for run in runs)
        told = " ".join(f"{run[-1].train_accuracy:.1%}" for run in runs)
        print(f"{problem:13} {method:8} support {ends}  training accuracy {told}", flush=True)
        records += [record for run in runs for record in run]
    write_csv(out / f"planted-{problem}.csv", [asdict(record) for record in records])
    write_png(out / f"planted-{problem}.png", plot_epochs(problem, records))


def _write_variance(epochs: int, seeds: list[int], out: Path) -> None:
    """Measure the errors of gradient estimates of all methods."""
    from .planted_study import METHODS, gradient_error_curve, plot_variance, variance_steps

    # The last of an epoch's 32 batches has 16 examples, not 64: its error compares with no other.
    steps = [step for step in variance_steps(32 * epochs - 1) if step % 32]
    curves = {m: [gradient_error_curve(m, steps, seed) for seed in seeds] for m in METHODS}
    rows = [
        {"method": method, "seed": seed, **asdict(record)}
        for method, runs in curves.items()
        for seed, run in zip(seeds, runs, strict=True)
        for record in run
    ]
    write_csv(out / "planted-variance.csv", rows)
    write_png(out / "planted-variance.png", plot_variance(curves))
