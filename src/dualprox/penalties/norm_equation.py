"""The one scalar equation per group that a diagonal metric leaves of a group penalty.

For a group with numerator a, slopes e and threshold t, the norm r of the minimizer solves

    h(r) = (sum_i a_i^2 / (e_i r + t)^2)^(-1/2) = 1.

h is a power mean of affine functions, hence concave wherever they are positive, whatever the
signs of the slopes. Newton's method from the left therefore climbs to the smallest root without
passing it; from the right, one step lands on the left. No safeguard is needed but the lower bound
(||a|| - t) / max e.
"""

import torch
from torch import Tensor

from ..geometry import Slices
from ..joint import Partition
from ..sharding import whole

# Newton needs 5-6 steps from the lower bound (more only for slopes spread over many orders of
# magnitude). Where asking whether it has converged would stall the device, it takes this many.
_BLIND_STEPS = 12
_MOST_STEPS = 60


def _asks(tensor: Tensor) -> bool:
    """Whether a question about this tensor's values is free of waiting for a device."""
    return tensor.device.type == "cpu"


def _terms(a: Tensor, slope: Tensor, r: Tensor, threshold: float | Tensor) -> tuple[Tensor, Tensor]:
    """The terms of sum_i a_i^2 / (e_i r + t)^2, and of -1/2 times its derivative."""
    denominator = slope * r + threshold
    share = (a / denominator).square()
    return share, slope * share / denominator


def solve_norm_equation(
    a: Tensor,
    slope: Tensor,
    threshold: float | Tensor,
    slices: Slices | Partition,
    start: Tensor | None = None,
    cap: float | Tensor = float("inf"),
) -> tuple[Tensor, int]:
    """The smallest root r in (0, cap] of ||a / (slope r + threshold)|| = 1, group by group.

    Args:
        a: a view that `slices` made.
        slope: of a's shape; any sign, but slope * cap + threshold >= 0.
        threshold: >= 0, a number or one for each group.
        slices: the groups of `a`.
        start: a guess of r, in the shape of sums over groups.
        cap: where to stop looking, a number or one for each group.

    Returns:
        r in the shape of sums over groups: meaningless for groups with ||a|| <= threshold, which
        have no root, and infinite where the others have none up to `cap`; and Newton steps used.
    """
    norm = slices.norm(a)
    steepest = slices.amax(slope)
    lower = torch.where(steepest > 0, (norm - threshold) / steepest, torch.inf).clamp_min(0)
    settled = ~(norm > threshold)
    r = lower if start is None else torch.maximum(start, lower)
    # Newton doubles the digits: a step this small was the last one needed.
    small = torch.finfo(a.dtype).eps ** 0.5
    blind = not _asks(a)
    steps, most = 0, _BLIND_STEPS if blind else _MOST_STEPS
    while steps < most:
        steps += 1
        # h(r) = total^(-1/2), h'(r) = rise * total^(-3/2)
        total, rise = slices.sums(_terms, a, slope, r, threshold)
        step = (total.sqrt() - 1) * total / rise
        # A tangent that does not rise towards 1 means that h never gets there.
        ahead = torch.where((rise <= 0) & (total > 1), torch.inf, r + step)
        ahead = torch.where(ahead > cap, torch.inf, torch.maximum(ahead, lower))
        moved = (ahead - r).abs()
        r = ahead
        if not blind and bool(whole((settled | ~(moved > small * r)).all())):
            break
    return r, steps
