"""Sharded parameters (DTensor, FSDP) train as the full ones do: two processes on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).with_name("sharded_worker.py")

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="torch was built without gloo",
)


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    """Of every case, what each process has to say; they start once for all of them."""
    folder = tmp_path_factory.mktemp("sharded")
    path = os.pathsep.join([str(WORKER.parent), *filter(None, sys.path)])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen([sys.executable, str(WORKER), str(rank), str(folder)], env=env)
        for rank in range(2)
    ]
    try:
        for worker in workers:
            assert worker.wait(timeout=240) == 0
    finally:
        for worker in workers:
            worker.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def report(failures, first, last):
    """The tracebacks of the cases named so, of which there must be some."""
    cases = [name for name in failures[0] if name.startswith(first) and name.endswith(last)]
    assert cases
    return "\n".join(f"{name}: {each[name]}" for each in failures for name in cases if each[name])


@pytest.mark.parametrize("optimizer", ["RMDA", "RAMDA", "ProxSGD", "ProxAdamW"])
@pytest.mark.parametrize("placement", ["S(0)", "S(1)", "R"])
def test_sharded_weights_follow_the_full_ones(failures, optimizer, placement):
    assert report(failures, f"{optimizer} ", f" {placement}") == ""


@pytest.mark.parametrize("optimizer", ["RMDA", "RAMDA", "ProxSGD", "ProxAdamW"])
def test_sharded_weights_of_a_coupled_group_are_refused(failures, optimizer):
    assert report(failures, f"{optimizer} ", " coupled") == ""


@pytest.mark.parametrize("optimizer", ["RMDA", "RAMDA", "ProxSGD", "ProxAdamW"])
def test_fsdp_holds_a_frozen_structure_and_resumes_bit_by_bit(failures, optimizer):
    assert report(failures, f"{optimizer} ", " FSDP refit") == ""


@pytest.mark.parametrize("optimizer", ["RMDA", "RAMDA", "ProxSGD", "ProxAdamW"])
def test_fsdp_trains_like_one_process_and_resumes_bit_by_bit(failures, optimizer):
    assert report(failures, f"{optimizer} ", " FSDP") == ""
