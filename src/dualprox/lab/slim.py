"""The end of a run: the network that is left, smaller, beside the one that it came from."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import dualprox as dp

from ..checks import require
from ..files import write_json
from .checkpoints import newest
from .folders import RunFolderError, read_run, reading
from .networks import example_input, make_model
from .settings import Run

SLIM_FILES = ("slim.safetensors", "plan.json", "shrink.json", "shrink.png")


def trained_model(folder: Path) -> tuple[Run, nn.Module, dp.Plan]:
    """The run of a finished folder, its network at the structured point, and how it was cut.

    Raises:
        RunFolderError: it is no run folder, or not finished.
    """
    from safetensors.torch import load_file

    run = read_run(folder)
    saved = newest(folder, run)
    weights = folder / "model.safetensors"
    if saved is None or not weights.exists():
        raise RunFolderError(f"{folder} is not finished; dualprox train --resume {folder}")
    torch.set_num_threads(run.threads)
    with reading(saved.path):
        plan = dp.Plan.from_dict(json.loads(saved.state["plan"]))
        model = dp.apply_plan(make_model(run), plan)
    with reading(weights):
        model.load_state_dict(load_file(str(weights)))
    return run, model, plan


def shrink_run(
    run: Run,
    model: nn.Module,
    plan: dp.Plan,
    folder: Path,
    round_to: int = 1,
    select_inputs: bool = False,
    latency: bool = True,
) -> tuple[nn.Module, dp.ShrinkReport]:
    """Shrink the network of a run, or factorize it, and write what comes of it into a folder.

    Args:
        run: the run.
        model: its network at the structured point, in memory.
        plan: how that was cut out of the recipe's network while it was trained.
        folder: for `slim.safetensors`, `plan.json`, `shrink.json` and `shrink.png`.
        round_to: as in `dualprox.shrink`.
        select_inputs: as in `dualprox.shrink`.
        latency: whether to take times.

    Returns:
        The slim network, on the CPU, and its report, which compares it with the recipe's network.

    Raises:
        ValueError: inputs are to be selected where the penalty is for low rank, or the network is
            none that can shrink.
    """
    if run.device != "cpu":
        model = copy.deepcopy(model).cpu()
    example = example_input(run)
    if isinstance(run.penalty, dp.NuclearNorm):
        rule = f"False for {type(run.penalty).__name__}, which is factorized"
        require(not select_inputs, "select_inputs", rule, select_inputs)
        slim = dp.factorize(model, example, latency=latency)
    else:
        slim = dp.shrink(
            model,
            example,
            round_to=round_to,
            select_inputs=select_inputs,
            latency=latency and not plan.keep,
        )
    report = dp.report_of(slim)
    if plan.keep:
        before, after = dp.compare(make_model(run), slim, example, latency=latency)
        whole = dp.Plan.from_dict(report.plan).after(plan)
        report = replace(report, before=before, after=after, plan=whole.to_dict())
        slim.__dict__["report"] = report
    write_slim(slim, folder)
    return slim, report


def write_slim(slim: nn.Module, folder: Path) -> None:
    """Write `SLIM_FILES`: the slim network, the plan that rebuilds it, and its report."""
    report = dp.report_of(slim)
    dp.save_slim(slim, folder)
    write_json(folder / "shrink.json", report.to_dict())
    report.plot(folder / "shrink.png")


def summary_of(report: dp.ShrinkReport) -> dict[str, Any]:
    """What summary.json says of the slim network; times in milliseconds at the first batch size."""
    found: dict[str, Any] = {
        "params_dense": report.before.parameters,
        "params_slim": report.after.parameters,
        "macs_dense": report.before.macs,
        "macs_slim": report.after.macs,
        "slim_max_abs_diff": report.max_abs_diff,
    }
    for name, cost in (("dense", report.before), ("slim", report.after)):
        for number, latency in enumerate(cost.latencies):
            key = f"latency_{name}_ms" + (f"_batch_{latency.batch_size}" if number else "")
            found[key] = None if latency.timing is None else 1e3 * latency.timing.median
    return found
