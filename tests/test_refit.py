"""A frozen structure: zeros stay zero, and what lives takes the steps of the method alone."""

import io
from typing import Any

import numpy as np
import pytest
import torch

import dualprox as dp
from contracts import MEMBERS, OPTIMIZERS, Maker, assert_same, coupling_of, snapshot
from oracles import algorithms
from oracles.cases import NoisyQuadratic, oracle

every = pytest.mark.parametrize("maker", OPTIMIZERS, ids=str)
STEPS = 40
PENALTIES: dict[str, dp.Penalty] = {
    "L1": dp.L1(0.5),
    "GroupLasso": dp.GroupLasso(0.4),
    "SparseGroupLasso": dp.SparseGroupLasso(0.5, l1_ratio=0.4),
    "GroupMCP": dp.GroupMCP(0.4, gamma=3.0),
    "Coupled": dp.Coupled(dp.GroupLasso(0.4), coupling_of(MEMBERS)),
}
supports = pytest.mark.parametrize("name", PENALTIES)


def shapes_of(name: str) -> list[tuple[int, ...]]:
    return [member[0] for member in MEMBERS] if name == "Coupled" else [(6, 8), (4, 3, 3, 3)]


class Problem:
    """Parameters with noisy gradients, and an optimizer that penalizes them."""

    def __init__(
        self, maker: Maker, name: str, dtype: torch.dtype = torch.float64, **settings: Any
    ) -> None:
        penalty = PENALTIES[name] if name in PENALTIES else dp.NuclearNorm(1.2)
        shapes = shapes_of(name)
        self.losses = [NoisyQuadratic(s, 10 + i, 4 * STEPS) for i, s in enumerate(shapes)]
        self.params = [torch.nn.Parameter(torch.tensor(x.start).to(dtype)) for x in self.losses]
        self.free = torch.nn.Parameter(torch.ones(3, dtype=dtype))
        groups = [{"params": self.params, "penalty": penalty}, {"params": [self.free]}]
        self.opt = maker(groups, **settings)

    def set_gradients(self, step: int) -> None:
        for p, loss in zip(self.params, self.losses, strict=True):
            p.grad = torch.tensor(loss.gradient(p.detach().double().numpy(), step)).to(p.dtype)
        self.free.grad = self.free.detach() - 2

    def run(self, steps: range, after: Any = None) -> None:
        for step in steps:
            self.set_gradients(step)
            self.opt.step()
            if after is not None:
                after()

    def dead(self) -> list[torch.Tensor]:
        return [p.detach() == 0 for p in self.params]

    def assert_dead(self, dead: list[torch.Tensor]) -> None:
        for p, mask in zip(self.params, dead, strict=True):
            assert bool((p[mask] == 0).all())


def frozen(maker: Maker, name: str, **more: Any) -> tuple[Problem, list[torch.Tensor]]:
    """A problem whose structure was frozen after some steps, and its dead entries then."""
    problem = Problem(maker, name, **more)
    problem.run(range(STEPS))
    problem.opt.freeze_structure_()
    dead = problem.dead()
    assert any(mask.any() for mask in dead) and not all(mask.all() for mask in dead)
    return problem, dead


def numpy_method(maker: Maker, state: Any, w: np.ndarray, live: np.ndarray, group: Any) -> Any:
    """The method in numpy on the live entries alone, without penalty, from the state it has now."""
    zero = oracle("L1", strength=0.0)
    if maker.make is dp.RMDA:
        return algorithms.RMDA(w, zero, group["lr"], 1 - group["momentum"])
    if maker.make is dp.RAMDA:
        return algorithms.RAMDA(w, zero, group["lr"], 1 - group["momentum"], group["eps"])
    if maker.make is dp.ProxSGD:
        method = algorithms.ProxSGD(w, zero, group["lr"], group["momentum"])
        method.m = state["momentum_buffer"].numpy()[live]
        return method
    settings = (group["betas"], group["eps"], group["weight_decay"], group["amsgrad"])
    method = algorithms.ProxAdamW(w, zero, group["lr"], *settings)
    method.t = int(state["step"])
    method.m, method.v = (state[key].numpy()[live] for key in ("exp_avg", "exp_avg_sq"))
    if group["amsgrad"]:
        method.v_max = state["max_exp_avg_sq"].numpy()[live]
    return method


@every
@supports
def test_live_weights_take_the_steps_of_the_smaller_problem_without_penalty(maker, name):
    settings = {"weight_decay": 0.1, "amsgrad": True} if maker.make is dp.ProxAdamW else {}
    problem, _ = frozen(maker, name, **settings)
    opt, params = problem.opt, problem.params
    masks = dp.FrozenSupport.of(opt).dead
    live = [~masks[f"0.{index}"].numpy() for index in range(len(params))]
    methods = []
    for p, kept in zip(params, live, strict=True):
        w = p.detach().numpy()[kept]
        methods.append(numpy_method(maker, opt.state[p], w, kept, opt.param_groups[0]))
    for step in range(STEPS, 2 * STEPS):
        if step == STEPS + 25 and maker.averages:
            opt.restart()
            for method in methods:
                method.restart()
        problem.set_gradients(step)
        for p, kept, method in zip(params, live, methods, strict=True):
            assert p.grad is not None
            method.step(p.grad.numpy()[kept])
        opt.step()
    for p, kept, method in zip(params, live, methods, strict=True):
        assert np.all(p.detach().numpy()[~kept] == 0)
        np.testing.assert_allclose(p.detach().numpy()[kept], method.w, rtol=1e-12, atol=1e-12)
        point = opt.structured_point(p).detach().numpy()
        assert np.all(point[~kept] == 0)
        np.testing.assert_allclose(point[kept], method.structured(), rtol=1e-12, atol=1e-12)


@every
@pytest.mark.parametrize("name", [*PENALTIES, "NuclearNorm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_freezing_makes_the_structured_point_the_iterate(maker, name, dtype):
    problem = Problem(maker, name, dtype)
    problem.run(range(STEPS))
    points = [problem.opt.structured_point(p) for p in problem.params]
    problem.opt.freeze_structure_()
    assert_same([*problem.params], points)
    assert_same([problem.opt.structured_point(p) for p in problem.params], points)
    assert [group["frozen"] for group in problem.opt.param_groups] == [True, False]


@every
@pytest.mark.parametrize(
    ("name", "impl"),
    [
        *((name, "eager") for name in PENALTIES),
        *((name, "native") for name in ("L1", "GroupLasso", "SparseGroupLasso")),
        ("Coupled", "auto"),  # has no fused step before it is frozen
    ],
)
def test_zeros_stay_whatever_the_schedule_does(maker, name, impl):
    problem, dead = frozen(maker, name, dtype=torch.float32, impl=impl)
    opt = problem.opt
    schedulers = (
        torch.optim.lr_scheduler.CosineAnnealingLR(opt, STEPS),
        torch.optim.lr_scheduler.OneCycleLR(
            opt, 0.1, total_steps=STEPS, cycle_momentum="momentum" in opt.defaults
        ),
    )
    for number, scheduler in enumerate(schedulers):

        def after(scheduler: Any = scheduler) -> None:
            problem.assert_dead(dead)
            opt.restart()  # or dual averaging warns that lr changed
            scheduler.step()

        problem.run(range((1 + number) * STEPS, (2 + number) * STEPS - 1), after)


@every
@supports
def test_a_run_saved_in_the_refit_goes_on_bit_by_bit(maker, name):
    problem, dead = frozen(maker, name, dtype=torch.float32)
    problem.run(range(STEPS, STEPS + 5))
    buffer = io.BytesIO()
    torch.save([problem.opt.state_dict(), [p.detach() for p in problem.params]], buffer)
    buffer.seek(0)
    saved, values = torch.load(buffer, weights_only=True)
    twin = Problem(maker, name, dtype=torch.float32)
    twin.free.data.copy_(problem.free)
    for p, value in zip(twin.params, values, strict=True):
        p.data.copy_(value)
    twin.opt.load_state_dict(saved)
    assert twin.opt.param_groups[0]["frozen"] is True
    assert twin.opt.state[twin.params[0]]["live"].dtype == torch.bool
    for one in (problem, twin):
        one.run(range(STEPS + 5, 2 * STEPS))
        one.assert_dead(dead)
    assert_same([*problem.params, problem.free], [*twin.params, twin.free])


def test_a_state_from_before_freezing_thaws():
    problem = Problem(OPTIMIZERS[0], "GroupLasso")
    problem.run(range(3))
    saved = problem.opt.state_dict()
    for group in saved["param_groups"]:
        del group["frozen"]  # as written before there was freezing
    problem.opt.freeze_structure_()
    problem.opt.load_state_dict(saved)
    assert problem.opt.param_groups[0]["frozen"] is False
    assert all("live" not in problem.opt.state[p] for p in problem.params)


def test_a_frozen_state_without_its_mask_is_refused():
    problem, _ = frozen(OPTIMIZERS[0], "GroupLasso")
    saved = problem.opt.state_dict()
    del saved["state"][0]["live"]
    with pytest.raises(ValueError, match=r"the saved state of parameter 0\.0 lacks live"):
        problem.opt.load_state_dict(saved)


@every
def test_weights_put_back_after_freezing_are_zero_again_after_a_step(maker):
    problem, dead = frozen(maker, "GroupLasso")
    for p, loss in zip(problem.params, problem.losses, strict=True):
        p.data.copy_(torch.tensor(loss.start))
    problem.run(range(STEPS, STEPS + 1))
    problem.assert_dead(dead)


@every
@pytest.mark.parametrize("name", [*PENALTIES, "NuclearNorm"])
def test_freezing_twice_can_only_lose_groups(maker, name):
    problem, dead = frozen(maker, name) if name in PENALTIES else (Problem(maker, name), [])
    problem.opt.freeze_structure_()
    problem.run(range(STEPS, STEPS + 10))
    before = dp.structure(problem.opt).layers[0].size
    problem.opt.freeze_structure_()
    if name in PENALTIES:
        problem.assert_dead(dead)
    assert before > 0
    for p in problem.params:
        p.data.zero_()
    problem.opt.finalize_ = lambda: None  # the zeros are what is to be frozen
    problem.opt.freeze_structure_()
    problem.run(range(STEPS + 10, STEPS + 20))
    # The free slices of a coupling are in no group.
    assert dp.structure(problem.opt).layers[0].size == 0
    assert name == "Coupled" or not any(p.any() for p in problem.params)


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_rank_never_rises(maker, dtype):
    problem = Problem(maker, "NuclearNorm", dtype)
    problem.run(range(STEPS))
    problem.opt.freeze_structure_()

    def ranks() -> list[int]:
        return [layer.size for layer in dp.structure(problem.opt).layers]

    first = ranks()
    fulls = [layer.total for layer in dp.structure(problem.opt).layers]
    assert all(0 < rank for rank in first) and any(
        rank < full for rank, full in zip(first, fulls, strict=True)
    )
    for step in range(STEPS, STEPS + 15):
        problem.run(range(step, step + 1))
        assert all(now <= then for now, then in zip(ranks(), first, strict=True))
    problem.opt.finalize_()
    iterates = dp.structure(problem.opt, at="iterate").layers
    assert all(x.size <= then for x, then in zip(iterates, first, strict=True))


@pytest.mark.parametrize("maker", [OPTIMIZERS[0], OPTIMIZERS[2]], ids=str)
def test_a_rank_is_held_by_the_projection_where_the_metric_is_a_number(maker):
    problem = Problem(maker, "NuclearNorm")
    problem.run(range(STEPS))
    opt, p, group = problem.opt, problem.params[0], problem.opt.param_groups[0]
    opt.freeze_structure_()
    w, bound = (
        p.detach().numpy().copy(),
        oracle("RankAtMost", rank=dp.structure(opt).layers[0].size),
    )
    method: Any
    if maker.averages:
        method = algorithms.RMDA(w, bound, group["lr"], 1 - group["momentum"])
    else:
        method = algorithms.ProxSGD(w, bound, group["lr"], group["momentum"])
        method.m = opt.state[p]["momentum_buffer"].numpy().copy()
    for step in range(STEPS, STEPS + 15):
        problem.set_gradients(step)
        assert p.grad is not None
        method.step(p.grad.numpy())
        opt.step()
    np.testing.assert_allclose(p.detach().numpy(), method.w, rtol=1e-10, atol=1e-12)


def test_a_dead_matrix_stays_dead():
    w = torch.nn.Parameter(torch.eye(3))
    opt = dp.RAMDA([{"params": [w], "penalty": dp.NuclearNorm(1.0)}], lr=0.1)
    w.data.zero_()
    opt.freeze_structure_()
    w.grad = torch.ones(3, 3)
    opt.step()
    assert not w.any()


@every
def test_constraints_keep_acting(maker):
    boxed, grouped = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    groups = [
        {"params": [boxed], "penalty": dp.Box(0.5, 2.0)},
        {"params": [grouped], "penalty": dp.GroupLasso(0.1)},
    ]
    opt = maker(groups)
    opt.freeze_structure_()
    assert [group["frozen"] for group in opt.param_groups] == [False, True]
    for _ in range(20):
        boxed.grad, grouped.grad = torch.ones(2, 2), torch.ones(2, 2)
        opt.step()
    opt.finalize_()
    assert bool((boxed == 0.5).all())
    assert bool((grouped < 0.5).all())


def test_there_must_be_a_structure():
    w = torch.nn.Parameter(torch.ones(2))
    opt = dp.RMDA([{"params": [w], "penalty": dp.NonNegative()}], lr=0.1)
    with pytest.raises(ValueError, match="a group must have a penalty that is no constraint"):
        opt.freeze_structure_()
    with pytest.raises(ValueError, match="frozen must be False in a new group"):
        dp.RMDA([{"params": [w], "penalty": dp.L1(1.0), "frozen": True}], lr=0.1)


class Trend(dp.GroupLasso):
    """A penalty whose manifold is no coordinate subspace."""

    def live_entries(self, w: torch.Tensor) -> None:
        """None: no entry is free or dead by itself."""


@every
def test_a_penalty_without_live_entries_is_refused_before_anything_changes(maker):
    first, second = (torch.nn.Parameter(torch.linspace(-1, 1, 6).view(2, 3)) for _ in range(2))
    groups = [
        {"params": [first], "penalty": dp.GroupLasso(0.1)},
        {"params": [second], "penalty": Trend(0.1)},
    ]
    opt = maker(groups)
    for _ in range(3):
        first.grad, second.grad = torch.ones(2, 3), torch.ones(2, 3)
        opt.step()
    before = [t.clone() for t in (first, second)] + snapshot(opt)
    with pytest.raises(TypeError, match=r"penalty of 1\.0 must .* of Trend\(.*\) returns None"):
        opt.freeze_structure_()
    assert_same(before, [first, second, *snapshot(opt)])
    assert not any(group["frozen"] for group in opt.param_groups)


@every
@supports
def test_the_monitor_reads_the_gradient_along_the_structure(maker, name):
    problem, _ = frozen(maker, name, certify=True)
    problem.run(range(STEPS, STEPS + 5))
    opt, squares = problem.opt, 0.0
    masks = dp.FrozenSupport.of(opt).dead
    for label, p, _ in opt.named_params():
        gradient = opt.gradient_estimate(p)
        assert gradient is not None
        squares += float(
            gradient[~masks[label]].square().sum() if label in masks else gradient.square().sum()
        )
    record = dp.StructureMonitor(opt).update()
    assert record.stationarity == pytest.approx(squares**0.5, rel=1e-12)
    reports = opt.solver_report()
    assert len(reports) == (1 if name == "Coupled" else 2)
    for report in reports:
        assert report.iterations == 0
        assert report.certificate is not None and report.certificate < 1e-10


@every
def test_the_monitor_reads_the_gradient_along_matrices_of_the_rank(maker):
    problem = Problem(maker, "NuclearNorm")
    problem.run(range(STEPS))
    problem.opt.freeze_structure_()
    problem.run(range(STEPS, STEPS + 5))
    opt, squares = problem.opt, 0.0
    for p in problem.params:
        point, gradient = opt.structured_point(p), opt.gradient_estimate(p)
        assert gradient is not None
        rank = int(opt.state[p]["rank"])
        u, _, vh = np.linalg.svd(point.detach().flatten(1).numpy())
        g = gradient.flatten(1).numpy()
        normal = u[:, rank:] @ u[:, rank:].T @ g @ vh[rank:].T @ vh[rank:]
        squares += float(((g - normal) ** 2).sum())
    free = opt.gradient_estimate(problem.free)
    assert free is not None
    squares += float(free.square().sum())
    record = dp.StructureMonitor(opt).update()
    assert record.stationarity == pytest.approx(squares**0.5, rel=1e-6)


@every
def test_native_and_eager_steps_agree(maker):
    runs = []
    for impl in ("eager", "native"):
        problem, _ = frozen(maker, "GroupLasso", dtype=torch.float32, impl=impl)
        problem.run(range(STEPS, 2 * STEPS))
        runs.append(problem.params)
    for ours, theirs in zip(*runs, strict=True):
        assert torch.equal(ours == 0, theirs == 0)
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@every
def test_an_unmoved_model_may_change_its_dtype_after_freezing(maker):
    model = torch.nn.Linear(4, 2)
    model.weight.data[:, 1] = 0
    opt = maker(dp.param_groups(model, dp.GroupLasso(0.1)))
    opt.freeze_structure_()
    model.double()
    for _ in range(3):
        model(torch.ones(1, 4, dtype=torch.float64)).sum().backward()
        opt.step()
    assert not model.weight[:, 1].any()
    assert bool(model.weight[:, 0].all())
