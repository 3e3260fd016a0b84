"""How does the time of a step grow with parameters, threads and the number of tensors?

    dualprox bench scale

Three sweeps of RMDA and RAMDA with group LASSO and of fused AdamW, one size after the other, the
methods in turns: parameters of one square matrix; threads, on the CPU; equal tensors among which
the same number of parameters is shared out.
"""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch

from ...timing import Case, clock_of, interleave, threads
from .contenders import BASELINE, METHODS, Contender, Runner
from .settings import Settings
from .workloads import Training, Weight, Workload

QUESTION = "How does the time of a step grow with parameters, threads and tensors?"
MODELS = ("parameters", "threads", "tensors")
_SIDES = (64, 128, 256, 512, 1024, 2048, 4096)
_COUNTS = (1, 4, 16, 64, 256, 1024)
_SIDE = 2048  # of the matrix in the other two sweeps


def entrants() -> list[Contender]:
    """The baseline first; ours as a user gets them."""
    ours = [
        Contender(name, name, "auto", METHODS[name], buffers)
        for name, buffers in (("RMDA", 2), ("RAMDA", 3))
    ]
    return [
        Contender(BASELINE, "AdamW", "torch", lambda g: torch.optim.AdamW(g, fused=True), 2),
        *ours,
    ]


def square(side: int, count: int = 1) -> Workload:
    """`count` tensors that together have side * side entries."""
    rows = side // count
    return Workload("", "", tuple(Weight(f"weight{i}", (rows, side), 1) for i in range(count)))


def thread_counts() -> list[int]:
    """Powers of two up to the number of cores, and that number."""
    cores = os.cpu_count() or 1
    powers = [2**k for k in range(cores.bit_length())]
    return sorted({*(count for count in powers if count <= cores), cores})


def run(settings: Settings) -> dict[str, Any]:
    """The result without its environment; see `results`."""
    sweeps: dict[str, Callable[[], list[tuple[int, Workload]]]] = {
        "parameters": lambda: [
            (side * side, square(side)) for side in (_SIDES[:2] if settings.quick else _SIDES)
        ],
        "threads": lambda: [
            (count, square(64 if settings.quick else _SIDE)) for count in thread_counts()
        ],
        "tensors": lambda: [
            (count, square(64 if settings.quick else _SIDE, count))
            for count in (_COUNTS[:2] if settings.quick else _COUNTS)
        ],
    }
    rows: list[dict[str, Any]] = []
    for sweep in settings.models:
        if sweep == "threads" and settings.device.type != "cpu":
            continue
        with settings.progress(f"scale with {sweep}") as tell:
            for size, workload in sweeps[sweep]():
                tell(str(size))
                with threads(size if sweep == "threads" else None):
                    rows += list(_rows(sweep, size, workload, settings))
    return {"rows": rows, "slopes": slopes(rows)}


def _rows(
    sweep: str, size: int, workload: Workload, settings: Settings
) -> Iterator[dict[str, Any]]:
    training = Training(workload, settings.device)
    runners = {one.name: Runner(one, training) for one in entrants()}
    cases = {name: Case(runner.opt.step, runner.prepare) for name, runner in runners.items()}
    timings = interleave(cases, clock_of(settings.device), settings.budget)
    for name in runners:
        yield {
            "sweep": sweep,
            "size": size,
            "parameters": workload.parameters,
            "tensors": len(workload.weights),
            "contender": name,
            **asdict(timings[name]),
            "ratio": timings[name].median / timings[BASELINE].median,
        }


def slopes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The power of the size that the time grows with, between the two largest sizes."""
    found = []
    for sweep, name in dict.fromkeys((row["sweep"], row["contender"]) for row in rows):
        line = [row for row in rows if (row["sweep"], row["contender"]) == (sweep, name)]
        if len(line) < 2:
            continue
        low, high = line[-2:]
        power = math.log(high["median"] / low["median"]) / math.log(high["size"] / low["size"])
        found.append({"sweep": sweep, "contender": name, "slope": power})
    return found
