"""RigL beside its paper's algorithm."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dualprox as dp
from contracts import assert_same, run
from dualprox.optim.densities import erk_densities, live_counts
from oracles import rigl
from rigl_cases import TORCH, every_torch, made, masked_weights, network, sgd_of


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
