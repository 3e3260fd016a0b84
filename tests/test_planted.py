"""Data whose support is known, and what stochastic methods make of it."""

import numpy as np
import pytest
import torch
from torch import nn

import dualprox as dp
from dualprox.lab.data.planted import (
    Planted,
    planted_convolutions,
    planted_logistic,
    support_correctness,
)

MAKERS = (planted_logistic, planted_convolutions)
every = pytest.mark.parametrize("make", MAKERS)
METHODS = {"RMDA": dp.RMDA, "RAMDA": dp.RAMDA, "ProxSGD": dp.ProxSGD}


def followed(made: Planted, method: str, lr: float, seed: int) -> list[float]:
    """Correctness of the structured point's support after each of 20 epochs."""
    model = made.start(seed)
    groups = dp.param_groups(model, dp.GroupLasso(0.01), include=made.truth)
    opt = METHODS[method](groups, lr=lr)
    stages = dp.StageSchedule(opt, milestones=[], gamma=0.1)
    found = []
    for epoch in range(20):
        for inputs, labels in made.split.batches(64, seed, epoch):
            opt.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            opt.step()
        with opt.structured():
            found.append(support_correctness(model, made.truth))
        stages.step()
    return found


@every
def test_the_seed_alone_determines_every_bit(make):
    torch.manual_seed(0)
    first, state = make(3, examples=40), torch.get_rng_state()
    torch.rand(7)
    again, other = make(3, examples=40), make(4, examples=40)
    for name in ("x", "y", "val_x", "val_y"):
        assert torch.equal(getattr(first.split, name), getattr(again.split, name))
    assert not torch.equal(first.split.x, other.split.x)
    for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(first.start(5).parameters(), again.start(5).parameters(), strict=True):
        assert torch.equal(a, b)
    torch.manual_seed(0)
    assert torch.equal(state, torch.get_rng_state())


@every
def test_the_network_decided_the_labels_and_dead_inputs_do_not_matter(make):
    made = make()
    split = made.split
    assert len(split.val_x) == len(split.x) // 4
    assert support_correctness(made.model, made.truth) == 1.0
    assert split.y.bincount(minlength=5).min() > 0.02 * len(split.y)
    first = next(iter(made.truth.values()))
    shuffled = split.val_x.clone()
    shuffled[:, ~first] = shuffled[:, ~first].flip(0)
    for x in (split.val_x, shuffled):
        assert torch.equal(made.model(x).argmax(1), split.val_y)
    shuffled[:, first] = shuffled[:, first].flip(0)
    assert not torch.equal(made.model(shuffled).argmax(1), split.val_y)


def test_the_labels_are_those_of_a_plain_formula():
    made = planted_logistic(1, examples=60, features=8, live=3, classes=4)
    (weight, bias) = (p.detach().double().numpy() for p in made.model.parameters())
    live = made.truth["fc1.weight"].numpy()
    assert live.sum() == 3 and not weight[:, ~live].any() and weight[:, live].all()
    scores = made.split.x.double().numpy()[:, live] @ weight[:, live].T + bias
    assert (scores.argmax(1) == made.split.y.numpy()).all()
    everything = torch.cat((made.split.x, made.split.val_x))
    moments = made.model(everything).detach().numpy()
    np.testing.assert_allclose(moments.std(0, ddof=1), 3.0, rtol=1e-4)
    np.testing.assert_allclose(moments.mean(0), 0.0, atol=1e-5)


@every
def test_training_starts_with_no_dead_input_and_the_truth_elsewhere(make):
    made = make()
    model = made.start(seed=1)
    shares = [live.sum().item() for live in made.truth.values()]
    total = sum(len(live) for live in made.truth.values())
    assert support_correctness(model, made.truth) == sum(shares) / total
    for name, weight in model.named_parameters():
        planted = made.model.get_parameter(name)
        live = made.truth.get(name, torch.ones(weight.shape[-1], dtype=torch.bool))
        if name in made.truth:
            assert torch.equal(weight[:, live], planted[:, live])
            ratio = weight[:, ~live].std() / weight[:, live].std()
            assert 0.8 < ratio < 1.25
        else:
            assert torch.equal(weight, planted)
    assert not torch.equal(*(next(made.start(s).parameters()) for s in (1, 2)))


def test_the_layer_that_would_take_over_the_scale_is_not_trained():
    model = planted_convolutions(examples=40).start()
    frozen = [name for name, param in model.named_parameters() if not param.requires_grad]
    assert frozen == ["fc.weight", "fc.bias"]


def test_correctness_counts_groups_of_all_weights_alike():
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Linear(5, 1))
    first, second = (model.get_parameter(name) for name in ("0.weight", "1.weight"))
    first.data[:, 1] = 0.0
    second.data[:, :2] = 0.0
    first.data[0, 1, 2, 2] = 1e-30
    truth = {
        "0.weight": torch.tensor([True, False, True]),
        "1.weight": torch.tensor([False, True, True, True, False]),
    }
    assert support_correctness(model, truth) == 5 / 8
    first.data[0, 1, 2, 2] = -0.0
    assert support_correctness(model, truth) == 6 / 8


def test_what_does_not_fit_is_refused():
    model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="truth must be of weights among weight, bias, got 'w'"):
        support_correctness(model, {"w": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"truth of weight must be bool of shape \(3,\), got"):
        support_correctness(model, {"weight": torch.ones(2, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"live must be a whole number in \[1, 100\], got 101"):
        planted_logistic(live=101)
    with pytest.raises(ValueError, match="classes must be a whole number >= 2, got 1"):
        planted_convolutions(classes=1)
    with pytest.raises(ValueError, match="examples must be a whole number >= 1, got 0"):
        planted_logistic(examples=0)


@pytest.mark.parametrize("seed", [0, 1])
def test_dual_averaging_finds_the_planted_features_and_stays(seed):
    made = planted_logistic(seed)
    assert min(followed(made, "RMDA", 0.3, seed)[-8:]) == 1.0
    assert min(followed(made, "RAMDA", 5e-3, seed)[-8:]) == 1.0
    assert max(followed(made, "ProxSGD", 0.1, seed)[-8:]) < 1.0


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_dual_averaging_finds_the_planted_channels_and_stays(seed):
    made = planted_convolutions(seed)
    assert min(followed(made, "RMDA", 0.1, seed)[-8:]) > 0.95  # 1 or 0 of 24 groups wrong
    assert max(followed(made, "ProxSGD", 0.1, seed)[-8:]) < 0.9
