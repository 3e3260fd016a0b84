"""Fixtures of more than one file."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def torch_as_before() -> Iterator[None]:
    """What a run sets for the whole process is as before when the test ends."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)
