"""Kernels that read each entry once: no groups, and groups that fit on chip.

`kernels.triton_steps` fills their tables.

Tables (row-major, int64 words; float64 values as their bits):

- tensors (tensor, 8): addresses of parameter, anchor, first sum, second sum; distance between the
  rows of a tile; pieces per row; entries of a group in a row; address of a narrow parameter's
  remainder.
- strengths (tensor, 2): entry strength, group strength (float64).
- grads (tensor,): addresses, 0 for no gradient.
- rows (tensor, 12), float64: what a step's scalars come to, filled by the host or by `prologue`:
  active, fresh stage, tau, mix, then per method
  rmda: +-s, beta; ramda: +-s, s, eps; prox_sgd: +-1, 1 - momentum, 1 / lr;
  prox_adamw: +-1, 1 - b1, b2, 1 - b2, lr / (1 - b1^t), sqrt(1 - b2^t), eps, 1 - lr wd.
- work (program, 8): tensor; offset of the tile; rows; entries per row; first and last chunk;
  first slot of the tile; slots of the tile.

A tile holds whole groups. In it groups are rows (RUNS) or sets of adjacent columns, `width` columns
each (WIDE) or one each. Sums over groups keep the axis, so that they broadcast over the tile.
"""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false
# Kernels are written in Triton's language, whose types are not Python's.

import triton  # pyright: ignore[reportMissingImports] # optional
import triton.language as tl  # pyright: ignore[reportMissingImports] # optional

# Newton's last step was small enough if it was the square root of float32's precision.
_SMALL = tl.constexpr(3.4526698e-4)
_MOST_STEPS = tl.constexpr(60)


@triton.jit
def cube_root(x):
    """Cube root of x >= 0 to float32's rounding: bit trick, then two Halley steps."""
    tiny, huge = x < 7.888609052210118e-31, x > 1.2676506002282294e30  # 2^-100, 2^100
    # Scaled by 2^96 = (2^32)^3, so that no cube leaves the range of normal numbers.
    scaled = x * tl.where(tiny, 7.922816251426434e28, tl.where(huge, 1.262177448353619e-29, 1.0))
    y = (scaled.to(tl.int32, bitcast=True) // 3 + 709921077).to(tl.float32, bitcast=True)
    cube = y * y * y
    y = y * ((cube + 2.0 * scaled) / (2.0 * cube + scaled))
    cube = y * y * y
    y = y * ((cube + 2.0 * scaled) / (2.0 * cube + scaled))
    y = y * tl.where(tiny, 2.3283064365386963e-10, tl.where(huge, 4294967296.0, 1.0))
    return tl.where((x == 0.0) | (x == float("inf")), x, y)


@triton.jit
def soft(a, threshold):
    """sign(a) max(|a| - threshold, 0), zeros exact, NaN kept."""
    return a - tl.minimum(tl.maximum(a, -threshold), threshold)


@triton.jit
def mixed(w, z, mix):
    """(1 - mix) w + mix z as torch.lerp has it: mix = 1 gives z exactly."""
    return tl.where(mix < 0.5, w + mix * (z - w), z - (z - w) * (1.0 - mix))


@triton.jit
def scalar(row, k: tl.constexpr):
    """One of the step's scalars in float32."""
    return tl.load(row + k).to(tl.float32)


@triton.jit
def flushed(x):
    """Zero for a subnormal number; NaN stays."""
    return tl.where(tl.abs(x) < 1.1754943508222875e-38, 0.0, x)


@triton.jit
def advanced(g, v, u, row, METHOD: tl.constexpr):
    """The sums (or averages) with the new gradient in them."""
    sign = scalar(row, 4)
    if METHOD == "rmda":
        v = v + sign * g
    elif METHOD == "ramda":
        v = v + sign * g
        u = u + scalar(row, 5) * (g * g)
    elif METHOD == "prox_sgd":
        v = mixed(v, sign * g, scalar(row, 5))
    else:
        v = mixed(v, sign * g, scalar(row, 5))
        u = u * scalar(row, 6) + scalar(row, 7) * (g * g)
    largest = 3.4028234663852886e38  # an infinite metric times 0 would be NaN
    return flushed(v), flushed(tl.where(u > largest, largest, u))


@triton.jit
def pulled(center, v, u, row, METHOD: tl.constexpr):
    """The a and d of 1/2 <z, D z> - <a, z> + t psi(z); where D is a number, of z - a: no d."""
    if METHOD == "rmda":
        return center - v / scalar(row, 5), v
    elif METHOD == "ramda":
        d = cube_root(u) + scalar(row, 6)
        return d * center - v, d
    elif METHOD == "prox_sgd":
        return center - v / scalar(row, 6), v
    else:
        d = tl.sqrt_rn(u) / scalar(row, 9) + scalar(row, 10)
        return d * (center * scalar(row, 11)) - v * scalar(row, 8), d


@triton.jit
def read(pointer, cells, mask):
    """Entries in float32; 0 outside the mask."""
    return tl.load(pointer + cells, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def array(table, k: tl.constexpr, offset, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """The pointer to entry `offset` of the array whose address is the table's k-th word."""
    pointer = tl.load(table + k).to(tl.pointer_type(DTYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer + offset


@triton.jit
def iterate(table, offset, cells, mask, W: tl.constexpr, ALIGNED: tl.constexpr):
    """Entries of the iterate in float32: the parameter and, if it is narrower, the remainder."""
    w = read(array(table, 0, offset, W, ALIGNED), cells, mask)
    if W != tl.float32:
        w += read(array(table, 7, offset, tl.bfloat16, ALIGNED), cells, mask)
    return w


@triton.jit
def begun(
    w,
    offset,
    cells,
    mask,
    table,
    grad,
    row,
    METHOD: tl.constexpr,
    W: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Advance the sums in memory; return them with the subproblem's center."""
    AVERAGES: tl.constexpr = (METHOD == "rmda") or (METHOD == "ramda")
    METRIC: tl.constexpr = (METHOD == "ramda") or (METHOD == "prox_adamw")
    g = read(array(grad, 0, offset, W, ALIGNED), cells, mask)
    first = array(table, 2, offset, tl.float32, ALIGNED)
    second = array(table, 3, offset, tl.float32, ALIGNED)
    center = w
    kept = mask
    if AVERAGES:
        # Spread over the tile before comparing: the interpreter cannot spread a truth value.
        fresh = tl.full(mask.shape, 0.0, tl.float32) + scalar(row, 1) != 0.0
        anchor = array(table, 1, offset, tl.float32, ALIGNED)
        kept = mask & (fresh == 0)  # a new stage forgets the sums: they are not even read
        center = tl.where(fresh, flushed(w), read(anchor, cells, kept))
        tl.store(anchor + cells, flushed(w), mask=mask & fresh)
    v = read(first, cells, kept)
    u = v
    if METRIC:
        u = read(second, cells, kept)
    v, u = advanced(g, v, u, row, METHOD)
    tl.store(first + cells, v, mask=mask)
    if METRIC:
        tl.store(second + cells, u, mask=mask)
    return center, v, u


@triton.jit
def recalled(w, offset, cells, mask, table, METHOD: tl.constexpr, ALIGNED: tl.constexpr):
    """Center and sums again, from memory, after `begun`."""
    METRIC: tl.constexpr = (METHOD == "ramda") or (METHOD == "prox_adamw")
    center = w
    if (METHOD == "rmda") or (METHOD == "ramda"):
        center = read(array(table, 1, offset, tl.float32, ALIGNED), cells, mask)
    v = read(array(table, 2, offset, tl.float32, ALIGNED), cells, mask)
    u = v
    if METRIC:
        u = read(array(table, 3, offset, tl.float32, ALIGNED), cells, mask)
    return center, v, u


@triton.jit
def finish(
    w,
    z,
    offset,
    cells,
    mask,
    table,
    row,
    METHOD: tl.constexpr,
    W: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Write the new iterate."""
    if (METHOD == "rmda") or (METHOD == "ramda"):
        z = mixed(w, z, scalar(row, 3))
    z = flushed(z)
    narrow = z.to(W)
    tl.store(array(table, 0, offset, W, ALIGNED) + cells, narrow, mask=mask)
    if W != tl.float32:
        rest = flushed(z - narrow.to(tl.float32)).to(tl.bfloat16)
        tl.store(array(table, 7, offset, tl.bfloat16, ALIGNED) + cells, rest, mask=mask)


@triton.jit
def elementwise_step(
    work,
    tensors,
    strengths,
    grads,
    rows,
    METHOD: tl.constexpr,
    W: tl.constexpr,
    ENTRIES: tl.constexpr,
    ALIGNED: tl.constexpr,
    C: tl.constexpr,
):
    """One step without groups: no penalty, or L1 (ENTRIES)."""
    item = work + tl.program_id(0).to(tl.int64) * 8
    i = tl.load(item)
    table, row, grad = tensors + i * 8, rows + i * 12, grads + i
    if (tl.load(row) == 0.0) | (tl.load(grad) == 0):
        return
    offset, run = tl.load(item + 1), tl.load(item + 3)
    if ALIGNED:
        offset, run = tl.multiple_of(offset, 4), tl.multiple_of(run, 4)
    cells = tl.arange(0, C)
    mask = cells < run
    w = iterate(table, offset, cells, mask, W, ALIGNED)
    center, v, u = begun(w, offset, cells, mask, table, grad, row, METHOD, W, ALIGNED)
    a, d = pulled(center, v, u, row, METHOD)
    if ENTRIES:
        a = soft(a, (tl.load(row + 2) * tl.load(strengths + i * 2)).to(tl.float32))
    if (METHOD == "ramda") or (METHOD == "prox_adamw"):
        a = a / d
    finish(w, a, offset, cells, mask, table, row, METHOD, W, ALIGNED)


@triton.jit
def in_groups(
    x, width, MAXIMUM: tl.constexpr, RUNS: tl.constexpr, SLOTS: tl.constexpr, C: tl.constexpr
):
    """Sums (or maxima of x >= 0) over the groups of a tile, in a shape that broadcasts over it."""
    if RUNS:
        if MAXIMUM:
            result = tl.max(x, 1, keep_dims=True)
        else:
            result = tl.sum(x, 1, keep_dims=True)
    else:
        if MAXIMUM:
            columns = tl.max(x, 0)
        else:
            columns = tl.sum(x, 0)
        if SLOTS > 0:
            owner = tl.arange(0, C) // width
            mine = owner[:, None] == tl.arange(0, SLOTS)[None, :]
            spread = tl.where(mine, columns[:, None], 0.0)
            if MAXIMUM:
                groups = tl.max(spread, 0)
            else:
                groups = tl.sum(spread, 0)
            columns = tl.sum(tl.where(mine, groups[None, :], 0.0), 1)
        result = columns[None, :]
    return result


@triton.jit
def cells_of(j, rows, run, stride, pieces, R: tl.constexpr, C: tl.constexpr):
    """Offsets and mask of the j-th chunk of a tile whose rows are cut into pieces of C entries."""
    place = j * R + tl.arange(0, R)[:, None]
    row = place // pieces
    column = (place - row * pieces) * C + tl.arange(0, C)[None, :]
    return row * stride + column, (row < rows) & (column < run)


@triton.jit
def lower_bound(norm, steepest, threshold):
    """Where Newton's method may start: at or left of the root."""
    return tl.maximum((norm - threshold) / steepest, 0.0)


@triton.jit
def newton(r, total, rise, lower):
    """One Newton step for h(r) = total^(-1/2) = 1, whose derivative is rise total^(-3/2)."""
    return tl.maximum(r + (tl.sqrt_rn(total) - 1.0) * total / rise, lower)


@triton.jit
def are_moving(r, ahead, norm, threshold):
    """1 if a live group's Newton step was not yet small."""
    moving = (norm > threshold) & (tl.abs(ahead - r) > _SMALL * r)
    return tl.max(tl.max(moving.to(tl.int32), 1), 0)


@triton.jit
def solved(a, d, r, norm, threshold):
    """The subproblem's solution from the norm of each group's."""
    dead = norm <= threshold  # not the negated ">": a NaN norm is not a dead group
    r = tl.where(norm != norm, norm, tl.where(dead, 0.0, r))
    return a * r / tl.where(dead, 1.0, d * r + threshold)


@triton.jit
def shortened(a, norm, threshold):
    """The solution where D is a number."""
    return a * tl.where(norm <= threshold, 0.0, 1.0 - threshold / norm)


@triton.jit
def resident_step(
    work,
    tensors,
    strengths,
    grads,
    rows,
    METHOD: tl.constexpr,
    W: tl.constexpr,
    ENTRIES: tl.constexpr,
    ALIGNED: tl.constexpr,
    RUNS: tl.constexpr,
    SLOTS: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    """One step of a tile that stays on chip: each entry is read once and written once."""
    item = work + tl.program_id(0).to(tl.int64) * 8
    i = tl.load(item)
    table, row, grad = tensors + i * 8, rows + i * 12, grads + i
    if (tl.load(row) == 0.0) | (tl.load(grad) == 0):
        return
    offset, high, run = tl.load(item + 1), tl.load(item + 2).to(tl.int32), tl.load(item + 3)
    # Offsets within a part of a tensor fit 32 bits, the part's own is added to the pointers.
    run, stride = run.to(tl.int32), tl.load(table + 4).to(tl.int32)
    if ALIGNED:
        # These hints work only in the function that has loaded the values.
        offset, run = tl.multiple_of(offset, 4), tl.multiple_of(run, 4)
        stride = tl.multiple_of(stride, 4)
    width = tl.load(table + 6).to(tl.int32)
    cells, mask = cells_of(0, high, run, stride, 1, R, C)
    w = iterate(table, offset, cells, mask, W, ALIGNED)
    start = w
    if (METHOD == "ramda") or (METHOD == "prox_adamw"):
        start = tl.sqrt_rn(in_groups(w * w, width, False, RUNS, SLOTS, C))
    center, v, u = begun(w, offset, cells, mask, table, grad, row, METHOD, W, ALIGNED)
    a, d = pulled(center, v, u, row, METHOD)
    tau = tl.load(row + 2)
    if ENTRIES:
        a = soft(a, (tau * tl.load(strengths + i * 2)).to(tl.float32))
    threshold = (tau * tl.load(strengths + i * 2 + 1)).to(tl.float32)
    norm = tl.sqrt_rn(in_groups(a * a, width, False, RUNS, SLOTS, C))
    if (METHOD == "ramda") or (METHOD == "prox_adamw"):
        lower = lower_bound(norm, in_groups(d, width, True, RUNS, SLOTS, C), threshold)
        r = tl.maximum(start, lower)
        steps = 0
        moving = 1
        while (moving != 0) & (steps < _MOST_STEPS):
            below = d * r + threshold
            share = (a / below) * (a / below)
            total = in_groups(share, width, False, RUNS, SLOTS, C)
            rise = in_groups(d * share / below, width, False, RUNS, SLOTS, C)
            ahead = newton(r, total, rise, lower)
            moving = are_moving(r, ahead, norm, threshold)
            r = ahead
            steps += 1
        z = solved(a, d, r, norm, threshold)
        # Read again, from L2, rather than held in registers all the while.
        w = iterate(table, offset, cells, mask, W, ALIGNED)
    else:
        z = shortened(a, norm, threshold)
    finish(w, z, offset, cells, mask, table, row, METHOD, W, ALIGNED)
