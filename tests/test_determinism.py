"""The same seed, machine and number of threads give the same bits."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dualprox as dp
from contracts import LAWS, OPTIMIZERS, Maker, assert_same, snapshot
from dualprox.kernels import native
from dualprox.lab.cli import main

pytestmark = pytest.mark.usefixtures("torch_as_before")
IMPLS = ("eager", "native") if native.why_unavailable() is None else ("eager",)
# Large enough for torch and the kernels to wake all threads; tall, wide, a kernel, and small ones.
SHAPES = ((1500, 40), (40, 1500), (64, 48, 3, 3), (7, 5), (11,))


def digests() -> dict[str, str]:
    """What runs leave behind, by optimizer, implementation and number of threads."""
    found = {}
    for threads in (1, 4):
        torch.set_num_threads(threads)
        for impl in IMPLS:
            for maker in OPTIMIZERS:
                generator = torch.Generator().manual_seed(0)
                weights = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in SHAPES]
                penalties = (
                    *(dp.GroupLasso(0.02, axis=axis) for axis in (0, 1)),
                    dp.SparseGroupLasso(0.02),
                    dp.L1(0.01),
                    None,
                )
                groups = [
                    {"params": [weight], "penalty": penalty}
                    for weight, penalty in zip(weights, penalties, strict=True)
                ]
                opt = maker(groups, impl=impl)
                for _ in range(3):
                    for weight in weights:
                        weight.grad = torch.randn(weight.shape, generator=generator)
                    opt.step()
                points = [opt.structured_point(weight) for weight in weights]
                found[f"{maker} {impl} steps {threads}"] = digest([*weights, *snapshot(opt)])
                found[f"{maker} {impl} points {threads}"] = digest(points)
    return found


def digest(tensors: list[torch.Tensor]) -> str:
    content = hashlib.sha256()
    for tensor in tensors:
        content.update(tensor.detach().contiguous().numpy().tobytes())
    return content.hexdigest()


@pytest.mark.promise(
    "determinism",
    "two processes with the same seed and number of threads leave the same bits in weights, state "
    "and structured points; native steps with any number of threads",
    "runs, each in two processes",
)
@pytest.mark.slow
def test_fresh_processes_leave_the_same_bits(tries):
    script = "import json, test_determinism as t; print(json.dumps(t.digests()))"
    command = [sys.executable, "-c", script]
    here = Path(__file__).parent
    runs = [subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE) for _ in range(2)]
    first, second = (json.loads(run.communicate()[0]) for run in runs)
    assert all(run.returncode == 0 for run in runs) and len(first) == 16 * len(IMPLS)
    for name, bits in first.items():
        with tries.one():
            assert second[name] == bits, name
            if " native steps " in name:
                assert first[name[:-1] + "1"] == bits, f"{name} and one thread"
    assert len(set(first.values())) >= 4 * len(IMPLS)


@pytest.mark.promise(
    "determinism",
    "train twice, here and in a fresh process, leaves the same bytes",
    "pairs of runs",
)
@pytest.mark.slow
def test_train_leaves_the_same_bytes_twice(tmp_path):
    short = ["epochs=2", "milestones=1", "model.hidden=12", "baseline=none"]
    arguments = ["train", "--set", *short, "--out"]
    here, there = tmp_path / "here", tmp_path / "there"
    assert main([*arguments, str(here)]) == 0
    threads = str(torch.get_num_threads())
    done = subprocess.run(
        [sys.executable, "-m", "dualprox", *arguments, str(there)],
        env={**os.environ, "OMP_NUM_THREADS": threads},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    files = {path.relative_to(here) for path in here.rglob("*.safetensors")}
    assert files
    for name in files:
        assert (here / name).read_bytes() == (there / name).read_bytes(), name


@pytest.mark.parametrize("maker", OPTIMIZERS, ids=str)
def test_torch_may_insist_on_deterministic_algorithms(maker: Maker):
    def run() -> list[torch.Tensor]:
        tensors = []
        for law in LAWS:
            weights, penalty = [torch.nn.Parameter(torch.ones(law.shape))], law.penalty
            if isinstance(penalty, dp.Coupled):
                shapes = [member.shape for member in penalty.coupling.members]
                weights = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
            opt = maker([{"params": weights, "penalty": penalty}])
            for weight in weights:
                generator = torch.Generator().manual_seed(0)
                weight.grad = torch.randn(weight.shape, generator=generator)
            opt.step()
            tensors += [*weights, *snapshot(opt)]
        return tensors

    free = run()
    torch.use_deterministic_algorithms(True)
    try:
        assert_same(run(), free)
    finally:
        torch.use_deterministic_algorithms(False)
