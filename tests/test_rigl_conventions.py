"""RigL among the habits of torch: checkpoints, copies, hooks, schedulers, scalers, errors."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import dualprox as dp
from contracts import assert_same, run
from rigl_cases import TORCH, every_torch, made, network, sgd_of


@pytest.mark.parametrize("saved_at", [0, 1, 5, 12, 40])
@every_torch
def test_saving_and_loading_changes_no_bit_of_what_follows(name, saved_at):
    def schedule(opt: Any) -> Any:
        kind = torch.optim.lr_scheduler.CosineAnnealingLR
        return kind(opt, 60) if name != "RMDA" else torch.optim.lr_scheduler.ConstantLR(opt, 1.0)

    def steps(opt: Any, scheduler: Any, set_gradients: Any, which: range) -> None:
        for step in which:
            run(opt, set_gradients, range(step, step + 1))
            scheduler.step()

    model, opt, set_gradients = made(name, seed=0)
    scheduler = schedule(opt)
    steps(opt, scheduler, set_gradients, range(saved_at))
    buffer = io.BytesIO()
    torch.save([model.state_dict(), opt.state_dict(), scheduler.state_dict()], buffer)
    steps(opt, scheduler, set_gradients, range(saved_at, 60))
    buffer.seek(0)
    weights, saved, saved_schedule = torch.load(buffer, weights_only=True)
    other, twin, set_others = made(name, seed=1)
    other.load_state_dict(weights)
    twin_schedule = schedule(twin)
    twin.load_state_dict(saved)
    twin_schedule.load_state_dict(saved_schedule)
    steps(twin, twin_schedule, set_others, range(saved_at, 60))
    assert_same([*model.parameters()], [*other.parameters()])
    assert_same([*opt.masks.values()], [*twin.masks.values()])
    assert [g["lr"] for g in opt.param_groups] == [g["lr"] for g in twin.param_groups]
    assert twin.param_groups is twin.optimizer.param_groups and twin.state is twin.optimizer.state


def test_loaded_masks_share_no_memory_with_what_they_came_from():
    _, opt, set_gradients = made()
    saved = copy.deepcopy(opt.state_dict())
    kept = copy.deepcopy(saved)
    opt.load_state_dict(saved)
    run(opt, set_gradients, range(12))
    assert torch.equal(saved["state"][0]["mask"], kept["state"][0]["mask"])
    assert not torch.equal(saved["state"][0]["mask"], opt.masks["conv.weight"])


def without_a_mask(saved):
    del saved["state"][0]["mask"]


def with_one_mask_more(saved):
    saved["state"][3]["mask"] = torch.ones(7, 5, dtype=torch.bool)


def of_another_shape(saved):
    saved["state"][0]["mask"] = torch.ones(2, 2, dtype=torch.bool)


def fewer_parameters(saved):
    del saved["param_groups"][0]["params"][-1]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_a_mask, "must have a mask for each of conv.weight, up.weight, .* it has 1, for"),
        (with_one_mask_more, "and no other; it has 3"),
        (of_another_shape, r"the mask of conv.weight must be bool of shape \(6, 2, 3, 3\), got"),
        (fewer_parameters, "doesn't match the size"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_nothing_changes(damage, message):
    _, opt, set_gradients = made()
    run(opt, set_gradients, range(7))
    saved, before = copy.deepcopy(opt.state_dict()), copy.deepcopy(opt.state_dict())
    damage(saved)
    with pytest.raises(ValueError, match=message):
        opt.load_state_dict(saved)
    after = opt.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for ours, theirs in zip(after["state"].values(), before["state"].values(), strict=True):
        assert_same([*ours.values()], [*theirs.values()])


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("trained", [0, 7])
def test_distributed_checkpoints_continue_bit_by_bit(trained, tmp_path):
    def zeroed(model: Any, opt: Any, set_gradients: Any, which: range) -> None:
        run(opt, set_gradients, which)
        opt.zero_grad()

    model, opt, set_gradients = made("SGD", seed=0)
    zeroed(model, opt, set_gradients, range(trained))
    weights = {name: t.clone() for name, t in model.state_dict().items()}
    saved = get_optimizer_state_dict(model, opt)
    state_dict_saver.save({"model": weights, "opt": saved}, checkpoint_id=tmp_path, no_dist=True)
    zeroed(model, opt, set_gradients, range(trained, 20))
    other, twin, set_others = made("SGD", seed=1)
    target = {"model": other.state_dict(), "opt": get_optimizer_state_dict(other, twin)}
    state_dict_loader.load(target, checkpoint_id=tmp_path, no_dist=True)
    other.load_state_dict(target["model"])
    set_optimizer_state_dict(other, twin, target["opt"])
    zeroed(other, twin, set_others, range(trained, 20))
    assert_same([*model.state_dict().values()], [*other.state_dict().values()])
    assert_same([*opt.masks.values()], [*twin.masks.values()])


@pytest.mark.parametrize("copied_by", ["deepcopy", "pickle"])
def test_a_copied_optimizer_continues_bit_by_bit(copied_by):
    model, opt, set_gradients = made()
    run(opt, set_gradients, range(3))
    pair = [model, opt]
    other, twin = (
        copy.deepcopy(pair) if copied_by == "deepcopy" else pickle.loads(pickle.dumps(pair))
    )
    for step in range(3, 20):
        set_gradients(step)
        for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
            theirs.grad = mine.grad
        opt.step()
        twin.step()
    assert_same([*model.parameters()], [*other.parameters()])
    assert not torch.equal(opt.masks["conv.weight"], made()[1].masks["conv.weight"])
    assert twin.param_groups[0]["params"][0] is other.conv.weight


def test_closures_hooks_and_zero_grad_work_as_in_torch():
    model, opt, _ = made("AdamW amsgrad")
    seen = []
    opt.register_step_pre_hook(lambda *_: seen.append("pre"))
    opt.register_step_post_hook(lambda *_: seen.append("post"))
    opt.register_state_dict_post_hook(lambda o, saved: seen.append("mask" in saved["state"][0]))
    opt.register_load_state_dict_pre_hook(lambda o, saved: seen.append("load"))
    opt.register_load_state_dict_post_hook(lambda o: seen.append("loaded"))

    def closure() -> torch.Tensor:
        assert torch.is_grad_enabled()
        opt.zero_grad()
        loss = sum((p**2).sum() for p in model.parameters())
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        return loss

    losses = [opt.step(closure).item() for _ in range(7)]
    assert losses == sorted(losses, reverse=True)
    # The fifth call moved the masks: dropped entries lower the loss, and nothing else changed.
    assert opt.step() is None
    opt.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    opt.load_state_dict(opt.state_dict())
    assert seen == ["pre", "post"] * 8 + [True, "load", "loaded"]
    assert "RigL" in repr(opt)


@pytest.mark.parametrize("on_wrapped", [False, True])
def test_schedulers_drive_either(on_wrapped):
    _, opt, set_gradients = made()
    inner = opt.optimizer
    schedulers = [
        torch.optim.lr_scheduler.StepLR(inner if on_wrapped else opt, 2),
        torch.optim.lr_scheduler.OneCycleLR(inner if on_wrapped else opt, 0.1, total_steps=30),
    ]
    for step in range(12):
        run(opt, set_gradients, range(step, step + 1))
        for scheduler in schedulers:
            scheduler.step()
    group = opt.param_groups[0]
    assert group is inner.param_groups[0]
    assert group["lr"] != 0.05 and group["momentum"] != 0.9


def test_steps_that_a_grad_scaler_skips_and_steps_at_lr_zero_are_not_counted():
    model, set_gradients = network(torch.float32)
    opt = dp.RigL(TORCH["SGD"](model.parameters()), model, 0.7, t_end=80, delta_t=3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    first = opt.masks["conv.weight"]
    for step in range(4):
        set_gradients(step)
        for p in model.parameters():
            p.grad *= scaler.get_scale()  # pyright: ignore
        if step == 1:
            model.up.bias.grad[0] = torch.inf  # pyright: ignore
        assert torch.equal(opt.masks["conv.weight"], first)
        scaler.scale(torch.zeros(()))
        scaler.step(opt)
        scaler.update()
        set_gradients(step)
        lr = opt.param_groups[0]["lr"]
        opt.param_groups[0]["lr"] = 0.0
        for _ in range(2):
            before = opt.masks["conv.weight"]
            opt.step()
            assert torch.equal(opt.masks["conv.weight"], before)
        opt.param_groups[0]["lr"] = lr
    assert opt.state_dict()["param_groups"][0]["rigl_step"] == 3
    assert not torch.equal(opt.masks["conv.weight"], first)


def test_weights_without_a_gradient_keep_weight_and_mask():
    model, opt, set_gradients = made("AdamW amsgrad")
    weight, mask = model.conv.weight.detach().clone(), opt.masks["conv.weight"]
    for step in range(10):
        set_gradients(step)
        model.conv.weight.grad = None
        opt.step()
    assert torch.equal(model.conv.weight, weight)
    assert torch.equal(opt.masks["conv.weight"], mask)


def test_the_layout_in_memory_and_half_precision_do_not_matter():
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model, set_gradients = network(torch.bfloat16, layout)
        opt = dp.RigL(TORCH["SGD"](model.parameters()), model, 0.7, t_end=80, delta_t=5)
        assert opt._masks["conv.weight"].is_contiguous(memory_format=layout)
        results.append((run(opt, set_gradients, range(20)), opt.masks))
    assert_same(results[0][0], results[1][0])
    assert_same([*results[0][1].values()], [*results[1][1].values()])


def test_equal_entries_are_taken_in_their_order():
    layer = nn.Linear(6, 2, bias=False)
    opt = dp.RigL(sgd_of(layer), layer, 0.5, t_end=10**6, delta_t=1, drop_fraction=0.6)
    state = copy.deepcopy(opt.state_dict())
    state["state"][0]["mask"] = torch.arange(12).view(2, 6) % 2 == 1
    opt.load_state_dict(state)
    layer.weight.data.fill_(1.0).mul_(opt.masks["weight"])
    layer.weight.grad = torch.zeros(2, 6)
    opt.step()
    assert opt.masks["weight"].flatten().nonzero().flatten().tolist() == [0, 1, 2, 7, 9, 11]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity must be in \[0, 1\), got 1.0"),
        ({"sparsity": -0.1}, "sparsity .* got -0.1"),
        ({"t_end": 0}, "t_end must be a whole number >= 1, got 0"),
        ({"delta_t": 2.5}, "delta_t must be a whole number, got 2.5"),
        ({"drop_fraction": 1.5}, r"drop_fraction must be in \[0, 1\], got 1.5"),
        ({"distribution": "er"}, r"distribution must be one of \('erk', 'uniform'\), got 'er'"),
        ({"sparsity": 0.999}, r"live entry, 0.999 leaves conv.weight of shape \(6, 2, 3, 3\) none"),
    ],
)
def test_bad_settings_are_refused_by_name_rule_and_value(settings, message):
    with pytest.raises(ValueError, match=message):
        made(**settings)


def test_optimizers_and_gradients_that_do_not_fit_are_refused():
    model, set_gradients = network()
    with pytest.raises(TypeError, match="must step without a closure, LBFGS needs one"):
        dp.RigL(torch.optim.LBFGS(model.parameters()), model, 0.5, t_end=9)
    with pytest.raises(ValueError, match="this SGD trains none of the model's"):
        dp.RigL(sgd_of(nn.Linear(2, 2)), model, 0.5, t_end=9)
    with pytest.raises(ValueError, match="must train weights that can be masked"):
        dp.RigL(sgd_of(nn.BatchNorm1d(3)), nn.BatchNorm1d(3), 0.5, t_end=9)
    opt = dp.RigL(sgd_of(model), model, 0.5, t_end=9)
    set_gradients(0)
    model.up.weight.grad = model.up.weight.grad.to_sparse()  # pyright: ignore
    with pytest.raises(RuntimeError, match=r"RigL needs dense gradients, parameter up\.weight has"):
        opt.step()
    extra = nn.Parameter(torch.ones(2, 2))
    opt.add_param_group({"params": [extra], "lr": 0.5})
    assert opt.optimizer.param_groups[1]["lr"] == 0.5 and len(opt.masks) == 2


def test_an_error_in_the_wrapped_step_gives_the_gradients_back():
    model, opt, set_gradients = made()

    def fail(*_: Any) -> None:
        raise RuntimeError("no step")

    opt.optimizer.register_step_pre_hook(fail)
    set_gradients(0)
    before = [p.grad for p in model.parameters()]
    with pytest.raises(RuntimeError, match="no step"):
        opt.step()
    assert all(p.grad is g for p, g in zip(model.parameters(), before, strict=True))
