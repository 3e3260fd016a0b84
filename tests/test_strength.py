"""Penalties that change while training: strengths, and the way from convex to nonconvex."""

import io
import time
from typing import Any

import pytest
import torch

import dualprox as dp
from contracts import OPTIMIZERS, assert_same, run, small_problem
from dualprox.optim import base, fused

every = pytest.mark.parametrize("maker", OPTIMIZERS, ids=str)
FOLDED = (
    (dp.MCP(0.6, gamma=2.0), dp.L1(0.6)),
    (dp.SCAD(0.6), dp.L1(0.6)),
    (dp.GroupMCP(0.4), dp.GroupLasso(0.4)),
    (dp.GroupSCAD(0.4, axis=0, size_weighted=False), dp.GroupLasso(0.4, 0, size_weighted=False)),
)
folded = pytest.mark.parametrize(("penalty", "limit"), FOLDED, ids=str)
COLUMNS = dp.Coupling(
    (
        dp.Member((5, 6), dp.Slices(1), range(6)),
        dp.Member((3, 4, 2, 2), dp.Slices(1), (0, 1, 2, -1)),
    )
)


def drawn(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@folded
def test_at_concavity_zero_a_penalty_is_its_convex_limit_bit_by_bit(penalty, limit):
    bent = penalty.with_concavity(0.0)
    assert bent.is_convex and not penalty.is_convex and bent.with_concavity(1.0) == penalty
    w, g, d = drawn((6, 8), 0), drawn((6, 8), 1), drawn((6, 8), 2).exp()
    w[:, 3] = 0
    for strength in (0.0, penalty.strength):
        ours, theirs = bent.with_strength(strength), limit.with_strength(strength)
        assert torch.equal(ours.value(w), theirs.value(w))
        assert torch.equal(ours.residual(w, g), theirs.residual(w, g))
        for step in (0.0, 0.8):
            assert torch.equal(ours.prox(w, step), theirs.prox(w, step))
            assert torch.equal(ours.metric_prox(w, d, step)[0], theirs.metric_prox(w, d, step)[0])
            assert torch.equal(ours.dead_groups(w, step), theirs.dead_groups(w, step))
    assert penalty.dead_groups(w, 0.8) is None


@folded
def test_small_concavities_come_near_the_limit_and_one_is_the_penalty_itself(penalty, limit):
    w, d = drawn((6, 8), 3), drawn((6, 8), 4).exp()
    gaps = []
    for concavity in (1.0, 0.1, 1e-3, 1e-6):
        near = penalty.with_concavity(concavity)
        bound = penalty.__class__(**{**vars(penalty), "gamma": penalty.gamma / concavity})
        assert (near.value(w) - bound.with_concavity(1.0).value(w)).abs() <= 1e-12
        gaps.append(
            float((near.metric_prox(w, d, 0.7)[0] - limit.metric_prox(w, d, 0.7)[0]).norm())
        )
    assert gaps[0] > 0.05 and sorted(gaps, reverse=True) == gaps and gaps[-1] < 1e-4


def test_the_value_grows_from_the_folded_penalty_to_its_convex_limit():
    w = 3 * drawn((6, 8), 5)
    for penalty, limit in FOLDED:
        values = [float(penalty.with_concavity(k).value(w)) for k in (1.0, 0.7, 0.3, 0.01, 0.0)]
        assert values == sorted(values) and values[0] < 0.8 * values[-1]
        assert values[-1] == float(limit.value(w))


@pytest.mark.parametrize("concavity", [-0.1, 1.5, float("nan"), "1"])
def test_a_concavity_outside_its_range_is_refused(concavity: Any):
    for penalty, _ in FOLDED:
        with pytest.raises(ValueError, match=r"concavity must be in \[0, 1\], got"):
            penalty.with_concavity(concavity)
    opt = dp.RMDA([{"params": small_problem()[0][:1], "penalty": dp.GroupMCP(0.1)}])
    with pytest.raises(ValueError, match=r"concavity must be in \[0, 1\], got"):
        dp.set_concavity(opt, concavity)


def test_reweighting_multiplies_lambda_and_the_knee_with_it():
    w = drawn((5, 6), 6)
    for kind in (dp.GroupMCP, dp.GroupSCAD, dp.GroupL0, dp.GroupHalf):
        penalty = kind(0.3)
        heavier = penalty.reweighted(3.0)
        assert heavier.group_strength(w) == pytest.approx(3 * penalty.group_strength(w))
        # The value of a live group far out is the price of its life.
        far = 1e3 * torch.ones(5, 1, dtype=torch.float64)
        power = 2 if kind in (dp.GroupMCP, dp.GroupSCAD) else 1
        assert float(heavier.value(far)) == pytest.approx(3**power * float(penalty.value(far)))


def test_sizes_count_so_that_the_border_of_life_is_a_root_mean_square():
    for kind in (dp.GroupLasso, dp.GroupMCP, dp.GroupSCAD, dp.GroupL0, dp.GroupHalf):
        borders = []
        for size in (3, 48):
            low, high = 0.0, 10.0
            for _ in range(60):
                level = (low + high) / 2
                z = kind(0.4).prox(level * torch.ones(size, 1, dtype=torch.float64), 0.7)
                low, high = (low, level) if z.any() else (level, high)
            borders.append(high)
        assert borders[0] == pytest.approx(borders[1], rel=1e-12) and borders[0] > 0.1


def made(penalty: dp.Penalty, **more: Any) -> dict[str, Any]:
    shape = (5, 6)
    return {"params": [torch.nn.Parameter(drawn(shape, 7))], "penalty": penalty, **more}


STRONG: tuple[dp.Penalty, ...] = (
    dp.L1(0.5),
    dp.ElasticNet(0.5),
    dp.GroupLasso(0.5),
    dp.SparseGroupLasso(0.5),
    dp.NuclearNorm(0.5),
    dp.MCP(0.5),
    dp.SCAD(0.5),
    dp.L0(0.5),
    dp.GroupMCP(0.5, axis=0),
    dp.GroupSCAD(0.5, block=2),
    dp.GroupL0(0.5),
    dp.GroupHalf(0.5),
)


@pytest.mark.parametrize("penalty", STRONG, ids=str)
def test_strength_alone_changes(penalty):
    opt = dp.RAMDA(
        [made(penalty), made(dp.Box(-1, 1)), {"params": [torch.nn.Parameter(drawn((3,), 8))]}]
    )
    assert dp.strengths(opt) == [0.5, None, None]
    dp.scale_strength(opt, 4)
    assert repr(opt.param_groups[0]["penalty"]) == repr(penalty).replace(
        "strength=0.5", "strength=2.0"
    )
    dp.set_strength(opt, 0.5)
    assert [group["penalty"] for group in opt.param_groups] == [penalty, dp.Box(-1, 1), None]


def test_coupled_penalties_and_ratios_are_kept():
    first, second = small_problem()[0][::2]
    coupled = dp.Coupled(dp.GroupSCAD(0.2), COLUMNS)
    opt = dp.RMDA([{"params": [first, second], "penalty": coupled}, made(dp.L1(0.05))])
    dp.set_strength(opt, 2.0)
    assert dp.strengths(opt) == [2.0, 0.5]
    dp.set_concavity(opt, 0.0)
    first.grad, second.grad = torch.ones_like(first), torch.ones_like(second)
    opt.step()
    assert opt.param_groups[0]["penalty"] == dp.Coupled(dp.GroupSCAD(2.0, concavity=0.0), COLUMNS)


def test_refusals():
    opt = dp.RMDA([made(dp.L1(0.1))])
    for change in (dp.scale_strength, dp.set_strength):
        for bad in (0, -1.0, float("inf"), float("nan"), True):
            with pytest.raises(ValueError, match="must be a finite number > 0, got"):
                change(opt, bad)
    with pytest.raises(ValueError, match="concavity needs an MCP, SCAD, GroupMCP or GroupSCAD"):
        dp.set_concavity(opt, 0.5)
    with pytest.raises(ValueError, match="of strength > 0, got 0 for all"):
        dp.set_strength(dp.RMDA([made(dp.L1(0))]), 1.0)
    with pytest.raises(ValueError, match="must have a penalty with a strength, got none"):
        dp.scale_strength(dp.RMDA([made(dp.NonNegative())]), 2.0)
    assert dp.strengths(opt) == [0.1]


@every
def test_steps_after_a_change_are_those_of_an_optimizer_with_the_new_penalty(maker):
    """Also in the fused kernels, which must not go on with the strength they knew."""
    results = []
    for change in (False, True):
        params, set_gradients = small_problem(torch.float32)
        strength = 0.1 if change else 0.3
        opt = maker([{"params": [params[0], params[2]], "penalty": dp.GroupLasso(strength)}])
        if change:
            dp.set_strength(opt, 0.2)  # to be noticed between steps, not only before the first
            run(opt, lambda step: None, range(1))
        if change:
            dp.scale_strength(opt, 1.5)
        run(opt, set_gradients, range(20))
        results.append([p.detach() for p in params])
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-6)


@every
def test_changing_strength_costs_one_quick_plan_and_stays_fused(maker, monkeypatch):
    """50 tensors: planning again takes 1 to 2 ms on an idle machine."""
    params = [torch.nn.Parameter(torch.randn(16, 16)) for _ in range(50)]
    for p in params:
        p.grad = torch.randn(16, 16)
    opt = maker([{"params": params, "penalty": dp.GroupLasso(0.01)}])
    plans = []
    make_plan = fused.make_plan
    monkeypatch.setattr(base, "make_plan", lambda *a: plans.append(make_plan(*a)) or plans[-1])

    def timed() -> float:
        begin = time.perf_counter()
        opt.step()
        return time.perf_counter() - begin

    opt.step()
    plain, changed = [], []
    for _ in range(20):
        plain.append(timed())
        dp.scale_strength(opt, 1.01)
        changed.append(timed())
    assert len(plans) == 21
    assert all((plan.eager == []) == (plans[0].eager == []) for plan in plans)
    assert min(changed) - min(plain) < 0.01


CONCAVITIES = [0.0, 0.5, 1.0]


def staged(maker: Any) -> Any:
    params, set_gradients = small_problem()
    groups = [
        {"params": [params[0], params[2]], "penalty": dp.GroupMCP(0.3)},
        {"params": [params[1]]},
    ]
    opt = maker(groups)
    stages = dp.StageSchedule(opt, [3, 6], gamma=0.5, concavity=CONCAVITIES)
    return params, set_gradients, opt, stages


def steps(set_gradients: Any, opt: Any, stages: Any, which: range) -> list[float]:
    seen = []
    for step in which:
        run(opt, set_gradients, range(step, step + 1))
        seen.append(opt.param_groups[0]["penalty"].concavity)
        stages.step()
    return seen


@every
def test_each_stage_has_its_concavity(maker):
    _, set_gradients, opt, stages = staged(maker)
    assert steps(set_gradients, opt, stages, range(8)) == [0.0] * 3 + [0.5] * 3 + [1.0] * 2


@every
def test_a_milestone_leaves_the_structured_point_of_the_stage_before(maker):
    params, set_gradients, opt, stages = staged(maker)
    steps(set_gradients, opt, stages, range(2))
    run(opt, set_gradients, range(2, 3))
    before = [opt.structured_point(p) for p in params]
    stages.step()
    assert_same([opt.structured_point(p) for p in params], before)
    assert opt.param_groups[0]["concavity"] == 0.5


@every
@pytest.mark.parametrize("saved_at", [0, 2, 3, 5, 6, 7])
@pytest.mark.parametrize("schedule_first", [True, False])
def test_checkpoints_carry_the_concavity_of_the_stage_and_of_the_next(
    maker, saved_at, schedule_first
):
    params, set_gradients, opt, stages = staged(maker)
    steps(set_gradients, opt, stages, range(saved_at))
    points = [opt.structured_point(p) for p in params]
    buffer = io.BytesIO()
    torch.save(([p.detach() for p in params], opt.state_dict(), stages.state_dict()), buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    steps(set_gradients, opt, stages, range(saved_at, 9))

    others, set_others, twin, twin_stages = staged(maker)
    for p, value in zip(others, saved[0], strict=True):
        p.data.copy_(value)
    loads = [lambda: twin.load_state_dict(saved[1]), lambda: twin_stages.load_state_dict(saved[2])]
    for load in reversed(loads) if schedule_first else loads:
        load()
    assert_same([twin.structured_point(p) for p in others], points)
    steps(set_others, twin, twin_stages, range(saved_at, 9))
    assert_same([*params], [*others])


def test_other_strengths_are_still_refused_on_load():
    _, set_gradients, opt, stages = staged(dp.RMDA)
    steps(set_gradients, opt, stages, range(4))
    _, _, twin, _ = staged(dp.RMDA)
    dp.scale_strength(twin, 2.0)
    with pytest.raises(ValueError, match="was saved with penalty GroupMCP"):
        twin.load_state_dict(opt.state_dict())
    assert twin.param_groups[0]["penalty"] == dp.GroupMCP(0.6)


@pytest.mark.parametrize("concavity", [[], [0.0, 1.0], [0.0, 0.5, 1.5], [0, 0, float("nan")]])
def test_a_schedule_refuses_concavities_that_do_not_fit(concavity):
    opt = dp.RMDA([made(dp.GroupMCP(0.1))])
    with pytest.raises(
        ValueError, match=r"concavity must be a number in \[0, 1\] for each of the 3"
    ):
        dp.StageSchedule(opt, [1, 2], concavity=concavity)
    with pytest.raises(ValueError, match="concavity needs an MCP"):
        dp.StageSchedule(dp.RMDA([made(dp.L1(0.1))]), [], concavity=[0.5])


def test_a_schedule_with_other_concavities_refuses_the_state():
    opt = dp.RMDA([made(dp.GroupMCP(0.1))])
    saved = dp.StageSchedule(opt, [1], concavity=[0.0, 1.0]).state_dict()
    with pytest.raises(ValueError, match=r"concavity was saved as \[0.0, 1.0\], this .* has None"):
        dp.StageSchedule(opt, [1]).load_state_dict(saved)
