import copy
import io
import pickle

import pytest
import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import dualprox as dp
from contracts import OPTIMIZERS, assert_same, grouped, run, small_problem, snapshot

every = pytest.mark.parametrize("maker", OPTIMIZERS, ids=str)
averaging = pytest.mark.parametrize("maker", [m for m in OPTIMIZERS if m.averages], ids=str)


@every
def test_closures_run_under_grad_mode_and_their_loss_is_returned(maker):
    w = torch.nn.Parameter(torch.ones(3, 2))
    opt = maker([{"params": [w], "penalty": dp.GroupLasso(0.01)}])

    def closure():
        assert torch.is_grad_enabled()
        opt.zero_grad()
        loss = (w**2).sum()
        loss.backward()
        return loss

    assert opt.step(closure).item() == 6.0
    assert opt.step(closure=closure).item() < 6.0
    assert opt.step() is None


@every
def test_step_hooks_fire_in_order_once(maker):
    params, set_gradients = small_problem()
    opt = maker(grouped(params))
    seen = []
    opt.register_step_pre_hook(lambda *_: seen.append("pre"))
    opt.register_step_post_hook(lambda *_: seen.append("post"))
    before = register_optimizer_step_pre_hook(lambda *_: seen.append("global pre"))
    after = register_optimizer_step_post_hook(lambda *_: seen.append("global post"))
    try:
        run(opt, set_gradients, range(1))
    finally:
        before.remove()
        after.remove()
    assert seen == ["global pre", "pre", "post", "global post"]


@every
def test_state_dict_hooks_see_what_is_saved_and_loaded(maker):
    params, set_gradients = small_problem()
    opt = maker(grouped(params))
    run(opt, set_gradients, range(2))
    texts, steps = [], []
    opt.register_state_dict_pre_hook(lambda o: steps.append("save"))
    opt.register_state_dict_post_hook(
        lambda o, saved: texts.append(saved["param_groups"][0]["penalty"])
    )
    opt.register_load_state_dict_pre_hook(lambda o, saved: steps.append("load"))
    opt.register_load_state_dict_post_hook(
        lambda o: steps.append(float(o.state[params[0]]["step"]))
    )
    opt.load_state_dict(opt.state_dict())
    assert texts == [repr(dp.GroupLasso(0.05))]
    assert steps == ["save", "load", 2.0]


@every
def test_add_param_group_checks_first_and_makes_state_at_once(maker):
    params, _ = small_problem()
    matrix, vector, kernel = params
    opt = maker([{"params": [matrix], "penalty": dp.L1(0.1)}])
    group = {"params": [kernel], "penalty": dp.GroupLasso(0.1, axis=1), "lr": 0.5}
    given = dict(group)
    opt.add_param_group(group)
    assert group == given
    assert opt.param_groups[1]["lr"] == 0.5 and opt.state[kernel]
    with pytest.raises(ValueError, match="GroupLasso: axis"):
        opt.add_param_group({"params": [vector], "penalty": dp.GroupLasso(0.1)})
    assert len(opt.param_groups) == 2 and vector not in opt.state
    with pytest.raises(TypeError, match="penalty must be a dualprox Penalty"):
        opt.add_param_group({"params": [vector], "penalty": "l1"})


@every
def test_the_same_groups_serve_two_optimizers(maker):
    model = torch.nn.Linear(4, 3)
    groups = dp.param_groups(model, dp.GroupLasso(0.1))
    first, second = maker(groups, lr=0.5), maker(groups, lr=0.25)
    assert [g["lr"] for g in first.param_groups] == [0.5, 0.5]
    assert [g["lr"] for g in second.param_groups] == [0.25, 0.25]
    assert second.param_groups[0]["param_names"] == ["weight"]


@every
def test_a_tensor_lr_means_the_same_as_a_number(maker):
    results = []
    for lr in (
        0.03,
        torch.tensor(0.03, dtype=torch.float64),
        torch.tensor([0.03], dtype=torch.float64),
    ):
        params, set_gradients = small_problem()
        results.append(run(maker(grouped(params), lr=lr), set_gradients, range(5)))
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])
    params, _ = small_problem()
    with pytest.raises(ValueError, match="lr must be a tensor of one element"):
        maker(grouped(params), lr=torch.ones(2))


@every
def test_maximize_follows_the_negated_gradient_and_gradients_stay(maker):
    params, set_gradients = small_problem()
    mirror = [torch.nn.Parameter(p.detach().clone()) for p in params]
    opt, mirrored = maker(grouped(params)), maker(grouped(mirror), maximize=True)
    for step in range(5):
        set_gradients(step)
        for p, q in zip(params, mirror, strict=True):
            q.grad = -p.grad  # pyright: ignore
        before = [p.grad.clone() for p in [*params, *mirror]]  # pyright: ignore
        opt.step()
        mirrored.step()
        assert_same([p.grad for p in [*params, *mirror]], before)  # pyright: ignore
    assert_same([*params], [*mirror])


SCHEDULERS = {
    "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 4]),
    "ExponentialLR": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
    "ConstantLR": lambda o: torch.optim.lr_scheduler.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=4),
    "PolynomialLR": lambda o: torch.optim.lr_scheduler.PolynomialLR(o, 8),
    "CosineAnnealingLR": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 8),
    "Restarts": lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda e: 1 / (1 + e)),
    "Multiplicative": lambda o: torch.optim.lr_scheduler.MultiplicativeLR(o, lambda e: 0.9),
    "ChainedScheduler": lambda o: torch.optim.lr_scheduler.ChainedScheduler(
        [
            torch.optim.lr_scheduler.ConstantLR(o, 0.5, 2),
            torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
        ]
    ),
    "SequentialLR": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [
            torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=2),
            torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
        ],
        [2],
    ),
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=9),
    "CyclicLR": lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3),
}


@every
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.filterwarnings("ignore:lr went from:UserWarning")
def test_every_torch_scheduler_drives_it(maker, name):
    params, set_gradients = small_problem()
    opt = maker(grouped(params))
    scheduler = SCHEDULERS[name](opt)
    total, momenta, before = 0.0, set(), [p.detach().clone() for p in params]
    for step in range(1, 7):
        group = opt.param_groups[0]
        total += group["lr"] * step**0.5
        momenta.add(group.get("momentum", group.get("betas", (0,))[0]))
        run(opt, set_gradients, range(step, step + 1))
        scheduler.step()
    assert all(not torch.equal(p, old) for p, old in zip(params, before, strict=True))
    if maker.averages:
        assert opt.state[params[0]]["penalty_sum"].item() == pytest.approx(total, rel=1e-14)
    if name in ("OneCycleLR", "CyclicLR"):
        assert len(momenta) > 2


@every
def test_reduce_on_plateau_drives_it(maker):
    params, set_gradients = small_problem()
    opt = maker(grouped(params))
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, patience=0)
    run(opt, set_gradients, range(1))
    for loss in (1.0, 2.0, 3.0):
        scheduler.step(loss)
    assert opt.param_groups[0]["lr"] == pytest.approx(maker.lr * 0.01)


@averaging
def test_a_change_of_lr_without_restart_is_warned_of_once(maker):
    params, set_gradients = small_problem()
    opt = maker(grouped(params), lr=0.1)
    run(opt, set_gradients, range(2))
    opt.param_groups[0]["lr"] = 0.05
    with pytest.warns(UserWarning, match=r"lr went from 0\.1 to 0\.05 without a restart"):
        run(opt, set_gradients, range(2, 3))
    run(opt, set_gradients, range(3, 5))


@every
def test_steps_that_a_grad_scaler_skips_advance_nothing(maker):
    params, set_gradients = small_problem(torch.float32)
    opt = maker(grouped(params))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for step in range(4):
        set_gradients(step)
        for p in params:
            p.grad *= scaler.get_scale()  # pyright: ignore
        if step == 2:
            params[1].grad[0] = torch.inf  # pyright: ignore
        state, weights = snapshot(opt), [p.detach().clone() for p in params]
        scaler.scale(torch.zeros(()))
        scaler.step(opt)
        scaler.update()
        if step == 2:
            assert_same(snapshot(opt), state)
            assert_same([p.detach() for p in params], weights)
    assert all(s["step"] == 3 for s in opt.state.values())


@every
def test_lr_zero_is_an_exact_no_op(maker):
    params, set_gradients = small_problem()
    with torch.no_grad():
        params[0].zero_()
    opt = maker(grouped(params))
    for steps in (range(0), range(3)):
        run(opt, set_gradients, steps)
        state, weights = snapshot(opt), [p.detach().clone() for p in params]
        for lr in (0.0, torch.tensor(0.0)):
            rates = [group["lr"] for group in opt.param_groups]
            for group in opt.param_groups:
                group["lr"] = lr
            run(opt, set_gradients, range(10, 12))
            for group, rate in zip(opt.param_groups, rates, strict=True):
                group["lr"] = rate
        assert_same(snapshot(opt), state)
        assert_same([p.detach() for p in params], weights)


@every
def test_parameters_without_gradient_and_frozen_ones_are_left_alone(maker):
    params, set_gradients = small_problem()
    matrix, vector, kernel = params
    kernel.requires_grad_(False)
    opt = maker(grouped(params))
    assert kernel not in opt.state
    frozen, start = kernel.detach().clone(), vector.detach().clone()
    for step in range(3):
        set_gradients(step)
        kernel.grad = vector.grad = None
        opt.step()
    assert torch.equal(kernel, frozen) and torch.equal(vector, start)
    assert opt.state[matrix]["step"] == 3 and opt.state[vector]["step"] == 0
    kernel.requires_grad_(True)
    run(opt, set_gradients, range(3, 5))
    assert opt.state[kernel]["step"] == 2 and not torch.equal(kernel, frozen)


@every
def test_groups_with_different_settings_are_separate_optimizers(maker):
    alone = []
    settings = [{"lr": 0.1}, {"lr": 0.01, "penalty": dp.L1(0.1)}]
    settings[1 if maker.make is dp.ProxAdamW else 0] |= (
        {"betas": (0.5, 0.9)} if maker.make is dp.ProxAdamW else {"momentum": 0.5}
    )
    for index, extra in enumerate(settings):
        params, set_gradients = small_problem()
        alone += run(maker([{"params": [params[index]], **extra}]), set_gradients, range(6))
    params, set_gradients = small_problem()
    groups = [{"params": [p], **extra} for p, extra in zip(params, settings, strict=False)]
    assert_same(run(maker(groups), set_gradients, range(6)), alone)


@every
@pytest.mark.parametrize("copied_by", ["deepcopy", "pickle", "torch.save"])
def test_a_copied_optimizer_continues_bit_by_bit(maker, copied_by):
    params, set_gradients = small_problem()
    opt = maker(grouped(params))
    run(opt, set_gradients, range(3))
    if copied_by == "deepcopy":
        twin = copy.deepcopy(opt)
    elif copied_by == "pickle":
        twin = pickle.loads(pickle.dumps(opt))
    else:
        buffer = io.BytesIO()
        torch.save(opt, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    ours = [p for group in opt.param_groups for p in group["params"]]
    theirs = [p for group in twin.param_groups for p in group["params"]]
    for step in range(3, 6):
        set_gradients(step)
        for mine, other in zip(ours, theirs, strict=True):
            assert mine is not other
            other.grad = mine.grad
        opt.step()
        twin.step()
    assert_same(ours, theirs)


@every
@pytest.mark.parametrize("option", ["foreach", "fused", "differentiable"])
def test_torch_options_it_does_not_have_are_refused(maker, option):
    params, _ = small_problem()
    maker(grouped(params), **{option: False})
    with pytest.raises(ValueError, match=f"{option} must be unset or False, got True"):
        maker(grouped(params), **{option: True})
    with pytest.raises(TypeError, match="has no option 'nesterov'"):
        maker(grouped(params), nesterov=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: dp.RMDA(p, momentum=1.0), r"momentum must be in \[0, 1\), got 1.0"),
        (lambda p: dp.RMDA(p, momentum=-0.1), "momentum .* got -0.1"),
        (lambda p: dp.RMDA(p, lr=-1.0), "lr must be a finite number >= 0, got -1.0"),
        (lambda p: dp.RMDA(p, lr=float("nan")), "lr .* got nan"),
        (lambda p: dp.RAMDA(p, eps=0.0), "eps must be a finite number > 0, got 0.0"),
        (lambda p: dp.ProxAdamW(p, betas=(0.9, 1.0)), r"betas\[1\] must be in \[0, 1\), got 1.0"),
        (lambda p: dp.ProxAdamW(p, weight_decay=-1.0), "weight_decay .* got -1.0"),
        (lambda p: dp.RMDA(p, capturable=True), "capturable needs impl='triton', got 'auto'"),
        (lambda p: dp.ProxSGD(p, impl="fast"), "impl must be one of .*, got 'fast'"),
        (lambda p: dp.RMDA([{"params": p, "weight_decay": 0.1}]), "weight_decay must be 0 for"),
    ],
)
def test_bad_settings_are_refused_by_name_rule_and_value(make, message):
    with pytest.raises(ValueError, match=message):
        make(small_problem()[0])


def test_groups_as_trainers_make_them_are_accepted():
    model = torch.nn.Linear(3, 2)
    groups = [
        {"params": [model.weight], "weight_decay": 0.0, "penalty": dp.L1(0.1)},
        {"params": [model.bias], "weight_decay": 0.0},
    ]
    opt = dp.RMDA(groups)
    model(torch.ones(1, 3)).sum().backward()
    opt.step()
    assert opt.param_groups[0]["weight_decay"] == 0.0


def test_a_solver_that_cannot_solve_is_refused_at_construction():
    w = torch.nn.Parameter(torch.ones(2, 2))
    with pytest.raises(TypeError, match="use solver=ProximalGradient"):
        dp.RAMDA([{"params": [w], "penalty": dp.NuclearNorm(1.0)}], solver=dp.Exact())
    with pytest.raises(TypeError, match="NewtonRaphson\\(\\) solves GroupLasso alone"):
        dp.ProxAdamW([{"params": [w], "penalty": dp.L1(1.0)}], solver=dp.NewtonRaphson())
