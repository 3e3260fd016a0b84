"""What every benchmark is told, and how it says where it is."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ...timing import Budget


@dataclass(frozen=True)
class Settings:
    """How to run a benchmark.

    Args:
        device: where the tensors live.
        budget: how long to time each contender.
        models: the workloads, shapes or problems to look at, by name.
        quick: tiny shapes, to see that everything runs; the times mean nothing.
    """

    device: torch.device
    budget: Budget
    models: tuple[str, ...]
    quick: bool = False

    @contextmanager
    def progress(self, what: str) -> Iterator[Callable[[str], object]]:
        """Say on stderr what is going on: a changing line on a terminal, else one now and then.

        The line is drawn between samples by the thread that takes them: one that drew by itself
        would be timed too.
        """
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        told = time.monotonic()
        if not console.is_terminal:
            print(what, file=sys.stderr, flush=True)

            def say(detail: str) -> None:
                nonlocal told
                if time.monotonic() > told + 30:
                    print(f"{what}: {detail}", file=sys.stderr, flush=True)
                    told = time.monotonic()

            yield say
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=console, auto_refresh=False, transient=True) as bar:
            task = bar.add_task(what, total=None)

            def draw(detail: str) -> None:
                nonlocal told
                if time.monotonic() > told + 0.2:
                    bar.update(task, description=f"{what}: {detail}", refresh=True)
                    told = time.monotonic()

            yield draw


def proc_line(file: str, name: str) -> str | None:
    """The first value that Linux gives `name` in /proc/`file`; None elsewhere."""
    path = Path("/proc") / file
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)
