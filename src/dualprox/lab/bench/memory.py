"""How much memory does an optimizer keep, and how much more does one step take?

    dualprox bench memory

State is counted exactly: the bytes of every storage in `opt.state`, each once. The peak of a step
is what its temporaries add to what was allocated before, after two steps that made the state. On
the CPU the profiler tells every allocation of torch (scratch that a native kernel takes elsewhere
is not seen); on a GPU the allocator keeps the peak.
"""

import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .contenders import (
    BUFFERS,
    Contender,
    NotHereError,
    Runner,
    bytes_free,
    bytes_needed,
    contenders,
)
from .settings import Settings
from .workloads import WORKLOADS, Training, Workload

QUESTION = "How much memory does an optimizer keep, and how much more does one step take?"
MODELS = ("resnet50", "transformer", "tiny")
# State beyond the buffers that is allowed for each group and each tensor: counters, a warm start.
ALLOWANCE = 64


def state_bytes(opt: torch.optim.Optimizer) -> int:
    """Bytes of all tensors in the state."""
    storages: dict[int, int] = {}

    def visit(value: object) -> None:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, dict):
            for inner in value.values():
                visit(inner)

    for value in opt.state.values():
        visit(value)
    return sum(storages.values())


def step_peak(runner: Runner, device: torch.device) -> int:
    """Bytes that a step allocates beyond what is there before it, at most at once."""
    runner.prepare()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        runner.opt.step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its notes are not for our users
    activities = [torch.profiler.ProfilerActivity.CPU]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the profiler warns of things that do not matter here
        with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
            runner.opt.step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    held = peak = 0
    moves = [event for event in events if event.get("name") == "[memory]"]
    for event in sorted(moves, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


def run(settings: Settings) -> dict[str, Any]:
    """The result without its environment; see `results`."""
    rows: list[dict[str, Any]] = []
    for name in settings.models:
        workload = WORKLOADS[name]()
        workload = workload.shrunk() if settings.quick else workload
        with settings.progress(f"memory of {workload.title}") as tell:
            rows += _rows(workload, settings, tell)
    return {"rows": rows, "figures": figures(rows)}


def _rows(
    workload: Workload, settings: Settings, tell: Callable[[str], object]
) -> list[dict[str, Any]]:
    chosen = [one for one in contenders() if one.impl != "as published"]
    needed, free = (
        bytes_needed(workload, chosen[:1], settings.device, 1),
        bytes_free(settings.device),
    )
    training = (
        None if free is not None and needed > free else Training(workload, settings.device, sets=1)
    )
    rows = []
    for contender in chosen:
        tell(contender.name)
        row: dict[str, Any] = {
            "workload": workload.name,
            "title": workload.title,
            "parameters": workload.parameters,
            "groups": workload.groups,
            "tensors": len(workload.weights),
            "contender": contender.name,
            "method": contender.method,
            "missing": "too little memory" if training is None else None,
            "state_bytes": None,
            "state_per_parameter": None,
            "peak_bytes": None,
        }
        if training is not None:
            row |= _measure(contender, training, settings.device)
        rows.append(row)
    return rows


def _measure(contender: Contender, training: Training, device: torch.device) -> dict[str, Any]:
    try:
        runner = Runner(contender, training)
    except NotHereError as reason:
        return {"missing": str(reason)}
    runner.prepare()
    runner.opt.step()
    kept = state_bytes(runner.opt)
    return {
        "state_bytes": kept,
        "state_per_parameter": kept / training.workload.parameters,
        "peak_bytes": step_peak(runner, device),
    }


def figures(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """State of ours: 4 bytes per buffer and parameter, and at most `ALLOWANCE` per group."""
    found = []
    for row in rows:
        if row["method"] not in BUFFERS or row["missing"]:
            continue
        promised = 4 * BUFFERS[row["method"]]
        bound = promised + ALLOWANCE * (row["groups"] + row["tensors"]) / row["parameters"]
        value = row["state_per_parameter"]
        found.append(
            {
                "workload": row["workload"],
                "ratio_of": f"{row['contender']}: state bytes",
                "to": "parameters",
                "bound": bound,
                "value": value,
                "met": value <= bound,
                "missing": None,
            }
        )
    return found
