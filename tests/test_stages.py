import io
import math

import pytest
import torch

import dualprox as dp
from contracts import OPTIMIZERS, assert_resumes, assert_same, grouped, run, small_problem

every = pytest.mark.parametrize("maker", OPTIMIZERS, ids=str)
averaging = pytest.mark.parametrize("maker", [m for m in OPTIMIZERS if m.averages], ids=str)


@every
def test_milestones_lower_lr_and_only_ramdas_eps(maker):
    params, set_gradients = small_problem()
    opt = maker(grouped(params))
    stages = dp.StageSchedule(opt, [2, 3], gamma=0.5)
    rates, epsilons = [], []
    for step in range(5):
        rates.append(opt.param_groups[1]["lr"])
        epsilons.append(opt.param_groups[1].get("eps"))
        run(opt, set_gradients, range(step, step + 1))
        stages.step()
    assert rates == [maker.lr * f for f in (1, 1, 0.5, 0.25, 0.25)]
    if maker.make is dp.RAMDA:
        assert epsilons == [1e-6 * f for f in (1, 1, 0.5, 0.25, 0.25)]
    else:
        assert len(set(epsilons)) == 1


@averaging
def test_the_weight_of_the_structured_point_ramps_in_the_final_stage_alone(maker):
    w = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    opt = maker([w], momentum=0.9)
    stages = dp.StageSchedule(opt, [4], gamma=0.1)
    weights = []
    for step in range(1, 25):
        before = w.detach().clone()
        w.grad = torch.linspace(1, 2, 3, dtype=torch.float64)
        if step == 8:  # steps with lr 0 or without gradient do not count
            rate, opt.param_groups[0]["lr"] = opt.param_groups[0]["lr"], 0.0
            opt.step()
            opt.param_groups[0]["lr"] = rate
            grad, w.grad = w.grad, None
            opt.step()
            w.grad = grad
        opt.step()
        point = opt.structured_point(w)
        weights.append(float(((w - before) / (point - before)).mean().detach()))
        if step <= 4:
            stages.step()
    expected = [0.1] * 4 + [min(0.1 * math.sqrt(i), 1.0) for i in range(1, 21)]
    assert weights == pytest.approx(expected, rel=1e-6)


@averaging
def test_the_iterate_meets_the_structured_point_at_the_end_of_the_ramp(maker):
    params, set_gradients = small_problem()
    opt = maker(grouped(params), momentum=0.5)
    dp.StageSchedule(opt, [], gamma=0.1)
    run(opt, set_gradients, range(4))
    for p in params:
        # Newton starts elsewhere when the point is recomputed, so the last bit may differ.
        assert torch.allclose(opt.structured_point(p), p, rtol=1e-13, atol=0)
        assert torch.equal(opt.structured_point(p) == 0, p == 0)


@averaging
def test_a_restart_begins_at_the_next_step_and_forgets_all(maker):
    params, set_gradients = small_problem()
    opt = maker(grouped(params))
    run(opt, set_gradients, range(5))
    points = [opt.structured_point(p) for p in params]
    opt.restart()
    assert_same([opt.structured_point(p) for p in params], points)
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    fresh = maker(grouped(others))
    for step in range(5, 9):
        set_gradients(step)
        for p, q in zip(params, others, strict=True):
            q.grad = p.grad
        opt.step()
        fresh.step()
    assert_same([*params], [*others])


@every
def test_the_structured_point_comes_and_goes_without_a_trace(maker):
    params, set_gradients = small_problem()
    opt = maker(grouped(params, strength=0.5))
    run(opt, set_gradients, range(6))
    iterates = [p.detach().clone() for p in params]
    points = [opt.structured_point(p) for p in params]
    with opt.structured():
        assert_same([*params], points)
        with opt.structured():
            assert_same([opt.structured_point(p) for p in params], points)
        assert_same([*params], points)
        with pytest.raises(RuntimeError, match=r"step\(\) inside structured\(\)"):
            opt.step()
        with pytest.raises(RuntimeError, match=r"finalize_\(\) inside structured\(\)"):
            opt.finalize_()
    assert_same([*params], iterates)
    with pytest.raises(KeyError), opt.structured():
        raise KeyError
    assert_same([*params], iterates)
    opt.finalize_()
    assert_same([*params], points)


@averaging
def test_dead_groups_are_dead_at_the_structured_point_but_not_at_the_iterate(maker):
    params, set_gradients = small_problem()
    opt = maker(grouped(params, strength=2.0))
    run(opt, set_gradients, range(30))
    assert (opt.structured_point(params[0]) == 0).all(dim=0).any()
    assert not (params[0] == 0).any()


@averaging
def test_groups_keep_their_own_momentum_and_ramp(maker):
    params, set_gradients = small_problem()
    groups = [{"params": [params[0]], "momentum": 0.5}, {"params": params[1:], "momentum": 0.99}]
    opt = maker(groups)
    stages = dp.StageSchedule(opt, [1], gamma=1.0)
    run(opt, set_gradients, range(1))
    stages.step()
    assert [g["momentum"] for g in opt.param_groups] == [0.5, 0.99]
    assert [g["ramp"] for g in opt.param_groups] == [True, True]
    opt = maker(groups)
    stages = dp.StageSchedule(opt, [1], ramp=False)
    run(opt, set_gradients, range(1))
    stages.step()
    assert [g["ramp"] for g in opt.param_groups] == [False, False]


@every
def test_a_tensor_lr_is_lowered_in_place(maker):
    params, set_gradients = small_problem()
    lr = torch.tensor(0.5)
    opt = maker(grouped(params), lr=lr)
    stages = dp.StageSchedule(opt, [1], gamma=0.5)
    run(opt, set_gradients, range(1))
    stages.step()
    assert float(opt.param_groups[0]["lr"]) == 0.25
    assert isinstance(opt.param_groups[0]["lr"], torch.Tensor)


def test_another_scheduler_on_the_same_optimizer_is_noticed():
    params, set_gradients = small_problem()
    opt = dp.RMDA(grouped(params))
    stages = dp.StageSchedule(opt, [5])
    other = torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)
    run(opt, set_gradients, range(1))
    stages.step()
    other.step()
    with pytest.warns(UserWarning, match="something else changes it, without the restarts"):
        stages.step()


def test_its_state_is_plain_and_must_fit():
    params, set_gradients = small_problem()
    opt = dp.RAMDA(grouped(params))
    stages = dp.StageSchedule(opt, [1, 3])
    run(opt, set_gradients, range(1))
    stages.step()
    buffer = io.BytesIO()
    torch.save(stages.state_dict(), buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    with pytest.raises(ValueError, match=r"milestones was saved as \[1, 3\], this .* has \[2\]"):
        dp.StageSchedule(opt, [2]).load_state_dict(saved)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"milestones": [3, 2]}, r"milestones must be increasing ints >= 1, got \[3, 2\]"),
        ({"milestones": [0]}, "milestones"),
        ({"milestones": [1.5]}, "milestones"),
        ({"milestones": [1], "gamma": 0.0}, r"gamma must be a finite number > 0, got 0\.0"),
        ({"milestones": [1], "ramp": 1}, "ramp must be a bool, got 1"),
        ({"milestones": [1], "refit": 1}, "refit must be a bool, got 1"),
        ({"milestones": [], "refit": True}, "refit must be False without a milestone"),
        ({"milestones": [1], "refit": True}, "refit must be False without a penalty to drop"),
        ({"milestones": [1], "refit_gamma": 0.0}, "refit_gamma must be None or a finite number"),
        ({"milestones": [1], "refit_gamma": 0.5}, "refit_gamma must be None without refit"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    params, _ = small_problem()
    with pytest.raises(ValueError, match=message):
        dp.StageSchedule(dp.RMDA(params), **settings)


@every
@pytest.mark.parametrize("refit_gamma", [None, 0.25])
def test_the_last_milestone_begins_the_refit(maker, refit_gamma):
    params, set_gradients = small_problem()
    opt = maker(grouped(params, strength=0.5))
    stages = dp.StageSchedule(opt, [2, 4], gamma=0.5, refit=True, refit_gamma=refit_gamma)
    rates, frozen, eps = [], [], opt.param_groups[0].get("eps")
    for step in range(6):
        rates.append(opt.param_groups[0]["lr"])
        frozen.append(opt.param_groups[0]["frozen"])
        run(opt, set_gradients, range(step, step + 1))
        stages.step()
    last = 0.5 * (refit_gamma or 0.5)
    assert rates == [maker.lr * f for f in (1, 1, 0.5, 0.5, last, last)]
    assert frozen == [False] * 4 + [True] * 2
    if maker.averages:
        assert opt.param_groups[0]["ramp"] is True
        assert [opt.state[p]["step"].item() for p in params] == [2, 2, 2]
    if maker.make is dp.RAMDA:
        assert opt.param_groups[0]["eps"] == eps * last


@every
@pytest.mark.parametrize("saved_at", [2, 4, 5])
def test_a_refit_resumes_bit_by_bit(maker, saved_at):
    def made():
        params, set_gradients = small_problem(torch.float32)
        opt = maker(grouped(params, strength=0.5))
        stages = dp.StageSchedule(opt, [2, 4], refit=True)
        return params, opt, stages, set_gradients

    twin, stages_state = assert_resumes(made, saved_at, 9)
    assert twin.param_groups[0]["frozen"] is True
    with pytest.raises(ValueError, match="refit was saved as True, this schedule has False"):
        dp.StageSchedule(twin, [2, 4]).load_state_dict(stages_state)


def test_it_is_for_our_optimizers_only():
    params, _ = small_problem()
    with pytest.raises(TypeError, match="needs a dualprox optimizer, got SGD"):
        dp.StageSchedule(torch.optim.SGD(params), [1])  # pyright: ignore
