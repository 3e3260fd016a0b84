"""How tests run the cases of several processes: all of a module in one start, then one by one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from promises import Tries

WORKER = Path(__file__).with_name("sharded_worker.py")
Failures = list[dict[str, str]]

gloo = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="torch was built without gloo",
)


def failures_of(module: str, world: int, folder: Path) -> Failures:
    """Of every case of a module, what each of `world` processes has to say: "" for none."""
    path = os.pathsep.join([str(WORKER.parent), *filter(None, sys.path)])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    # One that crashes says where.
    command = [sys.executable, "-X", "faulthandler", str(WORKER), module]
    workers = [
        subprocess.Popen([*command, str(rank), str(world), str(folder)], env=env)
        for rank in range(world)
    ]
    try:
        for worker in workers:
            worker.wait(timeout=600)
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0] * world
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def report(failures: Failures, wanted: str, tries: Tries | None = None) -> str:
    """The tracebacks of the cases whose names match, of which there must be some."""
    cases = [name for name in failures[0] if re.match(wanted, name)]
    assert cases, f"the processes did not get there: {report(failures, '')}"
    if tries is not None:
        failed = sum(any(each[name] for each in failures) for name in cases)
        tries.add(len(cases), failed)
    return "\n".join(f"{name}: {each[name]}" for each in failures for name in cases if each[name])
