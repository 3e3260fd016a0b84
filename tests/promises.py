"""Records of what the tests of a promise tried: the source of docs/reliability.md.

    DUALPROX_PROMISES=benchmarks/results/reliability/promises.json ./dev test -k ...
    python benchmarks/reliability.py

A test keeps a promise with `@pytest.mark.promise(area, text, unit)`; the area is one of `AREAS`.
The fixture `tries` counts: `tries.add(30)` after thirty attempts, or `with tries.one():` around
each. A test that counts nothing is one try. Tests with the same words are one promise, whose
parameters add up. Records of tests that did not run this time stay as they are.
"""

import contextlib
import json
import platform
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch

from dualprox.files import write_json

AREAS = ("processes", "checkpoints", "faults", "numbers", "input", "long runs", "determinism")


class Tries:
    """How often a test tried what it promises, and how often that failed."""

    def __init__(self) -> None:
        self.tried = self.failed = 0

    def add(self, tried: int, failed: int = 0) -> None:
        """Attempts that were made."""
        self.tried += tried
        self.failed += failed

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Count what happens within as one attempt, as a failure if it raises."""
        self.tried += 1
        try:
            yield
        except BaseException:
            self.failed += 1
            raise


class Promises:
    """Collects the records of a session and adds them to a file at its end.

    Args:
        path: JSON, a record by the name of each test.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what a test has said; runs where xdist, too, brings all reports together."""
        made = dict(report.user_properties).get("promise")
        if report.skipped or made is None or (report.when != "call" and report.passed):
            return
        record = json.loads(str(made))
        tried = max(record["tried"], 1)
        failed = max(record["failed"], int(report.failed))
        self.found[report.nodeid] = record | {"tried": tried, "failed": failed}

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write, where all reports have come together."""
        if hasattr(session.config, "workerinput") or not self.found:
            return
        known = json.loads(self.path.read_text()) if self.path.exists() else {}
        write_json(self.path, dict(sorted({**known, **self.found}.items())))


def record_of(item: pytest.Item, tries: Tries) -> dict[str, Any] | None:
    """What is kept of a test's promise; None if it makes none.

    Raises:
        ValueError: an area that there is not.
    """
    mark = item.get_closest_marker("promise")
    if mark is None:
        return None
    area, text, *unit = mark.args
    if area not in AREAS:
        raise ValueError(f"the area of a promise must be one of {AREAS}, got {area!r}")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {
        "area": area,
        "promise": text,
        "unit": unit[0] if unit else "runs",
        "tried": tries.tried,
        "failed": tries.failed,
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()}, {device}",
    }
