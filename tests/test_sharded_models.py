"""Models on several processes (DDP, FSDP2, tensor parallel, ZeRO-1) train as on one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sharded_tests import failures_of, gloo, report

# Processes are started once for all.
pytestmark = [gloo, pytest.mark.xdist_group("sharded_models")]
every = pytest.mark.parametrize("optimizer", ["RMDA", "RAMDA", "ProxSGD", "ProxAdamW"])


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    return failures_of("sharded_models", 2, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def failures_of_four(tmp_path_factory):
    return failures_of("sharded_models", 4, tmp_path_factory.mktemp("models"))


@pytest.mark.promise(
    "processes",
    "a model under FSDP2 trains as on one process, groups over several tensors included: the same "
    "structure, float64 weights to 1e-9; and what it saves goes on bit by bit",
    "optimizer",
)
@every
def test_models_train_like_on_one_process(failures, tries, optimizer):
    assert report(failures, f"{optimizer} ", tries) == ""


@pytest.mark.promise(
    "processes",
    "groups live and die as on one process under DDP with no_sync, ZeRO-1, tensor parallelism, "
    "with parameters offloaded, and in mixed precision given the same gradients",
    "layout",
)
@pytest.mark.parametrize(
    "case", ["DDP", "ZeRO-1$", "resumes", "FSDP un", "FSDP off", "mixed precision", "TP"]
)
def test_layouts_train_like_one_process(failures, tries, case):
    assert report(failures, case, tries) == ""


@pytest.mark.promise(
    "processes",
    "a sharded model shrinks to the network that one process finds, once it is gathered",
    "layout",
)
@pytest.mark.parametrize("case", ["FSDP", "TP"])
def test_gathered_models_shrink_like_those_of_one_process(failures, tries, case):
    assert report(failures, f"shrinks {case}", tries) == ""


def test_the_strength_for_a_size_is_found_on_sharded_parameters(failures):
    assert report(failures, "size") == ""


def test_zero_redundancy_with_coupled_groups_is_refused(failures):
    assert report(failures, "ZeRO-1 refuses") == ""


@pytest.mark.exhaustive
@pytest.mark.promise(
    "processes",
    "groups live and die on four processes as on one, under hybrid sharding and under FSDP2 over "
    "tensor parallelism",
    "layout",
)
@pytest.mark.parametrize("case", ["HSDP", "FSDP of TP"])
def test_meshes_of_two_axes_train_like_one_process(failures_of_four, tries, case):
    assert report(failures_of_four, f"RAMDA {case}", tries) == ""


@pytest.mark.slow
def test_the_script_of_the_document_runs_as_it_stands(tmp_path):
    document = Path(__file__).parents[1] / "docs" / "distributed.md"
    code = re.search(r"```python\n(# train.py.*?)```", document.read_text(), re.DOTALL)
    assert code is not None
    (tmp_path / "train.py").write_text(code[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "train.py"]
    path = os.pathsep.join(filter(None, sys.path))
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    live = re.search(r"2.weight +4x32 +(\d+) +32", done.stdout)
    assert live is not None and 0 < int(live[1]) < 32
    assert f"in_features=16, out_features={live[1]}," in done.stdout
