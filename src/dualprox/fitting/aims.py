"""What the control of a size aims at: a latency as a share of parameters, a size as a strength."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from ..shrinking.inputs import ExampleInput
from ..shrinking.measure import measure
from .target import TargetSize

_BISECTIONS = 40
_MOST_STRENGTH = 1e24


@dataclass(eq=False)
class LatencyAim:
    """The share of parameters that has a latency, by those that have been measured.

    Between the last two measurements latency is a power of the share.

    Args:
        target: of a latency.
        example: for the runs.
        known: pairs of share and milliseconds, in the order of measuring.
    """

    target: TargetSize
    example: ExampleInput
    known: list[tuple[float, float]] = field(default_factory=list)

    def measured(self, model: nn.Module) -> float:
        """The median time of a run in milliseconds.

        Raises:
            ValueError: the model does not run.
        """
        batch_sizes = (self.target.batch_size,)
        cost = measure(model, self.example, batch_sizes=batch_sizes, seconds=0.3)
        timing = cost.latencies[0].timing
        if timing is None:
            raise ValueError(f"latency cannot be measured: {cost.latencies[0].failure}")
        return 1e3 * timing.median

    def goal(self, share: float, model: nn.Module) -> float:
        """Measure a model that has this share of the parameters, and aim anew."""
        self.known.append((share, self.measured(model)))
        (s1, t1), (s0, t0) = self.known[-1], self.known[max(0, len(self.known) - 2)]
        power = 1.0 if len(self.known) == 1 else 0.7
        if abs(math.log(s1 / s0)) > 0.05:
            power = min(1.5, max(0.2, math.log(t1 / t0) / math.log(s1 / s0)))
        return min(1.0, max(1e-4, s1 * (self.target.value / t1) ** (1 / power)))


def least_strength(size: Callable[[float], float], goal: float, start: float) -> float:
    """The least strength, to 1e-6 of it, at which a size that falls with it is <= goal.

    If there is none, that at which the size is least.

    Args:
        size: of a strength.
        goal: the size asked for.
        start: a guess > 0.
    """
    above = start
    while size(above) > goal:
        above *= 4
        if above > _MOST_STRENGTH:  # bounds forbid the goal: as small as it gets
            goal = size(above)
    below = above
    for _ in range(100):
        below /= 4
        if size(below) > goal or below < 1e-30:
            break
        above = below
    for _ in range(_BISECTIONS):
        middle = math.sqrt(below * above)
        below, above = (below, middle) if size(middle) <= goal else (middle, above)
        if above / below < 1 + 1e-6:
            break
    return above
