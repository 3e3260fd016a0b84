"""Processes that a test starts together, and what they report."""

import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

Case = tuple[str, Callable[[], None]]


def environment(**more: str) -> dict[str, str]:
    """For a process that imports what this one does, with one thread."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def started(world: int, *command: object) -> list[tuple[int, str, str]]:
    """Exit codes, outputs and errors of processes that find each other as those of torchrun do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world)}
    workers = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=environment(RANK=str(rank), **shared),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        texts = [worker.communicate(timeout=240) for worker in workers]
        return [(worker.returncode, *pair) for worker, pair in zip(workers, texts, strict=True)]
    finally:
        for worker in workers:
            worker.kill()


def outcomes(cases: Sequence[Case]) -> dict[str, str]:
    """The traceback of each case that fails, "" of the others."""
    found = {}
    for name, case in cases:
        try:
            case()
            found[name] = ""
        except Exception:
            found[name] = traceback.format_exc()
    return found
