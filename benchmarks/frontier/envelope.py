"""Curves of a metric over size, and the best of several at every size."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Point:
    """The runs of one method at one target, over seeds.

    Args:
        size: mean size reached, a fraction of the parameters.
        macs: mean MACs, a fraction of the dense network's.
        mean, low, high: of the test metric.
        seeds: how many runs.
        target: size asked for; None for methods without one.
    """

    size: float
    macs: float
    mean: float
    low: float
    high: float
    seeds: int
    target: float | None = None


def at(points: Sequence[Point], size: float) -> float | None:
    """The mean metric at a size, by linear interpolation in log size; None outside the curve.

    Up to 3 % beyond an end, which is how closely targets are met, it is the end's.

    Example:
        >>> curve = [Point(0.01, 1, 0.5, 0.5, 0.5, 1), Point(0.1, 1, 0.9, 0.9, 0.9, 1)]
        >>> round(at(curve, 10**-1.5), 6), at(curve, 0.102), at(curve, 0.2)
        (0.7, 0.9, None)
    """
    ordered = sorted(points, key=lambda point: point.size)
    if not ordered or not ordered[0].size / 1.03 <= size <= 1.03 * ordered[-1].size:
        return None
    sizes = [math.log(point.size) for point in ordered]
    return float(np.interp(math.log(size), sizes, [point.mean for point in ordered]))


def best(
    curves: Mapping[str, Sequence[Point]], size: float, higher_is_better: bool
) -> tuple[str, float] | None:
    """The best curve at a size and its metric; None if no curve goes there."""
    there = {
        name: value for name, curve in curves.items() if (value := at(curve, size)) is not None
    }
    if not there:
        return None
    name = (max if higher_is_better else min)(there, key=lambda name: there[name])
    return name, there[name]


def envelope(
    curves: Mapping[str, Sequence[Point]], higher_is_better: bool, steps: int = 200
) -> list[tuple[float, float]]:
    """(size, best metric) over the range that the curves cover, evenly in log size."""
    sizes = [point.size for curve in curves.values() for point in curve]
    if not sizes:
        return []
    inside = np.geomspace(min(sizes), max(sizes), steps)[1:-1]
    grid = sorted({*sizes, *(float(size) for size in inside)})
    found = [(size, best(curves, size, higher_is_better)) for size in grid]
    return [(size, winner[1]) for size, winner in found if winner is not None]
