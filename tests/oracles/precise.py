"""Subproblems under a diagonal metric to 50 digits, for metrics no float root finder is trusted on.

Every function takes one group as float sequences, reads the floats as the exact rationals they are
and returns the minimizer of 1/2 <z, D z> - <a, z> + l1 ||z||_1 + threshold ||z|| as floats.
"""

import mpmath

DIGITS = 50
HALVINGS = 170  # of the bracket of log r: a relative 1e-48 from a bracket as wide as 1e100


def precise_soft(a, l1):
    """Return sign(a) max(|a| - l1, 0) as mpf."""
    return [mpmath.sign(x) * max(abs(mpmath.mpf(x)) - mpmath.mpf(l1), 0) for x in a]


def precise_group(a, d, threshold, l1=0.0):
    """Solve one group of the (sparse) group LASSO by bisection on r = ||z||.

    With b = soft(a, l1): zero iff ||b|| <= threshold, else z = b r / (d r + threshold), where
    sum_i (b_i / (d_i r + threshold))^2 = 1.
    """
    with mpmath.workdps(DIGITS):
        pull = precise_soft(a, l1)
        metric = [mpmath.mpf(x) for x in d]
        t = mpmath.mpf(threshold)
        norm = mpmath.sqrt(sum(x * x for x in pull))
        if norm <= t:
            return [0.0] * len(pull)
        if t == 0:
            return [float(x / e) for x, e in zip(pull, metric, strict=True)]
        low = (norm - t) / max(metric)
        high = (norm - t) / min(metric)
        for _ in range(HALVINGS):
            r = mpmath.sqrt(low * high)
            if sum((x / (e * r + t)) ** 2 for x, e in zip(pull, metric, strict=True)) > 1:
                low = r
            else:
                high = r
        r = mpmath.sqrt(low * high)
        return [float(x * r / (e * r + t)) for x, e in zip(pull, metric, strict=True)]


def condition(a, threshold, l1=0.0):
    """Return how much a relative change of a or the threshold is magnified in z.

    Near the border of the zero region z grows from zero, so a change of one unit in the last place
    of ||b|| or of the threshold is one of size ||b|| / (||b|| - threshold) in z.
    """
    with mpmath.workdps(DIGITS):
        pull = precise_soft(a, l1)
        norm = mpmath.sqrt(sum(x * x for x in pull))
        shift = max(
            [abs(mpmath.mpf(x)) / abs(y) for x, y in zip(a, pull, strict=True) if y != 0],
            default=mpmath.mpf(1),
        )
        gap = abs(norm - mpmath.mpf(threshold))
        return float(shift * (1 + norm / gap)) if gap else float("inf")
