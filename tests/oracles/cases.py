"""Which penalties the oracles know, on which weights, and a gradient to train them with."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from . import grouped, penalties

LINEAR, CONV, GROUPED_CONV1D, LSTM = (6, 8), (4, 3, 3, 3), (8, 4, 2), (16, 5)


def oracle(name, **arguments):
    """Build the oracle of the library's penalty of this name."""
    home = penalties if hasattr(penalties, name) else grouped
    return getattr(home, name)(**arguments)


@dataclass(frozen=True)
class Case:
    """One penalty and the weights it is tried on: (shape, further arguments of the penalty)."""

    name: str
    arguments: dict[str, Any]
    weights: list[tuple[tuple[int, ...], dict[str, Any]]] = field(
        default_factory=lambda: [(LINEAR, {}), (CONV, {}), (LSTM, {})]
    )

    def oracles(self):
        """Return one oracle per weight."""
        return [oracle(self.name, **{**self.arguments, **more}) for _, more in self.weights]

    def on(self, i):
        """Return the case on its i-th weight alone."""
        return replace(self, weights=[self.weights[i]])

    def __str__(self):
        return self.name


GROUPED_WEIGHTS = [
    (LINEAR, {"axis": 1}),
    (LINEAR, {"axis": 0, "size_weighted": False, "strength": 1.0}),
    (CONV, {"axis": 1}),
    (CONV, {"axis": 1, "conv_groups": 2}),
    (GROUPED_CONV1D, {"axis": 1, "conv_groups": 2, "block": 2}),
    (GROUPED_CONV1D, {"axis": 0, "conv_groups": 2, "block": 2}),
    (LSTM, {"axis": -1}),
    (LSTM, {"axis": 0, "block": 2}),
]

CASES = [
    Case("L1", {"strength": 0.3}),
    Case("ElasticNet", {"strength": 0.5, "l1_ratio": 0.7}),
    Case("GroupLasso", {"strength": 0.4}, GROUPED_WEIGHTS),
    Case("SparseGroupLasso", {"strength": 0.5, "l1_ratio": 0.4}, GROUPED_WEIGHTS[1::2]),
    Case("NuclearNorm", {"strength": 1.2}),
    Case("MCP", {"strength": 0.3, "gamma": 3.0}),
    Case("SCAD", {"strength": 0.3, "gamma": 3.7}),
    Case("L0", {"strength": 0.1}),
    Case("GroupMCP", {"strength": 0.4, "gamma": 3.0}, GROUPED_WEIGHTS[::2]),
    Case("GroupSCAD", {"strength": 0.4, "gamma": 3.0, "concavity": 0.8}, GROUPED_WEIGHTS[:4:3]),
    Case("GroupL0", {"strength": 0.06}, GROUPED_WEIGHTS[:4:3]),
    Case("GroupHalf", {"strength": 0.15}, GROUPED_WEIGHTS[:4:3]),
    Case("Box", {"lower": -0.4, "upper": 0.6}),
    Case("NonNegative", {}),
    Case("L2Ball", {"radius": 2.0}),
    Case("Cardinality", {"k": 12}),
    Case("RankAtMost", {"rank": 2}),
]


class NoisyQuadratic:
    """Gradients h o (w - target) + noise of one weight, whose target is small in some slices.

    The target's slices along the first two axes span a factor of twenty each, so that a penalty
    of moderate strength removes some of any kind of group, and of the ranks, and keeps others.
    """

    def __init__(self, shape, seed, steps):
        rng = np.random.default_rng(seed)
        rest = (1,) * (len(shape) - 2)
        rows = rng.permutation(np.geomspace(0.1, 2.0, shape[0])).reshape(-1, 1, *rest)
        columns = rng.permutation(np.geomspace(0.1, 2.0, shape[1])).reshape(1, -1, *rest)
        self.target = rng.normal(size=shape) * rows * columns
        self.curvature = rng.uniform(0.5, 1.5, size=shape)
        self.noise = 0.3 * rng.normal(size=(steps, *shape))
        self.start = 0.5 * rng.normal(size=shape)

    def gradient(self, w, step):
        """Return the stochastic gradient at w in the given step."""
        return self.curvature * (w - self.target) + self.noise[step]
