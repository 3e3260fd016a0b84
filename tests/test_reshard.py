"""Distributed checkpoints of FSDP networks are read by other numbers of processes."""

import json
from pathlib import Path

import pytest
import torch

from processes import started

WORKER = Path(__file__).with_name("reshard_worker.py")
WAYS = {2: [2, 1, 2], 4: [2, 1, 4, 2]}

pytestmark = [
    pytest.mark.xdist_group("reshard"),  # processes started once for all
    pytest.mark.skipif(
        not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
        reason="torch was built without gloo",
    ),
]


def failures(world, folder):
    """Of every case, what each process has to say; they start once for all of them."""
    for code, _, error in started(world, WORKER, json.dumps(WAYS[world]), folder):
        assert code == 0, error
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    return failures(2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def by_four(tmp_path_factory):
    return failures(4, tmp_path_factory.mktemp("four"))


def report(found, part, tries):
    """The tracebacks of the cases named so, of which there must be some."""
    cases = [name for name in found[0] if part in name]
    assert cases
    wrong = [name for name in cases if any(each[name] for each in found)]
    tries.add(len(cases), len(wrong))
    return "\n".join(f"{name}: {each[name]}" for each in found for name in wrong)


KINDS = {
    " reshard ": "a distributed checkpoint is read by 1, 2 or 4 processes to the same bits, and "
    "training goes on as if nothing had happened",
    " gather ": "a whole state gathered on the first process is read by one process and by all",
    " async": "an asynchronous save holds the state it was asked for while training goes on",
    " refuse": "a distributed checkpoint of another penalty is refused",
}
each_kind = pytest.mark.parametrize(
    "part",
    [
        pytest.param(part, marks=pytest.mark.promise("checkpoints", text, "checkpoints"))
        for part, text in KINDS.items()
    ],
)


@each_kind
def test_checkpoints_of_two_processes(by_two, part, tries):
    assert report(by_two, part, tries) == ""


@pytest.mark.slow
@each_kind
def test_checkpoints_of_four_processes(by_four, part, tries):
    assert report(by_four, part, tries) == ""
