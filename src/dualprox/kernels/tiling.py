"""How the work of a fused step on a GPU is cut into tiles: a function of shapes only.

Each tile holds whole groups, so that one program can decide about them. A tile that fits on chip is
*resident*; larger ones are *swept* by one program, or *split* among many where there would be too
few programs otherwise.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .grid import Grid

Kind = Literal["elementwise", "resident", "sweep", "split"]

# Words of a program's row in the work table: tensor, offset, rows, entries per row, first chunk,
# last chunk + 1, first slot, slots.
WORK_WORDS = 8

# Columns of a resident tile by its rows: 32 bytes at least, a whole sector of memory.
_COLUMNS = {16: 64, 64: 64, 256: 16, 512: 16, 1024: 8}
_RUNS = (1, 4, 16, 64, 256, 1024, 4096, 8192)
_ENTRIES = 1024  # of an elementwise program


@dataclass(frozen=True)
class Tiling:
    """Limits, for tests and experiments to change.

    Args:
        resident: most entries of a tile that stays on chip, in one thread block.
        blocks: thread blocks that may form a cluster and share a resident tile: 1, 2, 4 or 8.
        chunk: entries of a chunk of a swept tile.
        few: tensors of fewer swept tiles than this are split...
        programs: ...into this many programs, about.
    """

    resident: int = 8192
    blocks: int = 1
    chunk: int = 4096
    few: int = 64
    programs: int = 256


@dataclass(frozen=True)
class Shape:
    """What the programs of one launch have in common.

    Args:
        kind: which kernel.
        rows: of the tile or chunk, a power of two.
        columns: likewise.
        runs: whether groups are rows of the tile rather than sets of columns.
        slots: a power of two, at least the groups in a tile, where a group has several columns;
            0 where each column is a group.
        blocks: thread blocks in the cluster.
    """

    kind: Kind
    rows: int
    columns: int
    runs: bool = False
    slots: int = 0
    blocks: int = 1

    @property
    def warps(self) -> int:
        """Warps per thread block: about 16 entries per thread, at most 512 threads."""
        if self.kind == "elementwise":
            return 4
        return min(max(self.rows * self.columns // self.blocks // 512, 1), 16)


@dataclass(frozen=True)
class Plan:
    """How one tensor is cut.

    Args:
        shape: of the tiles.
        stride: entries from one row of a tile to the next.
        pieces: pieces of `shape.columns` entries into which a row is cut.
        width: adjacent entries of a group in a row.
        work: (programs, WORK_WORDS) int64; tensor and slots are still counted from 0.
    """

    shape: Shape
    stride: int
    pieces: int
    width: int
    work: np.ndarray

    @property
    def aligned(self) -> bool:
        """Whether four entries at a time lie within or without the tensor, and 16-byte aligned."""
        if self.shape.kind == "elementwise":
            return not (self.work[:, 3] % 4).any()
        by_four = not (self.work[:, (1, 3)] % 4).any() and self.stride % 4 == 0
        return by_four and self.shape.columns % 4 == 0


def power_of_two(n: int) -> int:
    """The least one >= n."""
    return 1 << max(n - 1, 0).bit_length()


def _table(
    offset: np.ndarray, rows: np.ndarray | int, run: np.ndarray | int, chunks: int = 0
) -> np.ndarray:
    work = np.zeros((len(offset), WORK_WORDS), dtype=np.int64)
    work[:, 1], work[:, 2], work[:, 3], work[:, 5], work[:, 7] = offset, rows, run, chunks, 1
    work[:, 6] = np.arange(len(offset))
    return work


def elementwise(entries: int) -> Plan:
    """A tensor without groups."""
    offset = np.arange(0, entries, _ENTRIES)
    work = _table(offset, 1, np.minimum(entries - offset, _ENTRIES))
    return Plan(Shape("elementwise", 1, _ENTRIES), 0, 1, 1, work)


def _runs(grid: Grid, columns: int) -> Plan:
    """Groups are adjacent runs: rows of a tile."""
    rows = max(4096 // columns, 1) if columns > 1 else 1024
    first = np.arange(0, grid.groups, rows)
    work = _table(first * grid.inner, np.minimum(grid.groups - first, rows), grid.inner)
    return Plan(Shape("resident", rows, columns, runs=True), grid.inner, 1, grid.inner, work)


def _columns(grid: Grid, columns: int) -> tuple[int, np.ndarray, np.ndarray]:
    """Groups in a tile of so many columns, and its tiles' offsets and columns in use."""
    each = max(columns // grid.inner, 1)
    row = grid.groups * grid.inner
    first = np.arange(0, grid.groups, each)
    run = np.minimum(grid.groups - first, each) * grid.inner
    offset = np.arange(grid.parts)[:, None] * (grid.outer * row) + first * grid.inner
    return each, offset.ravel(), np.tile(run, grid.parts)


def _resident_columns(grid: Grid, tiling: Tiling) -> Shape | None:
    """The tile of a grid whose groups are columns, if one fits on chip."""
    blocks = 1
    while blocks <= tiling.blocks:
        for rows, narrow in _COLUMNS.items():
            if rows * blocks < grid.outer or (blocks > 1 and rows != max(_COLUMNS)):
                continue
            # Runs of several entries leave lanes idle and are not aligned: the longer the better.
            wide = max(min(64, tiling.resident // rows), power_of_two(grid.inner))
            columns = narrow if grid.inner == 1 else wide
            if rows * columns <= tiling.resident:
                slots = power_of_two(columns // grid.inner) if grid.inner > 1 else 0
                return Shape("resident", rows * blocks, columns, slots=slots, blocks=blocks)
        blocks *= 2
    return None


def plan(grid: Grid, tiling: Tiling) -> Plan:
    """Cut a tensor with groups."""
    if grid.outer == 1:
        columns = next((c for c in _RUNS if c >= grid.inner), None)
        if columns is not None and columns <= tiling.resident:
            return _runs(grid, columns)
    else:
        shape = _resident_columns(grid, tiling)
        if shape is not None:
            _, offset, run = _columns(grid, shape.columns)
            stride = grid.groups * grid.inner
            return Plan(shape, stride, 1, grid.inner, _table(offset, grid.outer, run))
    columns = min(max(power_of_two(grid.inner), 8), 64)
    each, offset, run = _columns(grid, columns)
    rows = max(tiling.chunk // columns, 1)
    pieces = -(-grid.inner // columns) if each == 1 else 1
    chunks = -(-grid.outer * pieces // rows)
    slots = power_of_two(each) if grid.inner > 1 else 0
    work = _table(offset, grid.outer, run, chunks)
    shares = min(-(-tiling.programs // len(work)), chunks) if len(work) < tiling.few else 1
    if shares > 1:
        work = _split(work, shares)
    shape = Shape("split" if shares > 1 else "sweep", rows, columns, slots=slots)
    return Plan(shape, grid.groups * grid.inner, pieces, grid.inner, work)


def _split(work: np.ndarray, shares: int) -> np.ndarray:
    """Give each tile to `shares` programs, a run of chunks each."""
    chunks = work[:, 5:6]
    bounds = chunks * np.arange(shares + 1) // shares
    split = np.repeat(work, shares, axis=0)
    split[:, 4], split[:, 5] = bounds[:, :-1].ravel(), bounds[:, 1:].ravel()
    split[:, 6], split[:, 7] = np.repeat(np.arange(len(work)) * shares, shares), shares
    return split


def merged(plans: list[tuple[int, Plan]]) -> Iterator[np.ndarray]:
    """The work of one launch: each tensor's, with its number and its slots filled in."""
    programs = 0
    for number, one in plans:
        work = one.work.copy()
        work[:, 0] = number
        work[:, 6] += programs
        programs += len(work)
        yield work
