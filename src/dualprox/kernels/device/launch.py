"""Launches of the kernels."""

from typing import Any

import numpy as np
import torch
import triton.language as tl  # pyright: ignore[reportMissingImports] # optional
from torch import Tensor

from ..tiling import Shape
from .prologue import HALF, prologue, write_words
from .steps import elementwise_step, resident_step
from .sweeps import split_newton, split_update, split_write, sweeping_step

_TYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float64: tl.float64,
}
# Said aloud, so that a later Triton with another default rounds as this one does.
_OPTIONS = {"enable_fp_fusion": True}


def _run(kernel: Any, programs: int, *arguments: Tensor | int, **options: Any) -> None:
    kernel[(programs,)](*arguments, **options, **_OPTIONS)


def written_words(words: np.ndarray, device: torch.device) -> Tensor:
    """The words on the device, put there by kernels whose arguments they are.

    A captured graph keeps arguments, whereas a copy would read host memory at each replay.
    """
    count = -(-len(words) // 8) * 8
    padded = np.zeros(count, dtype=np.int64)
    padded[: len(words)] = words
    table = torch.empty(count, dtype=torch.int64, device=device)
    half = int(HALF.value)
    low, high = padded & 0xFFFFFFFF, padded >> 32
    halves = (np.stack([low, high], axis=1) + half).reshape(-1, 16).tolist()
    for k, sixteen in enumerate(halves):
        _run(write_words, 1, table, 8 * k + half, *sixteen, num_warps=1)
    return table


def launch_prologue(
    method: str, counters: Tensor, grads: Tensor, settings: Tensor, lr: float | Tensor, rows: Tensor
) -> None:
    """Move all counters and fill the rows of scalars."""
    dtype = _TYPES[lr.dtype] if isinstance(lr, Tensor) else None
    source = lr if isinstance(lr, Tensor) else settings
    tables = (counters, grads, settings, source, rows)
    _run(prologue, len(counters), *tables, METHOD=method, LR=dtype, num_warps=1)


def launch(
    method: str,
    shape: Shape,
    dtype: torch.dtype,
    entries: bool,
    aligned: bool,
    tables: tuple[Tensor, ...],
    records: Tensor,
    newton_steps: int,
) -> None:
    """Run the programs of one shape. `tables`: work, tensors, strengths, grads, rows."""
    programs = len(tables[0])
    shared = {"METHOD": method, "W": _TYPES[dtype], "ENTRIES": entries, "ALIGNED": aligned}
    shared = {**shared, "C": shape.columns, "num_warps": shape.warps}
    if shape.kind == "elementwise":
        _run(elementwise_step, programs, *tables, **shared)
        return
    shared = {**shared, "R": shape.rows, "SLOTS": shape.slots}
    if shape.kind == "resident":
        shared = {**shared, "RUNS": shape.runs, "num_ctas": shape.blocks}
        _run(resident_step, programs, *tables, **shared)
        return
    if shape.kind == "sweep":
        _run(sweeping_step, programs, *tables, **shared)
        return
    before, after = records
    _run(split_update, programs, *tables, before, **shared)
    for k in range(newton_steps):
        _run(split_newton, programs, *tables, before, after, FIRST=k == 0, **shared)
        before, after = after, before
    _run(split_write, programs, *tables, before, **shared)
