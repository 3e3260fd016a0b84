"""Rounding over many steps: float32 beside float64, bounds and all, as docs/math.md states them."""

import math
from typing import Any

import numpy as np
import pytest
import torch

import dualprox as dp
from dualprox.kernels import native
from oracles import algorithms
from oracles.cases import oracle

HALF_DIGIT = 2.0**-24  # u, the unit roundoff of float32
STRENGTH = 0.1
TARGET = np.array([[1.0, 0.02, -0.6], [0.8, -0.03, 0.5]])
START = np.array([[0.3, -0.2, 0.1], [0.5, 0.4, -0.6]], dtype=np.float32).astype(float)
SETTINGS: dict[str, dict[str, Any]] = {
    "RMDA": {"lr": 0.01, "momentum": 0.9},
    "RAMDA": {"lr": 0.01, "momentum": 0.9, "eps": 1e-6},
    "ProxSGD": {"lr": 0.01, "momentum": 0.9},
    "ProxAdamW": {"lr": 0.001},
}
FUSED = "native" if native.why_unavailable() is None else "eager"
methods = pytest.mark.parametrize("method", SETTINGS)
lengths = pytest.mark.parametrize(
    ("impl", "steps"),
    [
        ("eager", 600),
        pytest.param(FUSED, 10_000, marks=pytest.mark.slow),
        pytest.param(FUSED, 1_000_000, marks=pytest.mark.exhaustive),
    ],
)


def transcription(method: str) -> Any:
    psi = oracle("GroupLasso", strength=STRENGTH, axis=1)
    if method == "RMDA":
        return algorithms.RMDA(START, psi, 0.01, 0.1)
    if method == "RAMDA":
        return algorithms.RAMDA(START, psi, 0.01, 0.1, 1e-6)
    if method == "ProxSGD":
        return algorithms.ProxSGD(START, psi, 0.01, 0.9)
    return algorithms.ProxAdamW(START, psi, 0.001, (0.9, 0.999), 1e-8)


class Pair:
    """One weight of three groups, the middle one to be removed, in float32 and in float64."""

    def __init__(self, method: str, impl: str) -> None:
        self.weight = torch.nn.Parameter(torch.tensor(START, dtype=torch.float32))
        group = {"params": [self.weight], "penalty": dp.GroupLasso(STRENGTH)}
        self.ours = getattr(dp, method)([group], impl=impl, **SETTINGS[method])
        self.theirs = transcription(method)
        self.noise = np.random.default_rng(0)

    def gradient(self, at: np.ndarray, noise: np.ndarray) -> np.ndarray:
        return (at - TARGET + 0.1 * noise).astype(np.float32)

    def step(self, together: bool) -> np.ndarray:
        """Both step by the gradient at theirs, or each by its own; theirs is returned."""
        noise = self.noise.standard_normal(START.shape)
        theirs = self.gradient(self.theirs.w, noise)
        ours = theirs if together else self.gradient(self.weight.detach().numpy(), noise)
        self.weight.grad = torch.from_numpy(ours)
        self.ours.step()
        self.theirs.step(theirs.astype(float))
        return theirs.astype(float)

    def state(self, name: str) -> np.ndarray:
        return self.ours.state[self.weight][name].double().numpy()

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        ours = self.ours.structured_point(self.weight).double().numpy()
        return ours, self.theirs.structured()


@pytest.mark.promise(
    "numbers",
    "sums in float32 stay within n u of the sum of their moduli, gradients' even near the "
    "square root of that, with the support of float64",
    "steps beside float64",
)
@lengths
@pytest.mark.parametrize("method", ["RMDA", "RAMDA"])
def test_running_sums_keep_within_their_bounds(method, impl, steps, tries):
    pair = Pair(method, impl)
    sums = {"grad_sum": "grad_sum"} | ({"grad_sq_sum": "square_sum"} if method == "RAMDA" else {})
    moduli = {name: np.zeros(START.shape) for name in sums}
    squares = {name: np.zeros(START.shape) for name in sums}
    for t in range(1, steps + 1):
        gradient = np.abs(pair.step(together=True))
        for name, theirs in sums.items():
            now, power = np.abs(getattr(pair.theirs, theirs)), 1 if name == "grad_sum" else 2
            # Rounded are the new sum, and the increment: its scale, square and product.
            one = now + 3 * pair.theirs.lr * math.sqrt(t) * gradient**power
            moduli[name] += one
            squares[name] += one**2
        if t % 300 == 0:
            ours, expected = pair.points()
            assert ((ours == 0) == (expected == 0)).all()
            for name, theirs in sums.items():
                off = np.abs(pair.state(name) - getattr(pair.theirs, theirs))
                assert (off <= 1.01 * HALF_DIGIT * moduli[name]).all(), name
                if name == "grad_sum":  # equal signs, as of squares, round alike in the long run
                    assert (off <= 4 * HALF_DIGIT * np.sqrt(squares[name])).all(), name
    _, expected = pair.points()
    assert pair.state("step") == steps
    assert abs(pair.state("penalty_sum") / pair.theirs.alpha - 1) <= 1e-15
    assert (expected == 0).any() and (expected != 0).any()
    tries.add(steps)


@pytest.mark.promise(
    "numbers",
    "training in float32 stays as close to training in float64, with the same noise, as rounding "
    "of one step allows, and ends on the same support",
    "steps beside float64",
)
@lengths
@methods
def test_training_is_corrected_by_its_own_gradients(method, impl, steps, tries):
    pair = Pair(method, impl)
    for t in range(1, steps + 1):
        pair.step(together=False)
        if t % 300 == 0:
            ours, theirs = pair.points()
            size = 1.0
            if method in ("RMDA", "RAMDA"):  # what cancels in the structured point
                metric = math.sqrt(t)
                if method == "RAMDA":
                    metric = np.cbrt(pair.theirs.square_sum) + 1e-6
                size += (np.abs(pair.theirs.grad_sum) / metric).max()
            # A step of ProxAdamW moves by lr at most: rounding walks for 1 / lr steps.
            within = 320 if method == "ProxAdamW" else 40
            assert np.abs(ours - theirs).max() <= within * HALF_DIGIT * size
            assert ((ours == 0) == (theirs == 0)).all()
    _, theirs = pair.points()
    assert (theirs == 0).any() and (theirs != 0).any()
    tries.add(steps)


@pytest.mark.parametrize("impl", ["eager", FUSED])
@pytest.mark.parametrize("method", ["ProxSGD", "ProxAdamW"])
def test_methods_without_sums_drift_like_a_random_walk(method, impl):
    pair = Pair(method, impl)
    for t in range(1, 401):
        pair.step(together=True)
        if t % 100 == 0:
            ours, theirs = pair.points()
            assert np.abs(ours - theirs).max() <= 10 * HALF_DIGIT * math.sqrt(t)
    ours, theirs = pair.points()
    assert ((ours == 0) == (theirs == 0)).all()
