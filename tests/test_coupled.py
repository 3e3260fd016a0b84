"""Groups over several tensors: every optimizer follows its paper, and says what it did."""

from typing import Any

import numpy as np
import pytest
import torch

import dualprox as dp
from contracts import OPTIMIZERS, assert_same, coupling_of, run
from coupled_cases import PENALTIES, SHAPES, STREAM, coupled, gradients, joined, parameters
from oracles import algorithms, grouped
from oracles.cases import NoisyQuadratic
from oracles.coupled import Coupled, gathered

STEPS, RESTART_AT = 50, 28
SETTINGS: dict[str, dict[str, Any]] = {
    "RMDA": {"lr": 0.1, "momentum": 0.8},
    "RAMDA": {"lr": 0.05, "momentum": 0.8, "eps": 1e-3},
    "ProxSGD": {"lr": 0.1, "momentum": 0.8},
    "ProxAdamW": {"lr": 0.03, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.1},
}
FEW = {"max_iter": 5, "rtol": 1e-5, "min_iter": 2}

every = pytest.mark.parametrize("maker", OPTIMIZERS, ids=str)


class Race:
    """An optimizer and its oracle, which sees one vector, on the stream and a free bias."""

    def __init__(self, method: str, name: str, seed: int, solver: Any = None, other: Any = None):
        self.problems = [NoisyQuadratic(s, seed + i, STEPS) for i, s in enumerate(SHAPES)]
        self.params = [torch.tensor(p.start, requires_grad=True) for p in self.problems]
        self.bias = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
        groups = [{"params": self.params, "penalty": coupled(name)}, {"params": [self.bias]}]
        options = {} if solver is None else {"solver": solver}
        self.opt = getattr(dp, method)(groups, **SETTINGS[method], **options)
        self.kind = getattr(grouped, name)
        self.is_iterated = isinstance(other, algorithms.ProximalGradient)
        self.penalty = Coupled(self.kind, PENALTIES[name], STREAM)
        start = np.concatenate([np.ravel(p.start) for p in self.problems])
        settings = dict(SETTINGS[method])
        if "momentum" in settings:
            settings["rho" if method == "ProxSGD" else "c"] = settings.pop("momentum")
        if "c" in settings:
            settings["c"] = 1 - settings["c"]
        if method in ("RAMDA", "ProxAdamW"):
            settings["solver"] = other
        self.oracle = getattr(algorithms, method)(start, self.penalty, **settings)

    def step(self, t: int) -> None:
        ends = np.cumsum([np.prod(shape) for shape in SHAPES])
        theirs = np.split(self.oracle.w, ends[:-1])
        grads = []
        for problem, param, w in zip(self.problems, self.params, theirs, strict=True):
            param.grad = torch.tensor(problem.gradient(param.detach().numpy(), t))
            grads.append(problem.gradient(w.reshape(param.shape), t).ravel())
        self.bias.grad = torch.ones_like(self.bias)
        self.opt.step()
        self.oracle.step(np.concatenate(grads))

    def restart(self) -> None:
        for group in self.opt.param_groups:
            group["lr"] *= 0.5
            group["ramp"] = True
        self.opt.restart()
        self.oracle.lr *= 0.5
        if isinstance(self.oracle, algorithms.RMDA | algorithms.RAMDA):
            self.oracle.ramp = True
            self.oracle.restart()

    def run(self) -> None:
        for t in range(STEPS):
            if t == RESTART_AT:
                self.restart()
            self.step(t)
            assert_close([p.detach() for p in self.params], self.oracle.w)
            if t % 10 == 9 or t == RESTART_AT - 1:
                points = [self.opt.structured_point(param) for param in self.params]
                assert_close(points, self.oracle.structured())
                assert np.array_equal(joined(points) == 0, self.oracle.structured() == 0)
        dead, total = self.penalty.dead(self.oracle.structured())
        assert total == 10 and dead < total
        # Short steps from a live group seldom reach the zero behind l_{2,0}'s jump.
        assert 0 < dead or (self.is_iterated and self.kind is grouped.GroupL0)


def assert_close(ours: list[torch.Tensor], expected: np.ndarray) -> None:
    assert np.abs(joined(ours) - expected).max() <= 1e-10 * np.abs(expected).max()


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("method", SETTINGS)
def test_optimizers_follow_their_papers(method, name):
    Race(method, name, seed=1, other=algorithms.Exact()).run()


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("method", ["RAMDA", "ProxAdamW"])
def test_proximal_gradient_follows_its_paper_and_screens_whole_groups(method, name):
    race = Race(method, name, 2, dp.ProximalGradient(**FEW), algorithms.ProximalGradient(**FEW))
    race.run()
    assert isinstance(race.oracle, algorithms.RAMDA | algorithms.ProxAdamW)
    assert race.opt.solver_report()[0].iterations == race.oracle.solved.iterations
    if name in ("GroupLasso", "SparseGroupLasso"):
        generator = torch.Generator().manual_seed(0)
        a = torch.randn(race.oracle.w.size, generator=generator, dtype=torch.float64)
        step = 2.9 if name == "GroupLasso" else 1.9
        dead = coupled(name).dead_groups(a, step)
        assert dead is not None and 0 < dead.sum() < a.numel()
        assert np.array_equal(dead.numpy(), race.penalty.screened(a.numpy(), step))


def test_newton_raphson_solves_coupled_groups_too():
    results = []
    for solver in (dp.Exact(), dp.NewtonRaphson(tol=1e-14)):
        race = Race("RAMDA", "GroupLasso", 3, solver, algorithms.Exact())
        for t in range(10):
            race.step(t)
        results.append(joined(race.params))
    assert np.abs(results[0] - results[1]).max() < 1e-10
    with pytest.raises(TypeError, match="solves GroupLasso alone, got GroupMCP"):
        dp.RAMDA([{"params": parameters(), "penalty": coupled("GroupMCP")}], solver=solver)


@every
@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_groups_within_one_tensor_each_are_those_of_the_uncoupled_penalty(maker, name, dtype):
    """Also where nothing but the numbering couples the tensors, and none is free."""
    members = (
        ((8, 3, 3, 3), 0, 1, 1, (5, 4, 3, 2, 1, 0, 6, 7)),
        ((4, 4, 1, 1), 1, 1, 2, range(8, 16)),
        ((5, 32), 1, 4, 1, range(16, 24)),
    )
    inner = dp.Coupled(getattr(dp, name)(**PENALTIES[name]), coupling_of(members)).penalty
    ours, theirs = parameters(members, dtype), parameters(members, dtype)
    one = maker([{"params": ours, "penalty": dp.Coupled(inner, coupling_of(members))}])
    many = maker(
        [
            {"params": [p], "penalty": inner.along(axis, block, conv_groups)}
            for p, (_, axis, block, conv_groups, _) in zip(theirs, members, strict=True)
        ],
        impl="eager",
    )
    run(one, gradients(ours), range(60))
    run(many, gradients(theirs), range(60))
    tolerance = 1e-3 if dtype == torch.float32 else 1e-12
    for p, q in zip(ours, theirs, strict=True):
        point, expected = one.structured_point(p), many.structured_point(q)
        assert torch.equal(point == 0, expected == 0)
        assert torch.allclose(point, expected, rtol=tolerance, atol=tolerance)
        assert torch.allclose(p, q, rtol=tolerance, atol=tolerance)
    found, expected = dp.structure(one), dp.structure(many)
    assert found.to_dict() == pytest.approx(expected.to_dict())
    assert 0 < (found.group_sparsity or 0) < 1


@every
def test_free_tensors_move_as_without_penalty(maker):
    members = (((4, 3), 1, 1, 1, (0, 1, 2)), ((5, 2), 0, 1, 1, (-1,) * 5))
    ours, theirs = parameters(members), parameters(members)
    one = maker([{"params": ours, "penalty": coupled("SparseGroupLasso", members)}])
    two = maker([{"params": theirs}])
    run(one, gradients(ours), range(20))
    run(two, gradients(theirs), range(20))
    assert torch.allclose(ours[1], theirs[1], rtol=1e-12, atol=1e-13)
    assert not torch.allclose(ours[0], theirs[0], rtol=1e-3)


@every
def test_the_structure_is_what_a_loop_over_groups_counts(maker):
    params = parameters()
    opt = maker([{"params": params, "penalty": coupled()}])
    monitor = dp.StructureMonitor(opt)
    set_gradients = gradients(params)
    before, jaccard, point = None, [], np.empty(0)
    for epoch in range(25):
        run(opt, set_gradients, range(2 * epoch, 2 * epoch + 2))
        point = joined([opt.structured_point(p) for p in params])
        live = {g for g, entries in enumerate(gathered(STREAM)) if point[entries].any()}
        record = monitor.update()
        assert (record.support_size, record.support_total) == (len(live), 10)
        if before is not None:
            assert record.jaccard == pytest.approx(len(before & live) / len(before | live))
            jaccard.append(record.jaccard)
        before = live
    assert min(jaccard) < 1 and before is not None and 0 < len(before) < 10
    sizes = [len(entries) for entries in gathered(STREAM)]
    (row,) = dp.structure(opt).layers
    assert row.name == "0.0 + 3 more" and row.shape == (sum(p.numel() for p in params),)
    assert (row.size, row.total, row.parameters) == (len(before), 10, sum(sizes))
    assert row.in_dead_groups == sum(sizes) - sum(sizes[g] for g in before)
    penalized = np.concatenate(gathered(STREAM))
    assert row.zeros == (point[penalized] == 0).sum()
    share = 1 - sum(sizes[g] for g in before) / sum(sizes)
    assert dp.structure(opt).weighted_group_sparsity == pytest.approx(share)
    for p in params:
        p.requires_grad_(False)
    assert dp.structure(opt).layers == ()


@every
@pytest.mark.parametrize("name", PENALTIES)
def test_stationarity_is_the_distance_in_the_joint_groups(maker, name):
    params = parameters()
    bias = torch.nn.Parameter(torch.ones(3, 1, dtype=torch.float64))
    opt = maker([{"params": params, "penalty": coupled(name)}, {"params": [bias]}])
    run(opt, gradients([*params, bias]), range(40))
    point = joined([opt.structured_point(p) for p in params])
    estimates = [opt.gradient_estimate(p) for p in (*params, bias)]
    gradient = joined([g for g in estimates if g is not None])
    w = torch.tensor(np.concatenate([point, [0.0] * 3]))
    g = torch.tensor(gradient)
    everything = np.arange(w.numel())
    free = np.setdiff1d(everything, np.concatenate(gathered(STREAM)))
    squares = float(g[free].square().sum())
    for entries in gathered(STREAM):
        # The law of the uncoupled penalty, which has its own tests, on the gathered entries.
        alone = getattr(dp, name)(**PENALTIES[name], axis=0, block=len(entries))
        squares += float(alone.residual(w[entries], g[entries])) ** 2
    assert dp.StructureMonitor(opt).update().stationarity == pytest.approx(squares**0.5)


@every
def test_the_structured_points_are_solved_once_for_a_group(maker, monkeypatch):
    params = parameters()
    opt = maker([{"params": params, "penalty": coupled()}])
    run(opt, gradients(params), range(30))
    expected = [opt.structured_point(p) for p in params]
    calls = []
    for kind in ("prox", "metric_prox"):
        solve = getattr(dp.Coupled, kind)
        monkeypatch.setattr(
            dp.Coupled, kind, lambda *a, _solve=solve, **k: calls.append(1) or _solve(*a, **k)
        )
    iterates = [p.detach().clone() for p in params]
    with opt.structured():
        assert_same([*params], expected)
    assert len(calls) == (1 if maker.averages else 0)
    assert_same([*params], iterates)
    opt.finalize_()
    assert_same([*params], expected)
    assert 0 < (dp.structure(opt, at="iterate").group_sparsity or 0) < 1


@every
def test_reports_and_certificates_are_the_groups(maker):
    params = parameters()
    named = [(f"layer{i}.weight", p) for i, p in enumerate(params)]
    opt = maker([{"params": named, "penalty": coupled()}], certify=True)
    run(opt, gradients(params), range(10))
    (report,) = opt.solver_report()
    assert report.name == "layer0.weight + 3 more"
    assert report.certificate is not None and report.certificate < 1e-11
    assert report.iterations > 0 or maker.make in (dp.RMDA, dp.ProxSGD)
