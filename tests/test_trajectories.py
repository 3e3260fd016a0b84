"""Every optimizer follows the papers' algorithm, transcribed in numpy, for every penalty."""

import numpy as np
import pytest
import torch

import dualprox as dp
from oracles import algorithms
from oracles.cases import CASES, NoisyQuadratic
from oracles.grouped import GroupHalf, GroupL0
from oracles.penalties import Spectral

STEPS, RESTART_AT = 200, 110
RTOL = 1e-10
SETTINGS = {
    "RMDA": {"lr": 0.1, "momentum": 0.8},
    "RAMDA": {"lr": 0.05, "momentum": 0.8, "eps": 1e-3},
    "ProxSGD": {"lr": 0.05, "momentum": 0.8},
    "ProxAdamW": {"lr": 0.02, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.1},
}
FEW = {"max_iter": 4, "rtol": 1e-4, "min_iter": 2}  # each of the three gets to stop a solve


def oracle_of(method, w, penalty, solver):
    """Build the transcription with the library's settings in the paper's letters."""
    settings = dict(SETTINGS[method])
    if method == "ProxAdamW":
        return algorithms.ProxAdamW(w, penalty, **settings, solver=solver)
    old = settings.pop("momentum")
    if method == "ProxSGD":
        return algorithms.ProxSGD(w, penalty, rho=old, **settings)
    if method == "RMDA":
        return algorithms.RMDA(w, penalty, c=1 - old, **settings)
    return algorithms.RAMDA(w, penalty, c=1 - old, solver=solver, **settings)


class Race:
    """The library and the oracles side by side, one parameter and one param group per weight."""

    def __init__(self, method, case, seed, solver=None, oracle_solver=None, steps=STEPS):
        self.oracle_solver = oracle_solver
        self.problems = [
            NoisyQuadratic(shape, seed + i, steps) for i, (shape, _) in enumerate(case.weights)
        ]
        self.oracles = [
            oracle_of(method, problem.start, penalty, oracle_solver)
            for problem, penalty in zip(self.problems, case.oracles(), strict=True)
        ]
        self.params = [torch.tensor(p.start, requires_grad=True) for p in self.problems]
        groups = [
            {"params": [param], "penalty": getattr(dp, case.name)(**{**case.arguments, **more})}
            for param, (_, more) in zip(self.params, case.weights, strict=True)
        ]
        options = {"solver": solver} if solver is not None else {}
        self.optimizer = getattr(dp, method)(groups, **SETTINGS[method], **options)
        self.t = 0

    def step(self):
        """Step both, each with the gradient at its own iterate."""
        for problem, param, other in zip(self.problems, self.params, self.oracles, strict=True):
            param.grad = torch.tensor(problem.gradient(param.detach().numpy(), self.t))
            other.step(problem.gradient(other.w, self.t))
        self.optimizer.step()
        self.t += 1

    def assert_same_iterate(self):
        """Compare the parameters."""
        for param, other in zip(self.params, self.oracles, strict=True):
            assert_close(param.detach().numpy(), other.w, f"iterate {self.t}")

    def assert_same_iterations(self):
        """Compare the work that proximal gradient reports."""
        for report, other in zip(self.optimizer.solver_report(), self.oracles, strict=True):
            assert isinstance(other, algorithms.RAMDA | algorithms.ProxAdamW)
            assert report.iterations == other.solved.iterations, f"step {self.t}"

    def assert_same_structured_point(self):
        """Compare the structured points and their structure, which must match exactly."""
        for param, other in zip(self.params, self.oracles, strict=True):
            point, expected = self.optimizer.structured_point(param).numpy(), other.structured()
            assert_close(point, expected, f"structured point {self.t}")
            if isinstance(other.penalty, Spectral):
                assert other.penalty.rank(point) == other.penalty.rank(expected)
            else:
                assert np.array_equal(point == 0, expected == 0)

    def assert_some_dead_some_live(self):
        """A run in which nothing, or everything, is removed would prove little."""
        for param, other in zip(self.params, self.oracles, strict=True):
            iterated = isinstance(self.oracle_solver, algorithms.ProximalGradient)
            if iterated and isinstance(other.penalty, GroupHalf | GroupL0):
                continue  # short steps from a live group seldom reach the zero behind the hill
            dead, total = other.penalty.dead(self.optimizer.structured_point(param).numpy())
            assert 0 < dead < total, (tuple(param.shape), dead, total)

    def restart(self, factor):
        """Start the final stage: smaller lr, for RAMDA smaller eps, ramped momentum."""
        for group in self.optimizer.param_groups:
            group["lr"] *= factor
            group["ramp"] = True
            if isinstance(self.optimizer, dp.RAMDA):
                group["eps"] *= factor
        self.optimizer.restart()
        for other in self.oracles:
            restart_oracle(other, factor, ramp=True)

    def run(self):
        """All steps, with a restart in the middle and the ramp after it."""
        for _ in range(STEPS):
            if self.t == RESTART_AT:
                self.restart(0.5)
            self.step()
            self.assert_same_iterate()
            if self.t % 10 == 0 and isinstance(self.oracle_solver, algorithms.ProximalGradient):
                self.assert_same_iterations()
            if self.t % 50 == 0 or self.t == RESTART_AT:
                self.assert_same_structured_point()
        self.assert_some_dead_some_live()


def restart_oracle(other, factor, ramp):
    """Scale what a milestone scales and start a stage, where the method has stages."""
    other.lr *= factor
    if isinstance(other, algorithms.RAMDA):
        other.eps *= factor
    if isinstance(other, algorithms.RMDA | algorithms.RAMDA):
        other.ramp = ramp
        other.restart()


def assert_close(actual, expected, what):
    error = np.abs(actual - expected).max()
    assert error <= RTOL * np.abs(expected).max(), f"{what}: off by {error:.1e}"


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("method", ["RMDA", "ProxSGD"])
def test_methods_without_a_metric_follow_their_papers(method, case):
    Race(method, case, seed=1).run()


GROUP_LASSO = next(case for case in CASES if case.name == "GroupLasso")
EXACT_CASES = [case for case in CASES if case.oracles()[0].offers_metric]


@pytest.mark.parametrize("case", EXACT_CASES, ids=str)
@pytest.mark.parametrize("method", ["RAMDA", "ProxAdamW"])
def test_adaptive_methods_with_exact_subproblems_follow_their_papers(method, case):
    Race(method, case, seed=2, solver=dp.Exact(), oracle_solver=algorithms.Exact()).run()


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("method", ["RAMDA", "ProxAdamW"])
def test_adaptive_methods_with_proximal_gradient_follow_their_papers(method, case):
    solver, other = dp.ProximalGradient(**FEW), algorithms.ProximalGradient(**FEW)
    if case in EXACT_CASES:  # they have met all their weights above
        case = case.on(CASES.index(case) % len(case.weights))
    Race(method, case, seed=3, solver=solver, oracle_solver=other).run()


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("method", ["RAMDA", "ProxAdamW"])
def test_the_default_solver_is_exact_where_offered_and_the_papers_otherwise(method, case):
    race = Race(method, case, seed=4, steps=6)
    for _ in range(6):
        race.step()
        race.assert_same_iterate()


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_prox_adamw_follows_with_amsgrad_and_weight_decay(amsgrad, weight_decay, monkeypatch):
    changed = {**SETTINGS["ProxAdamW"], "amsgrad": amsgrad, "weight_decay": weight_decay}
    monkeypatch.setitem(SETTINGS, "ProxAdamW", changed)
    case = GROUP_LASSO.on(3)
    Race("ProxAdamW", case, seed=5).run()


@pytest.mark.parametrize("method", ["RMDA", "RAMDA"])
def test_a_stage_schedule_restarts_at_milestones_and_ramps_in_the_last_stage(method):
    epoch, milestones, gamma = 20, [2, 3], 0.3
    race = Race(method, GROUP_LASSO, seed=6)
    stages = dp.StageSchedule(race.optimizer, milestones=milestones, gamma=gamma, ramp=True)
    for finished in range(1, 6):
        for _ in range(epoch):
            race.step()
            race.assert_same_iterate()
        race.assert_same_structured_point()
        stages.step()
        if finished in milestones:
            for other in race.oracles:
                restart_oracle(other, gamma, ramp=finished == milestones[-1])
    for other in race.oracles:
        assert isinstance(other, algorithms.RMDA | algorithms.RAMDA) and other.weight() == 1.0
    for param in race.params:
        point = race.optimizer.structured_point(param)
        assert_close(param.detach().numpy(), point.numpy(), "end of the ramp")
        assert torch.equal(param == 0, point == 0)


@pytest.mark.parametrize("method", ["RMDA", "RAMDA"])
def test_a_milestone_leaves_the_structured_point_until_the_next_step(method):
    """Whoever evaluates after the schedule's step must see what training reached."""
    race = Race(method, GROUP_LASSO, seed=7, steps=30)
    stages = dp.StageSchedule(race.optimizer, milestones=[1], gamma=0.1)
    for _ in range(29):
        race.step()
    before = [race.optimizer.structured_point(param) for param in race.params]
    stages.step()
    for param, point in zip(race.params, before, strict=True):
        assert_close(race.optimizer.structured_point(param).numpy(), point.numpy(), "milestone")
    race.step()
    assert any(
        not torch.equal(race.optimizer.structured_point(param), point)
        for param, point in zip(race.params, before, strict=True)
    )
