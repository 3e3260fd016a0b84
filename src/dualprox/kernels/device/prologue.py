"""The Triton kernel that moves the counters on the device and works out a step's scalars there."""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false
# Kernels are written in Triton's language, whose types are not Python's.

import triton  # pyright: ignore[reportMissingImports] # optional
import triton.language as tl  # pyright: ignore[reportMissingImports] # optional

# Added to the halves of words passed as arguments, so that all are taken for 64-bit integers.
HALF = tl.constexpr(1 << 40)


@triton.jit
def power(base, exponent):
    """Base ** exponent in float64, for a whole exponent >= 0."""
    result = base * 0.0 + 1.0
    rest = exponent
    factor = base
    while rest > 0:
        if rest % 2 == 1:
            result = result * factor
        factor = factor * factor
        rest = rest // 2
    return result


@triton.jit
def counter(counters, k: tl.constexpr):
    """The pointer to a float64 counter."""
    return tl.load(counters + k).to(tl.pointer_type(tl.float64))


@triton.jit
def prologue(counters, grads, settings, lr_of, rows, METHOD: tl.constexpr, LR: tl.constexpr):
    """Advance one tensor's counters and fill its row of scalars; see `steps`.

    Settings, float64: lr, momentum, ramp, b1, b2, eps, weight decay, sign of the gradient. With
    LR (a dtype, else None) lr is read from `lr_of` instead. A tensor without gradient and lr = 0
    make the row inactive and touch nothing.
    """
    i = tl.program_id(0).to(tl.int64)
    row = rows + i * 12
    lr = tl.load(settings)
    if LR is not None:
        lr = tl.load(lr_of).to(tl.float64)
    if (lr == 0.0) | (tl.load(grads + i) == 0):
        tl.store(row, 0.0)
        return
    place = counters + i * 4
    sign = tl.load(settings + 7)
    step_of = counter(place, 0)
    step = tl.load(step_of)
    tl.store(row, 1.0)
    if (METHOD == "rmda") or (METHOD == "ramda"):
        sum_of, flag_of = counter(place, 1), counter(place, 2)
        fresh = tl.load(flag_of) != 0.0
        step = tl.where(fresh, 0.0, step) + 1.0
        beta = tl.sqrt(step)
        scale = lr * beta
        penalty_sum = tl.where(fresh, 0.0, tl.load(sum_of)) + scale
        tl.store(sum_of, penalty_sum)
        tl.store(flag_of, 0.0)
        weight = 1.0 - tl.load(settings + 1)
        weight = tl.where(tl.load(settings + 2) != 0.0, tl.minimum(weight * beta, 1.0), weight)
        tl.store(row + 1, fresh.to(tl.float64))
        tl.store(row + 3, weight)
        tl.store(row + 4, sign * scale)
        if METHOD == "rmda":
            tl.store(row + 2, penalty_sum / beta)
            tl.store(row + 5, beta)
        else:
            eps = tl.load(settings + 5)
            tl.store(counter(place, 3), eps)
            tl.store(row + 2, penalty_sum)
            tl.store(row + 5, scale)
            tl.store(row + 6, eps)
    else:
        step += 1.0
        tl.store(row + 4, sign)
        if METHOD == "prox_sgd":
            tl.store(row + 2, 1.0 / (1.0 / lr))
            tl.store(row + 5, 1.0 - tl.load(settings + 1))
            tl.store(row + 6, 1.0 / lr)
        else:
            b1, b2 = tl.load(settings + 3), tl.load(settings + 4)
            t = step.to(tl.int64)
            tl.store(row + 2, lr)
            tl.store(row + 5, 1.0 - b1)
            tl.store(row + 6, b2)
            tl.store(row + 7, 1.0 - b2)
            tl.store(row + 8, lr / (1.0 - power(b1, t)))
            tl.store(row + 9, tl.sqrt(1.0 - power(b2, t)))
            tl.store(row + 10, tl.load(settings + 5))
            tl.store(row + 11, 1.0 - lr * tl.load(settings + 6))
    tl.store(step_of, step)


@triton.jit(
    do_not_specialize=[
        "first",
        "l0",
        "h0",
        "l1",
        "h1",
        "l2",
        "h2",
        "l3",
        "h3",
        "l4",
        "h4",
        "l5",
        "h5",
        "l6",
        "h6",
        "l7",
        "h7",
    ]
)
def write_words(table, first, l0, h0, l1, h1, l2, h2, l3, h3, l4, h4, l5, h5, l6, h6, l7, h7):
    """Write eight 64-bit words, given as low and high halves, where a captured copy could not."""
    place = table + (first - HALF)
    tl.store(place + 0, ((h0 - HALF) << 32) | (l0 - HALF))
    tl.store(place + 1, ((h1 - HALF) << 32) | (l1 - HALF))
    tl.store(place + 2, ((h2 - HALF) << 32) | (l2 - HALF))
    tl.store(place + 3, ((h3 - HALF) << 32) | (l3 - HALF))
    tl.store(place + 4, ((h4 - HALF) << 32) | (l4 - HALF))
    tl.store(place + 5, ((h5 - HALF) << 32) | (l5 - HALF))
    tl.store(place + 6, ((h6 - HALF) << 32) | (l6 - HALF))
    tl.store(place + 7, ((h7 - HALF) << 32) | (l7 - HALF))
