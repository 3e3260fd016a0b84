"""Fixtures of more than one file, and the records of promises."""

import json
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import torch

from promises import Promises, Tries, record_of

COUNTED = pytest.StashKey[Tries]()


def pytest_configure(config: pytest.Config) -> None:
    """Keep records of promises where the environment says so."""
    path = os.environ.get("DUALPROX_PROMISES")
    if path:
        config.pluginmanager.register(Promises(Path(path)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Send with the report of a test what it has tried."""
    if call.when != "teardown":
        record = record_of(item, item.stash.get(COUNTED, Tries()))
        item.user_properties[:] = [p for p in item.user_properties if p[0] != "promise"]
        if record is not None:
            item.user_properties.append(("promise", json.dumps(record)))
    return (yield)


@pytest.fixture
def tries(request: pytest.FixtureRequest) -> Tries:
    """Counts the attempts of a test that keeps a promise; see `promises`."""
    return request.node.stash.setdefault(COUNTED, Tries())


@pytest.fixture
def torch_as_before() -> Iterator[None]:
    """What a run sets for the whole process is as before when the test ends."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)
