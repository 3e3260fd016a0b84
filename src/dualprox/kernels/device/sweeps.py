"""Triton kernels for tiles too large to stay on chip: sweeps over them, re-reading memory.

`sweeping_step` is one program per tile, its re-reads hopefully served by L2. For few, huge groups
`split_update`, `split_newton` (launched many times) and `split_write` share a tile among programs,
which leave their partial sums in records (slot, 5, C) for all programs of the tile to add up in
the same order: first and second sum, r, norm, lower bound. Tables as in `steps`.
"""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false
# Kernels are written in Triton's language, whose types are not Python's.

import triton  # pyright: ignore[reportMissingImports] # optional
import triton.language as tl  # pyright: ignore[reportMissingImports] # optional

from .steps import (
    _MOST_STEPS,
    are_moving,
    begun,
    cells_of,
    finish,
    in_groups,
    iterate,
    lower_bound,
    newton,
    pulled,
    recalled,
    shortened,
    soft,
    solved,
)


@triton.jit
def extent(item, table, ALIGNED: tl.constexpr):
    """Offset of a tile, rows, entries per row, distance between rows, pieces per row."""
    offset, run = tl.load(item + 1), tl.load(item + 3).to(tl.int32)
    # Offsets within a part of a tensor fit 32 bits, the part's own is added to the pointers.
    stride = tl.load(table + 4).to(tl.int32)
    if ALIGNED:
        offset, run = tl.multiple_of(offset, 4), tl.multiple_of(run, 4)
        stride = tl.multiple_of(stride, 4)
    return offset, tl.load(item + 2).to(tl.int32), run, stride, tl.load(table + 5).to(tl.int32)


@triton.jit
def updating(
    lo,
    hi,
    item,
    table,
    grad,
    row,
    weak,
    METHOD: tl.constexpr,
    W: tl.constexpr,
    ENTRIES: tl.constexpr,
    ALIGNED: tl.constexpr,
    SLOTS: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    """Advance the sums over chunks lo..hi; per group sum a^2, max d and sum w^2."""
    METRIC: tl.constexpr = (METHOD == "ramda") or (METHOD == "prox_adamw")
    offset, high, run, stride, pieces = extent(item, table, ALIGNED)
    pull = tl.zeros((R, C), dtype=tl.float32)
    steep = tl.zeros((R, C), dtype=tl.float32)
    size = tl.zeros((R, C), dtype=tl.float32)
    for j in range(lo, hi):
        cells, mask = cells_of(j, high, run, stride, pieces, R, C)
        w = iterate(table, offset, cells, mask, W, ALIGNED)
        center, v, u = begun(w, offset, cells, mask, table, grad, row, METHOD, W, ALIGNED)
        a, d = pulled(center, v, u, row, METHOD)
        if ENTRIES:
            a = soft(a, weak)
        pull += a * a
        if METRIC:
            steep = tl.maximum(steep, d)
            size += w * w
    width = tl.load(table + 6).to(tl.int32)
    pull = in_groups(pull, width, False, False, SLOTS, C)
    if METRIC:
        steep = in_groups(steep, width, True, False, SLOTS, C)
        size = in_groups(size, width, False, False, SLOTS, C)
    else:
        steep, size = pull, pull
    return pull, steep, size


@triton.jit
def evaluating(
    lo,
    hi,
    r,
    item,
    table,
    row,
    weak,
    threshold,
    METHOD: tl.constexpr,
    W: tl.constexpr,
    ENTRIES: tl.constexpr,
    ALIGNED: tl.constexpr,
    SLOTS: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    """Per group, over chunks lo..hi, the two sums that Newton's step at r needs."""
    offset, high, run, stride, pieces = extent(item, table, ALIGNED)
    total = tl.zeros((R, C), dtype=tl.float32)
    rise = tl.zeros((R, C), dtype=tl.float32)
    for j in range(lo, hi):
        cells, mask = cells_of(j, high, run, stride, pieces, R, C)
        w = 0.0
        if METHOD == "prox_adamw":
            w = iterate(table, offset, cells, mask, W, ALIGNED)
        center, v, u = recalled(w, offset, cells, mask, table, METHOD, ALIGNED)
        a, d = pulled(center, v, u, row, METHOD)
        if ENTRIES:
            a = soft(a, weak)
        below = d * r + threshold
        share = (a / below) * (a / below)
        total += share
        rise += d * share / below
    width = tl.load(table + 6).to(tl.int32)
    total = in_groups(total, width, False, False, SLOTS, C)
    rise = in_groups(rise, width, False, False, SLOTS, C)
    return total, rise


@triton.jit
def writing(
    lo,
    hi,
    r,
    norm,
    item,
    table,
    row,
    weak,
    threshold,
    METHOD: tl.constexpr,
    W: tl.constexpr,
    ENTRIES: tl.constexpr,
    ALIGNED: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    """Write the new iterate in chunks lo..hi."""
    offset, high, run, stride, pieces = extent(item, table, ALIGNED)
    for j in range(lo, hi):
        cells, mask = cells_of(j, high, run, stride, pieces, R, C)
        w = iterate(table, offset, cells, mask, W, ALIGNED)
        center, v, u = recalled(w, offset, cells, mask, table, METHOD, ALIGNED)
        a, d = pulled(center, v, u, row, METHOD)
        if ENTRIES:
            a = soft(a, weak)
        if (METHOD == "ramda") or (METHOD == "prox_adamw"):
            z = solved(a, d, r, norm, threshold)
        else:
            z = shortened(a, norm, threshold)
        finish(w, z, offset, cells, mask, table, row, METHOD, W, ALIGNED)


@triton.jit
def sweeping_step(
    work,
    tensors,
    strengths,
    grads,
    rows,
    METHOD: tl.constexpr,
    W: tl.constexpr,
    ENTRIES: tl.constexpr,
    ALIGNED: tl.constexpr,
    SLOTS: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    """One step of a tile by one program, in sweeps over its chunks."""
    item = work + tl.program_id(0).to(tl.int64) * 8
    i = tl.load(item)
    table, row, grad = tensors + i * 8, rows + i * 12, grads + i
    if (tl.load(row) == 0.0) | (tl.load(grad) == 0):
        return
    lo, hi = tl.load(item + 4).to(tl.int32), tl.load(item + 5).to(tl.int32)
    tau = tl.load(row + 2)
    weak = (tau * tl.load(strengths + i * 2)).to(tl.float32)
    threshold = (tau * tl.load(strengths + i * 2 + 1)).to(tl.float32)
    pull, steep, size = updating(
        lo, hi, item, table, grad, row, weak, METHOD, W, ENTRIES, ALIGNED, SLOTS, R, C
    )
    # Other threads may read what this one has written.
    tl.debug_barrier()
    norm = tl.sqrt_rn(pull)
    r = norm
    if (METHOD == "ramda") or (METHOD == "prox_adamw"):
        lower = lower_bound(norm, steep, threshold)
        r = tl.maximum(tl.sqrt_rn(size), lower)
        steps = 0
        moving = tl.max(tl.max((norm > threshold).to(tl.int32), 1), 0)
        while (moving != 0) & (steps < _MOST_STEPS):
            total, rise = evaluating(
                lo,
                hi,
                r,
                item,
                table,
                row,
                weak,
                threshold,
                METHOD,
                W,
                ENTRIES,
                ALIGNED,
                SLOTS,
                R,
                C,
            )
            ahead = newton(r, total, rise, lower)
            moving = are_moving(r, ahead, norm, threshold)
            r = ahead
            steps += 1
    writing(lo, hi, r, norm, item, table, row, weak, threshold, METHOD, W, ENTRIES, ALIGNED, R, C)


@triton.jit
def leave(records, slot, first, second, r, norm, lower, C: tl.constexpr):
    """Write one program's record."""
    place = records + slot * (5 * C) + tl.arange(0, C)[None, :]
    tl.store(place, first)
    tl.store(place + C, second)
    tl.store(place + 2 * C, r)
    tl.store(place + 3 * C, norm)
    tl.store(place + 4 * C, lower)


@triton.jit
def added(records, item, k: tl.constexpr, MAXIMUM: tl.constexpr, C: tl.constexpr):
    """The k-th entries of a tile's records, added up in a fixed order, or their maximum."""
    first, count = tl.load(item + 6), tl.load(item + 7).to(tl.int32)
    place = records + first * (5 * C) + k * C + tl.arange(0, C)[None, :]
    result = tl.zeros((32, C), dtype=tl.float32)
    for start in range(0, count, 32):
        slot = start + tl.arange(0, 32)[:, None]
        some = tl.load(place + slot * (5 * C), mask=slot < count, other=0.0)
        if MAXIMUM:
            result = tl.maximum(result, some)
        else:
            result += some
    if MAXIMUM:
        return tl.max(result, 0, keep_dims=True)
    return tl.sum(result, 0, keep_dims=True)


@triton.jit
def shared(records, item, k: tl.constexpr, C: tl.constexpr):
    """The k-th entry of a tile's first record, which all its records have in common."""
    return tl.load(records + (tl.load(item + 6) * 5 + k) * C + tl.arange(0, C)[None, :])


@triton.jit
def next_r(before, item, threshold, FIRST: tl.constexpr, C: tl.constexpr):
    """From the records before: r, norm, lower bound, and whether r still moves."""
    if FIRST:
        norm = tl.sqrt_rn(added(before, item, 0, False, C))
        lower = lower_bound(norm, added(before, item, 1, True, C), threshold)
        r = tl.maximum(tl.sqrt_rn(added(before, item, 2, False, C)), lower)
        moving = tl.max(tl.max((norm > threshold).to(tl.int32), 1), 0)
    else:
        old, norm = shared(before, item, 2, C), shared(before, item, 3, C)
        lower = shared(before, item, 4, C)
        total, rise = added(before, item, 0, False, C), added(before, item, 1, False, C)
        # A settled tile hands its records on with a negative sum.
        settled = tl.min(tl.min(total, 1), 0) < 0.0
        ahead = newton(old, tl.maximum(total, 0.0), rise, lower)
        moving = tl.where(settled, 0, are_moving(old, ahead, norm, threshold))
        r = tl.where(settled, old, ahead)
    return r, norm, lower, moving


@triton.jit
def split_update(
    work,
    tensors,
    strengths,
    grads,
    rows,
    records,
    METHOD: tl.constexpr,
    W: tl.constexpr,
    ENTRIES: tl.constexpr,
    ALIGNED: tl.constexpr,
    SLOTS: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    """First sweep of a shared tile: advance the sums, leave sum a^2, max d and sum w^2."""
    slot = tl.program_id(0).to(tl.int64)
    item = work + slot * 8
    i = tl.load(item)
    table, row, grad = tensors + i * 8, rows + i * 12, grads + i
    if (tl.load(row) == 0.0) | (tl.load(grad) == 0):
        return
    lo, hi = tl.load(item + 4).to(tl.int32), tl.load(item + 5).to(tl.int32)
    weak = (tl.load(row + 2) * tl.load(strengths + i * 2)).to(tl.float32)
    pull, steep, size = updating(
        lo, hi, item, table, grad, row, weak, METHOD, W, ENTRIES, ALIGNED, SLOTS, R, C
    )
    leave(records, slot, pull, steep, size, pull, pull, C)


@triton.jit
def split_newton(
    work,
    tensors,
    strengths,
    grads,
    rows,
    before,
    after,
    METHOD: tl.constexpr,
    W: tl.constexpr,
    ENTRIES: tl.constexpr,
    ALIGNED: tl.constexpr,
    FIRST: tl.constexpr,
    SLOTS: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    """One Newton evaluation of a shared tile, or nothing if it has settled."""
    slot = tl.program_id(0).to(tl.int64)
    item = work + slot * 8
    i = tl.load(item)
    table, row, grad = tensors + i * 8, rows + i * 12, grads + i
    if (tl.load(row) == 0.0) | (tl.load(grad) == 0):
        return
    lo, hi = tl.load(item + 4).to(tl.int32), tl.load(item + 5).to(tl.int32)
    tau = tl.load(row + 2)
    weak = (tau * tl.load(strengths + i * 2)).to(tl.float32)
    threshold = (tau * tl.load(strengths + i * 2 + 1)).to(tl.float32)
    r, norm, lower, moving = next_r(before, item, threshold, FIRST, C)
    total = tl.zeros((1, C), dtype=tl.float32) - 1.0
    rise = total
    if moving != 0:
        total, rise = evaluating(
            lo, hi, r, item, table, row, weak, threshold, METHOD, W, ENTRIES, ALIGNED, SLOTS, R, C
        )
    leave(after, slot, total, rise, r, norm, lower, C)


@triton.jit
def split_write(
    work,
    tensors,
    strengths,
    grads,
    rows,
    before,
    METHOD: tl.constexpr,
    W: tl.constexpr,
    ENTRIES: tl.constexpr,
    ALIGNED: tl.constexpr,
    SLOTS: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    """Last sweep of a shared tile: write the new iterate."""
    slot = tl.program_id(0).to(tl.int64)
    item = work + slot * 8
    i = tl.load(item)
    table, row, grad = tensors + i * 8, rows + i * 12, grads + i
    if (tl.load(row) == 0.0) | (tl.load(grad) == 0):
        return
    lo, hi = tl.load(item + 4).to(tl.int32), tl.load(item + 5).to(tl.int32)
    tau = tl.load(row + 2)
    weak = (tau * tl.load(strengths + i * 2)).to(tl.float32)
    threshold = (tau * tl.load(strengths + i * 2 + 1)).to(tl.float32)
    if (METHOD == "ramda") or (METHOD == "prox_adamw"):
        r, norm, _, _ = next_r(before, item, threshold, False, C)
    else:
        norm = tl.sqrt_rn(added(before, item, 0, False, C))
        r = norm
    writing(lo, hi, r, norm, item, table, row, weak, threshold, METHOD, W, ENTRIES, ALIGNED, R, C)
