import copy
import io
import math
import pickle
from typing import Any

import numpy as np
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
from dualprox.optim.densities import erk_densities, live_counts
from oracles import rigl

TORCH: dict[str, Any] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "plain SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "AdamW amsgrad": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, weight_decay=0.1),
    "RMDA": lambda p: dp.RMDA(p, lr=0.05),
}
every_torch = pytest.mark.parametrize("name", TORCH)


class Net(nn.Module):
    """Every kind of parameter: masked ones under a norm, biases, an embedding, a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.words = nn.Embedding(7, 5)
        self.up = nn.Linear(5, 12)
        self.tied = nn.Linear(5, 7, bias=False)
        self.tied.weight = self.words.weight


def network(
    dtype: torch.dtype = torch.float64, layout: torch.memory_format = torch.contiguous_format
) -> tuple[Net, Any]:
    """A network and a function that sets its gradients for step t, which depend on the weights."""
    torch.manual_seed(0)
    model: Any = Net().to(dtype)
    model = model.to(memory_format=layout)
    targets = [torch.randn(p.shape, dtype=torch.float64) for p in model.parameters()]

    def set_gradients(step: int) -> None:
        noise = torch.Generator().manual_seed(step)
        for param, target in zip(model.parameters(), targets, strict=True):
            random = torch.randn(param.shape, generator=noise, dtype=torch.float64)
            param.grad = (param.detach().double() - target + 0.3 * random).to(dtype)

    return model, set_gradients


def made(name: str = "SGD", **settings: Any) -> tuple[Net, dp.RigL, Any]:
    model, set_gradients = network()
    opt = TORCH[name](model.parameters())
    settings = {"sparsity": 0.7, "t_end": 80, "delta_t": 5, **settings}
    return model, dp.RigL(opt, model, **settings), set_gradients


def sgd_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def masked_weights(model: Net) -> dict[str, torch.Tensor]:
    return {"conv.weight": model.conv.weight, "up.weight": model.up.weight}


@pytest.mark.parametrize(("momentum", "decay"), [(0.9, 0.02), (0.0, 0.0), (0.5, 0.3)])
@pytest.mark.parametrize("drop_fraction", [0.3, 0.9])
def test_it_follows_the_papers_algorithm(momentum, decay, drop_fraction):
    model, set_gradients = network()
    start = [p.detach().numpy().copy() for p in model.parameters()]
    sgd = torch.optim.SGD(model.parameters(), lr=0.03, momentum=momentum, weight_decay=decay)
    opt = dp.RigL(sgd, model, 0.6, t_end=90, delta_t=4, drop_fraction=drop_fraction, seed=3)
    names = [name for name, _ in model.named_parameters()]
    first = opt.masks
    live = [
        np.flatnonzero(first[name].numpy()) if name in first else range(p.numel())
        for name, p in model.named_parameters()
    ]
    oracle = rigl.RigL(start, live, 0.03, momentum, decay, drop_fraction, 4, 90)
    moves, masks = 0, first
    for step in range(100):
        set_gradients(step)
        gradients = [p.grad.numpy().copy() for p in model.parameters()]  # pyright: ignore
        before = masks
        opt.step()
        oracle.step(gradients)
        masks = opt.masks
        moves += any(not torch.equal(masks[name], before[name]) for name in masks)
        for i, (name, p) in enumerate(model.named_parameters()):
            np.testing.assert_allclose(p.detach().numpy().ravel(), oracle.w[i], 0, 1e-12)
            if name in masks:
                assert set(np.flatnonzero(masks[name].numpy())) == oracle.live[i]
    assert moves >= 15 and set(first) <= set(names)
    assert any(not torch.equal(first[name], masks[name]) for name in masks)


def test_the_oracles_gradients_matter():
    """The same weights and other gradients lead elsewhere, so that agreement says something."""
    results = []
    for shift in (0, 1000):
        _, opt, set_gradients = made()
        run(opt, set_gradients, range(shift, shift + 30))
        results.append(opt.masks["conv.weight"])
    assert not torch.equal(*results)


@every_torch
def test_dead_weights_are_exactly_zero_after_every_step(name):
    model, opt, set_gradients = made(name)
    counts = {name: int(mask.sum()) for name, mask in opt.masks.items()}
    assert sum(counts.values()) == round(0.3 * (6 * 2 * 9 + 12 * 5))
    for step in range(100):
        run(opt, set_gradients, range(step, step + 1))
        for key, weight in masked_weights(model).items():
            mask = opt.masks[key]
            assert int(mask.sum()) == counts[key]
            assert not weight[~mask].any()
            for value in opt.state[weight].values():
                if value.shape == weight.shape:
                    assert torch.isfinite(value).all()


@every_torch
def test_live_weights_move_as_if_the_dead_ones_did_not_exist(name):
    """Between moves, what the optimizer sums up is what it sums up under masked gradients."""
    model, opt, set_gradients = made(name, delta_t=1000)
    other, set_others = network()
    masks = opt.masks
    for key, weight in masked_weights(other).items():
        weight.data.mul_(masks[key])
    plain = TORCH[name](other.parameters())
    for step in range(20):
        set_gradients(step)
        set_others(step)
        for key, weight in masked_weights(other).items():
            weight.grad *= masks[key]  # pyright: ignore
        opt.step()
        plain.step()
    assert_same([*model.parameters()], [*other.parameters()])


class Normed(torch.optim.Optimizer):
    """A step of length lr, which depends on all entries of the gradient at once."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore
        for p in self.param_groups[0]["params"]:
            p.sub_(p.grad / p.grad.norm(), alpha=0.1)


def test_the_dense_gradient_is_not_seen_by_the_wrapped_optimizer_and_stays():
    model, set_gradients = network()
    opt = dp.RigL(Normed(model.parameters()), model, 0.7, t_end=80, delta_t=5)
    before = {key: w.detach().clone() for key, w in masked_weights(model).items()}
    set_gradients(0)
    gradients = [p.grad for p in model.parameters()]
    kept = [g.clone() for g in gradients]  # pyright: ignore
    opt.step()
    for key, weight in masked_weights(model).items():
        assert (weight - before[key]).norm().item() == pytest.approx(0.1)
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert_same([p.grad for p in model.parameters()], kept)  # pyright: ignore


def test_what_is_new_begins_at_zero_in_the_buffers_too_and_what_stays_stays():
    torch.manual_seed(0)
    model = nn.Linear(4, 2, bias=False)
    weight = model.weight
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    opt = dp.RigL(sgd, model, 0.5, t_end=10**6, delta_t=2, drop_fraction=0.6)
    state = copy.deepcopy(opt.state_dict())
    state["state"][0]["mask"] = torch.tensor([[True] * 4, [False] * 4])
    opt.load_state_dict(state)
    weight.grad = torch.zeros_like(weight)
    opt.step()
    weight.data.copy_(torch.tensor([[4.0, 1.0, -3.0, 2.0], [0.0] * 4]))
    sgd.state[weight]["momentum_buffer"].fill_(1.0)
    # The two smallest go, of which the last comes back at once, by its gradient.
    weight.grad = torch.tensor([[9.0, 0.3, 9.0, -4.5], [0.1, -5.0, 0.2, 4.0]])
    opt.step()
    expected = [[True, False, True, True], [False, True, False, False]]
    assert opt.masks["weight"].tolist() == expected
    assert weight.tolist() == [[4.0, 0.0, -3.0, 2.0], [0.0] * 4]
    assert sgd.state[weight]["momentum_buffer"].tolist() == [[1.0, 0.0, 1.0, 1.0], [0.0] * 4]


def test_a_call_that_moves_masks_is_no_step_of_the_optimizer():
    model, opt, set_gradients = made("AdamW amsgrad")
    bias = model.up.bias.detach().clone()
    seen = []
    opt.optimizer.register_step_post_hook(lambda *_: seen.append(len(seen)))
    for step in range(5):
        run(opt, set_gradients, range(step, step + 1))
        assert torch.equal(model.up.bias, bias) == (step == 4)
        bias = model.up.bias.detach().clone()
    assert len(seen) == 4
    assert opt.state[model.up.weight]["step"] == 4


class Noisy(torch.optim.SGD):
    """Moves entries whatever their gradient."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore
        super().step(closure)
        for p in self.param_groups[0]["params"]:
            p.add_(1.0)


def test_whatever_the_wrapped_optimizer_does_the_dead_stay_dead():
    model, set_gradients = network()
    opt = dp.RigL(Noisy(model.parameters(), lr=0.1), model, 0.7, t_end=80, delta_t=5)
    run(opt, set_gradients, range(1))
    for key, weight in masked_weights(model).items():
        assert torch.equal(weight != 0, opt.masks[key])


def test_from_t_end_on_every_call_is_a_step():
    model, opt, set_gradients = made("AdamW amsgrad", t_end=10)
    run(opt, set_gradients, range(30))
    assert opt.state[model.up.bias]["step"] == 29


def test_masks_stay_from_t_end_on_and_ever_fewer_entries_are_exchanged():
    _, opt, set_gradients = made(t_end=61, drop_fraction=1.0)
    exchanged = []
    for step in range(100):
        before = opt.masks["conv.weight"]
        run(opt, set_gradients, range(step, step + 1))
        exchanged.append(int((opt.masks["conv.weight"] & ~before).sum()))
    assert all(n == 0 for t, n in enumerate(exchanged, start=1) if t % 5 or t > 60)
    moves = exchanged[4:60:5]
    assert moves[0] > 8 and moves[0] > moves[5] > moves[-1]


def test_scaling_a_layer_does_not_move_masks_of_others():
    results = []
    for scale in (1.0, 1000.0):
        model, opt, set_gradients = made("plain SGD")
        model.conv.weight.data *= scale
        run(opt, set_gradients, range(20))
        results.append(opt.masks["up.weight"])
    assert_same([results[0]], [results[1]])


def test_which_weights_are_masked():
    _, opt, _ = made()
    assert set(opt.masks) == {"conv.weight", "up.weight"}
    model, opt, _ = made(dense_first=True, distribution="uniform", sparsity=0.9)
    assert set(opt.masks) == {"up.weight"} and model.conv.weight.all()
    assert opt.masks["up.weight"].sum() == 6
    model, _ = network()
    model.up.weight.requires_grad_(False)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    assert set(dp.RigL(sgd, model, 0.5, t_end=9).masks) == {"conv.weight"}
    model, _ = network()
    sgd = torch.optim.SGD(model.up.parameters(), lr=0.1)
    assert set(dp.RigL(sgd, model, 0.5, t_end=9).masks) == {"up.weight"}
    assert model.conv.weight.all()


def test_first_masks_are_random_and_the_seeds_alone():
    torch.manual_seed(5)
    first = made(seed=1)[1].masks
    torch.manual_seed(6)
    again, other = made(seed=1)[1].masks, made(seed=2)[1].masks
    assert_same([*first.values()], [*again.values()])
    assert not torch.equal(first["conv.weight"], other["conv.weight"])
    model, _ = network()
    state = torch.get_rng_state()
    dp.RigL(sgd_of(model), model, 0.5, t_end=9)
    assert torch.equal(state, torch.get_rng_state())


def test_erdos_renyi_densities_are_the_hand_computed_ones():
    # A convolution of 16 from 8 of 3x3, and linear layers 32 from 64 and 10 from 20; 10 % live:
    # raw shares (16+8+3+3)/1152, 96/2048, 30/200; 340 = factor (30 + 96 + 30).
    shapes = [(16, 8, 3, 3), (32, 64), (10, 20)]
    factor = 0.1 * 3400 / 156
    expected = [factor * 30 / 1152, factor * 96 / 2048, factor * 30 / 200]
    assert erk_densities(shapes, 0.1) == pytest.approx(expected, rel=1e-14)
    # At 50 % the last would have 1.63 of its entries: it is dense, and 1500 are left to the others.
    expected = [1500 / 126 * 30 / 1152, 1500 / 126 * 96 / 2048, 1.0]
    assert erk_densities(shapes, 0.5) == pytest.approx(expected, rel=1e-14)
    # 70 live of 148: the first has 1.94 of its entries, the second 0.97, and 1.03 once the first is
    # dense; 50 are left.
    assert erk_densities([(2, 2), (4, 4), (8, 16)], 70 / 148) == pytest.approx([1, 1, 50 / 128])
    assert erk_densities(shapes, 1.0) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("density", [0.02, 0.1, 0.3, 0.7, 0.95])
def test_erdos_renyi_spends_the_total(density):
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        shapes = torch.randint(1, 40, (6, 4), generator=generator).tolist()
        sizes = [math.prod(shape) for shape in shapes]
        shares = erk_densities(shapes, density)
        spent = sum(size * share for size, share in zip(sizes, shares, strict=True))
        assert spent == pytest.approx(density * sum(sizes), rel=1e-12)
        assert all(0 < share <= 1 for share in shares)
        counts = live_counts(sizes, shares)
        assert sum(counts) == round(density * sum(sizes))
        for count, size, share in zip(counts, sizes, shares, strict=True):
            assert abs(count - size * share) < 1 and count <= size


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
        ({"delta_t": 2.5}, "delta_t must be a whole number >= 1, got 2.5"),
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
