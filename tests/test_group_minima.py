"""Nonconvex groups under hard metrics: the point found is the global one, against dense scans."""

from itertools import pairwise

import numpy as np
import pytest
import torch

import dualprox as dp
from contracts import MEMBERS, coupling_of
from dualprox.penalties import norm_equation
from oracles import grouped
from oracles.coupled import Coupled

KINDS = {
    "GroupMCP": {"gamma": 2.0},
    "GroupSCAD": {"gamma": 2.5},
    "GroupL0": {},
    "GroupHalf": {},
}
kinds = pytest.mark.parametrize("name", KINDS)


def objective(a: np.ndarray, d: np.ndarray, step: float, penalty, z: np.ndarray):
    """Per column, the objective and the size of its terms."""
    smooth = (0.5 * d * z * z - a * z).sum(axis=0)
    values = np.array([penalty.one_value(z[:, g], penalty.strength) for g in range(a.shape[1])])
    size = (0.5 * d * z * z + np.abs(a * z)).sum(axis=0) + step * values
    return smooth + step * values, size


def hard_groups(seed: int, spread: float, size: int = 5, count: int = 60):
    """Groups whose entries come alive at different norms: what one holds, another may take over."""
    rng = np.random.default_rng(seed)
    d = 10 ** rng.uniform(-spread, spread, size=(size, count))
    a = rng.normal(size=(size, count)) * d ** rng.uniform(0, 1, size=(size, count))
    return a, d


def assert_global(name: str, a, d, step: float, strength: float, slack: float, dtype) -> list[int]:
    """Compare the library's objective with the scan's; return how often (zero, live) won."""
    ours = getattr(dp, name)(strength, size_weighted=False, **KINDS[name])
    truth = getattr(grouped, name)(strength, size_weighted=False, **KINDS[name])
    if isinstance(truth, grouped.Radial):
        truth.points = 4001
    tensors = (torch.tensor(x, dtype=dtype) for x in (a, d))
    z = ours.metric_prox(*tensors, step)[0].double().numpy()
    best = truth.metric_prox(a, d, step)
    found, size = objective(a, d, step, truth, z)
    least, least_size = objective(a, d, step, truth, best)
    assert np.isfinite(z).all()
    assert (found <= least + slack * (size + least_size)).all()
    live = (best != 0).any(axis=0)
    # A tie of the objectives may go either way; nothing else may.
    tied = np.abs(least) <= slack * (size + least_size)
    assert ((z != 0).any(axis=0) == live)[~tied].all()
    return [int((~live).sum()), int(live.sum())]


@kinds
@pytest.mark.parametrize("blind", [False, True], ids=["asking", "blind"])
@pytest.mark.parametrize("spread", [0.5, 2.0])
def test_no_scanned_norm_beats_the_solution(name, spread, blind, monkeypatch):
    if blind:
        monkeypatch.setattr(norm_equation, "_asks", lambda tensor: False)
    won = np.zeros(2, int)
    for seed, step in enumerate((0.05, 0.5, 5.0)):
        a, d = hard_groups(seed, spread)
        won += assert_global(name, a, d, step, 0.7, 1e-6 if blind else 1e-12, torch.float64)
    assert won.min() > 0


@kinds
@pytest.mark.parametrize("step", [1e-3, 0.3, 30.0])
def test_metrics_over_ten_orders_and_single_precision(name, step):
    a, d = hard_groups(10, 5.0)
    assert_global(name, a, d, step, 0.7, 1e-10, torch.float64)
    a, d = a.astype(np.float32).astype(float), d.astype(np.float32).astype(float)
    assert_global(name, a, d, step, 0.7, 1e-4, torch.float32)


@kinds
def test_equal_entries_zero_groups_and_zero_penalties(name):
    a, d = np.tile([1.0, 2.0, 0.0, -3.0], (4, 1)), np.tile([2.0, 0.5, 1.0, 1e-3], (4, 1))
    assert_global(name, a, d, 0.8, 0.7, 1e-12, torch.float64)
    for step, strength in ((0.0, 0.7), (0.8, 0.0)):
        penalty = getattr(dp, name)(strength, **KINDS[name])
        z = penalty.metric_prox(torch.tensor(a), torch.tensor(d), step)[0]
        assert np.allclose(z.numpy(), a / d, rtol=1e-14, atol=0)
        assert torch.allclose(penalty.prox(torch.tensor(a), step), torch.tensor(a), rtol=1e-14)
        assert (float(penalty.value(z)) > 0) == (strength > 0)


@kinds
@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_groups_over_tensors_are_solved_alike(name, spread):
    rng = np.random.default_rng(5)
    penalty = dp.Coupled(getattr(dp, name)(0.3, **KINDS[name]), coupling_of(MEMBERS))
    truth = Coupled(getattr(grouped, name), {"strength": 0.3, **KINDS[name]}, MEMBERS)
    for step in (0.1, 1.0):
        a, d = 2 * rng.normal(size=40), 10 ** rng.uniform(-spread / 2, spread / 2, size=40)
        z = penalty.metric_prox(torch.tensor(a), torch.tensor(d), step)[0].numpy()
        expected = truth.metric_prox(a, d, step)
        assert np.array_equal(z == 0, expected == 0)
        assert np.abs(z - expected).max() <= 1e-9 * np.abs(expected).max()


def test_half_groups_with_two_minima_take_the_lower_one_on_both_sides_of_the_tie():
    """A stiff entry holds the group at norm 1e-3, a soft one at norm 1."""
    d, norms = np.array([[1e6], [1.0]]), []
    for pull in np.linspace(0.5, 3.0, 26):
        a = np.array([[1e3 * 1.5], [pull]])
        assert_global("GroupHalf", a, d, 0.7, 1.0, 1e-13, torch.float64)
        half = dp.GroupHalf(1.0, size_weighted=False)
        z = half.metric_prox(torch.tensor(a), torch.tensor(d), 0.7)[0]
        norms.append(float(z.norm()))
    assert min(norms) < 0.01 and max(norms) > 1 and norms == sorted(norms)
    jump = max(after - before for before, after in pairwise(norms))
    assert jump > 0.3  # from one minimum to the other, nothing between
