"""The Triton kernels without a GPU: run in the interpreter, and compiled for one."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dualprox.kernels.grid import Grid
from dualprox.kernels.tiling import Tiling, elementwise, merged, plan

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the package triton is not installed"
)
plainly = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="inside Triton's interpreter already"
)


@needs_triton
@plainly
@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels' tests run on the GPU itself")
def test_kernels_pass_their_tests_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, *(str(HERE / f"test_triton_{name}.py") for name in ("kernels", "optimizers"))],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


TABLES = {
    "work": "*i64",
    "tensors": "*i64",
    "strengths": "*fp64",
    "grads": "*i64",
    "rows": "*fp64",
    "records": "*fp32",
    "before": "*fp32",
    "after": "*fp32",
    "counters": "*i64",
    "settings": "*fp64",
    "lr_of": "*fp32",
}
TILE = {"ENTRIES": True, "ALIGNED": True, "SLOTS": 0, "R": 256, "C": 16}
CHUNK = {"ENTRIES": True, "ALIGNED": True, "SLOTS": 1, "R": 64, "C": 64}
KERNELS = (
    ("steps", "elementwise_step", {"ENTRIES": True, "ALIGNED": True, "C": 1024}, 4, 1),
    ("steps", "resident_step", {**TILE, "RUNS": False}, 8, 1),
    ("steps", "resident_step", {**TILE, "RUNS": False, "R": 4096, "C": 8}, 16, 4),
    ("steps", "resident_step", {**TILE, "RUNS": False, "SLOTS": 8, "ALIGNED": False}, 8, 1),
    ("steps", "resident_step", {**TILE, "RUNS": True, "R": 4, "C": 1024}, 8, 1),
    ("sweeps", "sweeping_step", CHUNK, 8, 1),
    ("sweeps", "split_update", CHUNK, 8, 1),
    ("sweeps", "split_newton", {**CHUNK, "FIRST": True}, 8, 1),
    ("sweeps", "split_newton", {**CHUNK, "FIRST": False}, 8, 1),
    ("sweeps", "split_write", CHUNK, 8, 1),
    ("prologue", "prologue", {}, 1, 1),
    ("prologue", "write_words", {}, 1, 1),
)


@needs_triton
@plainly
@pytest.mark.slow
@pytest.mark.parametrize("method", ["rmda", "ramda", "prox_sgd", "prox_adamw"])
def test_kernels_compile_for_hopper_with_wide_loads(method):
    triton: Any = importlib.import_module("triton")
    compiler: Any = importlib.import_module("triton.compiler")
    backends: Any = importlib.import_module("triton.backends.compiler")
    if "nvidia" not in importlib.import_module("triton.backends").backends:
        pytest.skip("this triton has no NVIDIA backend")
    for module, name, constants, warps, blocks in KERNELS:
        if name == "split_newton" and method in ("rmda", "prox_sgd"):
            continue
        kernel = getattr(importlib.import_module(f"dualprox.kernels.device.{module}"), name)
        wanted = ("fp32", "bf16") if method == "ramda" and module == "steps" else ("fp32",)
        for dtype in wanted:
            types = {"W": triton.language.dtype(dtype)}
            if name == "prologue":
                types = {"LR": triton.language.float32}
            known = {"METHOD": method, **types, **constants}
            signature = {n: TABLES.get(n, "constexpr") for n in kernel.arg_names}
            if name == "write_words":
                known, signature = {}, dict.fromkeys(kernel.arg_names, "i64")
                signature["table"] = "*i64"
            pointers = [k for k, n in enumerate(kernel.arg_names) if n in TABLES]
            source = compiler.ASTSource(
                kernel,
                signature=signature,
                constexprs=known,
                attrs={(k,): [["tt.divisibility", 16]] for k in pointers},
            )
            built = triton.compile(
                source,
                target=backends.GPUTarget("cuda", 90, 32),
                options={"num_warps": warps, "num_ctas": blocks, "enable_fp_fusion": True},
            )
            assert ("ld.global.v4" in built.asm["ptx"]) or not constants.get("ALIGNED")


GRIDS = (
    Grid(1, 1, 1, 1),
    Grid(1, 1, 70, 9),
    Grid(1, 1, 3, 20000),
    Grid(1, 17, 67, 1),
    Grid(1, 300, 5, 9),
    Grid(2, 40, 6, 49),
    Grid(1, 3000, 11, 1),
    Grid(3, 700, 4, 100),
    Grid(1, 2, 3, 70000),
)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize(
    "tiling",
    [Tiling(), Tiling(blocks=4), Tiling(resident=0, few=0), Tiling(resident=0, few=10**6)],
    ids=["default", "clusters", "swept", "split"],
)
def test_tiles_hold_whole_groups_and_every_entry_once(grid, tiling):
    one = plan(grid, tiling)
    rows, columns = one.shape.rows, one.shape.columns
    seen = torch.zeros(grid.parts * grid.outer * grid.groups * grid.inner, dtype=torch.int64)
    owner = torch.arange(seen.numel())
    part = owner // (grid.outer * grid.groups * grid.inner)
    owner = part * grid.groups + owner // grid.inner % grid.groups
    tile_of = torch.full((grid.parts * grid.groups,), -1)
    for _, offset, high, run, lo, hi, slot, slots in one.work.tolist():
        assert one.shape.kind in ("resident", "sweep", "split")
        chunks = range(lo, hi) if one.shape.kind != "resident" else range(1)
        for j in chunks:
            place = j * rows + torch.arange(rows)[:, None]
            row = place // one.pieces
            column = (place - row * one.pieces) * columns + torch.arange(columns)
            cells = (offset + row * one.stride + column)[(row < high) & (column < run)]
            seen[cells] += 1
            tile = slot if slots > 1 else offset
            old = tile_of[owner[cells]]
            assert ((old == -1) | (old == tile)).all()
            tile_of[owner[cells]] = tile
    assert (seen == 1).all()


def test_launches_count_slots_from_the_first_tensor_on():
    split = Tiling(resident=0, few=10**6, chunk=64, programs=4)
    works = list(merged([(0, plan(Grid(1, 40, 3, 1), split)), (2, plan(Grid(1, 80, 9, 1), split))]))
    slots = [w for work in works for w in work[:, 6:8].tolist()]
    assert sum(len(w) for w in works) == max(first + count for first, count in slots)
    assert [int(w[0, 0]) for w in works] == [0, 2]


def test_elementwise_work_covers_a_tensor():
    assert elementwise(2500).work[:, (1, 3)].tolist() == [[0, 1024], [1024, 1024], [2048, 452]]
    assert len(elementwise(0).work) == 0
