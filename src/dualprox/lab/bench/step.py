"""How long does one optimizer step take, beside torch's own AdamW and the published solvers?

    dualprox bench step
    dualprox bench step --device cuda

Every implementation is checked against the eager definition before anything is timed. All
contenders then step in turns in one process, each with weights and state of its own and the same
gradients; the time to hand out gradients does not count.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ...timing import Case, clock_of, interleave
from .check import check, quality, to_rows
from .contenders import (
    BASELINE,
    IMPLS,
    METHODS,
    Contender,
    NotHereError,
    Runner,
    bytes_free,
    bytes_needed,
    contenders,
)
from .settings import Settings
from .workloads import WORKLOADS, Training, Workload

QUESTION = "How long does one optimizer step take, and does it compute the right thing?"
MODELS = tuple(WORKLOADS)


@dataclass(frozen=True)
class Figure:
    """A bound on the ratio of two medians.

    Args:
        device: "cpu" or "cuda".
        models: workloads it is about.
        contender: the numerator.
        against: the denominator.
        bound: the largest ratio that meets it.
    """

    device: str
    models: tuple[str, ...]
    contender: str
    against: str
    bound: float


_LARGE = ("resnet50", "transformer")
FIGURES = (
    Figure("cpu", _LARGE, "RMDA native", BASELINE, 1.5),
    Figure("cpu", _LARGE, "ProxSGD native", BASELINE, 1.5),
    Figure("cpu", _LARGE, "RAMDA native", BASELINE, 2.5),
    Figure("cpu", _LARGE, "ProxAdamW native", BASELINE, 2.5),
    Figure("cpu", _LARGE, "RAMDA native", "RAMDA published, PG(100)", 0.01),
    Figure("cpu", ("tiny",), "RAMDA native", BASELINE, 2.0),
    Figure("cuda", _LARGE, "RMDA triton", BASELINE, 1.2),
    Figure("cuda", _LARGE, "ProxSGD triton", BASELINE, 1.2),
    Figure("cuda", _LARGE, "RAMDA triton", BASELINE, 1.4),
    Figure("cuda", _LARGE, "ProxAdamW triton", BASELINE, 1.4),
)


def run(settings: Settings) -> dict[str, Any]:
    """The result without its environment; see `results`."""
    workloads = [WORKLOADS[name]() for name in settings.models]
    if settings.quick:
        workloads = [workload.shrunk() for workload in workloads]
    checks: list[dict[str, Any]] = []
    for workload in workloads:
        with settings.progress(f"checking {workload.title}") as tell:
            checks += to_rows(check(workload, settings.device, tell))
    rows: list[dict[str, Any]] = []
    for workload in workloads:
        with settings.progress(f"timing {workload.title}") as tell:
            rows += _time(workload, settings, tell)
    return {
        "checks": checks,
        "rows": rows,
        "figures": figures(rows, settings.device.type, settings.models),
    }


def _time(
    workload: Workload, settings: Settings, tell: Callable[[str], object]
) -> list[dict[str, Any]]:
    """One row per contender."""
    chosen = contenders()
    shared = {
        "workload": workload.name,
        "title": workload.title,
        "parameters": workload.parameters,
        "groups": workload.groups,
        "tensors": len(workload.weights),
    }
    needed, free = bytes_needed(workload, chosen, settings.device), bytes_free(settings.device)
    if free is not None and needed > free:
        reason = f"needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
        return [_row(shared, contender, reason) for contender in chosen]
    training = Training(workload, settings.device)
    runners: dict[str, Runner] = {}
    missing: dict[str, str] = {}
    for contender in chosen:
        tell(contender.name)
        try:
            runners[contender.name] = Runner(contender, training)
        except NotHereError as reason:
            missing[contender.name] = str(reason)
    cases = {name: Case(runner.opt.step, runner.prepare) for name, runner in runners.items()}
    timings = interleave(cases, clock_of(settings.device), settings.budget, tell)
    baseline = timings[BASELINE].median
    rows = []
    for contender in chosen:
        row = _row(shared, contender, missing.get(contender.name))
        if contender.name in timings:
            row |= asdict(timings[contender.name])
            row["ratio"] = timings[contender.name].median / baseline
            if contender.impl in IMPLS and workload.groups:
                tell(f"{contender.name}, dead groups")
                row["dead_share"] = runners[contender.name].dead_share()
        rows.append(row)
    cases.clear()
    runners.clear()
    _add_quality(rows, chosen, workload, settings, tell)
    return rows


def _row(shared: dict[str, Any], contender: Contender, missing: str | None) -> dict[str, Any]:
    """A row before it is timed."""
    fields = ("median", "q1", "q3", "samples", "calls", "ratio", "dead_share", "quality")
    empty = dict.fromkeys(fields)
    names = {"contender": contender.name, "method": contender.method, "impl": contender.impl}
    return {**shared, **names, "missing": missing, **empty}


def _add_quality(
    rows: list[dict[str, Any]],
    chosen: list[Contender],
    workload: Workload,
    settings: Settings,
    tell: Callable[[str], object],
) -> None:
    """What a step of each of our contenders reaches, on the distinct shapes."""
    training = Training(workload.distinct(), settings.device)
    for row, contender in zip(rows, chosen, strict=True):
        if row["missing"] is None and contender.method in METHODS and workload.groups:
            tell(f"{contender.name}, quality")
            row["quality"] = asdict(quality(contender.make, training))


def figures(
    rows: list[dict[str, Any]], device: str, models: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Each bound for this device and whether it is met: True, False, or None where not measured."""
    found = []
    medians = {(row["workload"], row["contender"]): row for row in rows}
    for figure in FIGURES:
        for model in figure.models if figure.device == device else ():
            if model not in models:
                continue
            top, bottom = (medians[model, name] for name in (figure.contender, figure.against))
            missing = top["missing"] or bottom["missing"]
            value = None if missing else top["median"] / bottom["median"]
            found.append(
                {
                    "workload": model,
                    "ratio_of": figure.contender,
                    "to": figure.against,
                    "bound": figure.bound,
                    "value": value,
                    "met": None if value is None else value <= figure.bound,
                    "missing": missing,
                }
            )
    return found
