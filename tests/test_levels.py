"""What is said to live at other strengths, against solving the subproblem at these."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import coupled_cases
import dualprox as dp
from dualprox.fitting.levels import Level, slices_alive
from oracles import coupled as coupled_oracle
from oracles.cases import CONV, GROUPED_CONV1D, LINEAR, oracle
from oracles.grouped import groups_of
from oracles.penalties import Penalty as Oracle

OPTIMIZERS: Any = {"rmda": lambda g: dp.RMDA(g, lr=0.1), "ramda": lambda g: dp.RAMDA(g, lr=0.05)}


@dataclass(frozen=True)
class Case:
    """A penalty on weights, and its oracle at a strength."""

    penalty: dp.Penalty
    shapes: list[tuple[int, ...]]
    oracle: Any


def plain(name: str, shape: tuple[int, ...], **more: Any) -> Case:
    arguments = {"axis": 1, "size_weighted": True, **more}
    made = getattr(dp, name)(strength=0.4, **arguments)
    return Case(made, [shape], lambda s: oracle(name, **arguments, strength=s))


def entries(name: str) -> Case:
    made = getattr(dp, name)(0.4)
    return Case(made, [CONV], lambda s: oracle(name, strength=s))


def joint(name: str = "GroupLasso", **more: Any) -> Case:
    fixed = {**coupled_cases.PENALTIES[name], **more}

    def at(strength: float) -> Oracle:
        kind = type(oracle(name, axis=0, **fixed))
        arguments = {**fixed, "strength": strength}
        return coupled_oracle.Coupled(kind, arguments, coupled_cases.STREAM)

    return Case(coupled_cases.coupled(name, **more), coupled_cases.SHAPES, at)


CASES = {
    "linear": plain("GroupLasso", LINEAR),
    "unweighted": plain("GroupLasso", LINEAR, size_weighted=False),
    "rows": plain("GroupLasso", LINEAR, axis=0),
    "conv": plain("GroupLasso", CONV),
    "blocked": plain("GroupLasso", GROUPED_CONV1D, conv_groups=2, block=2),
    "conv groups": plain("GroupLasso", CONV, conv_groups=2),
    "coupled": joint(),
    "coupled unweighted": joint(size_weighted=False),
    "l1": entries("L1"),
    "l0": entries("L0"),
}
OTHERS = {
    "mcp": plain("GroupMCP", LINEAR, gamma=3.0),
    "sparse group": plain("SparseGroupLasso", LINEAR, l1_ratio=0.3),
    "coupled mcp": joint("GroupMCP"),
    "coupled sparse group": joint("SparseGroupLasso"),
}


def trained(case: Case, method: str) -> Level:
    """The level of an optimizer that has taken some steps, in float64."""
    generator = torch.Generator().manual_seed(3)
    params = [nn.Parameter(torch.randn(s, generator=generator).double()) for s in case.shapes]
    opt = OPTIMIZERS[method]([{"params": params, "penalty": case.penalty}])
    for _ in range(6):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator, dtype=torch.float64)
        opt.step()
    (unit,) = opt.units()
    level = Level(opt, unit, 0)
    level.refresh()
    return level


def flat(tensors: list[torch.Tensor]) -> np.ndarray:
    return np.concatenate([tensor.double().numpy().ravel() for tensor in tensors])


def pull_and_metric(level: Level) -> tuple[np.ndarray, np.ndarray, float]:
    """A, D and tau of the subproblem from the optimizer's state, by the papers' formulas."""
    states = [level.opt.state[param] for param in level.unit.params]
    v = flat([state["grad_sum"] for state in states])
    anchor = flat([state["anchor"] for state in states])
    if isinstance(level.opt, dp.RAMDA):
        d = np.cbrt(flat([state["grad_sq_sum"] for state in states])) + float(states[0]["eps"])
    else:
        d = np.full(v.shape, np.sqrt(float(states[0]["step"])))
    return d * anchor - v, d, float(states[0]["penalty_sum"])


def live_by_solving(case: Case, level: Level, strength: float) -> list[bool]:
    a, d, tau = pull_and_metric(level)
    psi = case.oracle(strength)
    if isinstance(psi, coupled_oracle.Coupled):
        return psi.live(psi.metric_prox(a, d, tau))
    shape, own = case.shapes[0], case.penalty
    if isinstance(own, dp.SeparablePenalty):
        return (psi.metric_prox(a, d, tau) != 0).tolist()
    assert isinstance(own, dp.GroupPenalty)
    point = psi.metric_prox(a.reshape(shape), d.reshape(shape), tau).ravel()
    groups = groups_of(shape, own.axis, own.block, own.conv_groups)
    return [bool(point[entries].any()) for entries in groups]


@pytest.mark.parametrize("method", OPTIMIZERS)
@pytest.mark.parametrize("name", CASES)
def test_every_group_dies_at_its_critical_strength(name: str, method: str) -> None:
    case = CASES[name]
    level = trained(case, method)
    assert level._critical is not None
    critical = level._critical.tolist()
    assert len(critical) == level.group_count > 2
    for group, strength in enumerate(critical):
        for factor, lives in ((1 - 1e-9, True), (1 + 1e-9, False)):
            solved = live_by_solving(case, level, factor * strength)
            assert solved[group] is lives
            found = level.live(factor * strength)
            assert isinstance(found, dp.Support)
            assert found.live.tolist() == solved


@pytest.mark.parametrize("method", OPTIMIZERS)
@pytest.mark.parametrize("name", OTHERS)
def test_penalties_without_a_formula_are_solved(name: str, method: str) -> None:
    case = OTHERS[name]
    level = trained(case, method)
    assert level._critical is None
    counts = set()
    for strength in np.geomspace(0.5, 3.0, 16):
        found = level.live(float(strength))
        assert isinstance(found, dp.Support)
        assert found.live.tolist() == live_by_solving(case, level, float(strength))
        counts.add(found.count())
    assert len(counts) >= 3


@pytest.mark.parametrize("method", OPTIMIZERS)
def test_the_rank_is_that_of_the_solution(method: str) -> None:
    level = trained(Case(dp.NuclearNorm(0.4), [LINEAR], None), method)
    a, d, tau = pull_and_metric(level)
    ranks = set()
    for strength in np.geomspace(0.05, 2.0, 8):
        # Dense proximal gradient, many steps; with one metric for all it is the prox at once.
        z, step = np.zeros(LINEAR), 1 / d.max()
        for _ in range(3000):
            moved = z - step * (d * z.ravel() - a).reshape(LINEAR)
            u, s, vh = np.linalg.svd(moved, full_matrices=False)
            z = (u * np.maximum(s - step * tau * strength, 0)) @ vh
        found = level.live(float(strength))
        assert isinstance(found, dp.Rank) and found.total() == 6
        assert found.rank == int((np.linalg.svd(z)[1] > 1e-9).sum())
        ranks.add(found.rank)
    assert len(ranks) >= 3


@pytest.mark.parametrize("name", [*CASES, *OTHERS])
def test_within_is_the_nearest_strength_that_keeps_the_bounds(name: str) -> None:
    level = trained({**CASES, **OTHERS}[name], "ramda")
    count = level.group_count
    grid = np.r_[1e-6, np.geomspace(1e-2, 50.0, 60)]
    alive = np.array([level.live(float(s)).count() for s in grid])
    assert alive[0] == count and alive[-1] == 0
    for low, high in ((0.3, 0.7), (0.5, 1.0), (0.0, 0.5)):
        least, most = int(np.ceil(low * count)), int(np.floor(high * count))
        allowed = (alive >= least) & (alive <= most)
        for strength in (1e-2, 0.3, 50.0):
            found = level.within(strength, low, high)
            assert least <= level.live(found).count() <= most
            own = level.live(strength).count()
            if least <= own <= most:
                assert found == strength
            elif own < least:  # no admissible strength lies between
                assert grid[allowed].max() <= found * (1 + 1e-5) < strength
            else:
                assert strength < found * (1 - 1e-5) <= grid[allowed].min()


def test_slices_are_those_of_each_weight() -> None:
    case = CASES["coupled"]
    level = trained(case, "rmda")
    assert level._critical is not None
    strength = float(level._critical.median())
    found = level.live(strength)
    names = [f"w{i}" for i in range(len(case.shapes))]
    alive, ranks = slices_alive(level, found, names)
    solved = live_by_solving(case, level, strength)
    assert ranks == {} and list(alive) == names
    for name, (_, _, block, _, groups) in zip(names, coupled_cases.STREAM, strict=True):
        expected = [group < 0 or solved[group] for group in groups for _ in range(block)]
        assert alive[name].tolist() == expected


def test_before_the_first_step_everything_lives() -> None:
    param = nn.Parameter(torch.randn(3, 4))
    opt = dp.RMDA([{"params": [param], "penalty": dp.GroupLasso(1.0)}])
    (unit,) = opt.units()
    level = Level(opt, unit, 0)
    level.refresh()
    found = level.live(1e6)
    assert isinstance(found, dp.Support) and found.count() == found.total() == 4


@pytest.mark.parametrize("name", [*CASES, *OTHERS])
def test_one_group_is_kept(name: str) -> None:
    level = trained({**CASES, **OTHERS}[name], "ramda")
    assert level.live(50.0).count() == 0
    kept = level.keeping_one(50.0)
    assert level.live(kept).count() == 1
    assert level.live(kept * (1 + 1e-5)).count() == 0
    assert level.keeping_one(0.01) == 0.01
