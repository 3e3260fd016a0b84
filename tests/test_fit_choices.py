"""What `fit` decides by itself, and that it does what its plan says."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dualprox as dp
from dualprox.fitting.control import SizeControl
from fitting_cases import fitted, network


class OwnRMSNorm(nn.Module):
    """As model libraries have their own."""

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("name", "norms", "optimizer", "refit", "steer"),
    [
        ("mlp", [], "ramda", ("adamw", 3e-3), 0.65),
        ("mlp", [], "rmda", ("sgd", 0.05), 0.65),
        ("cnn", [], "ramda", ("adamw", 3e-3), 0.65),
        ("cnn", [], "rmda", ("sgd", 0.1), 0.65),
        ("transformer", [], "ramda", ("adamw", 1.5e-3), 0.65),
        ("transformer", [], "rmda", ("adamw", 1.5e-3), 1.0),
        ("mlp", [OwnRMSNorm()], "rmda", ("adamw", 1.5e-3), 1.0),
    ],
)
def test_what_is_decided_depends_on_the_norms_of_the_network(
    name: str,
    norms: list[nn.Module],
    optimizer: Any,
    refit: tuple[str, float],
    steer: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The plan says it, and the strength is found anew in the share of the search that it says."""
    looks: list[int] = []
    look = SizeControl._steer

    def counted(control: SizeControl, goal: float, weigh: bool = True) -> float:
        if weigh:
            looks.append(control.steps)
        return look(control, goal, weigh)

    monkeypatch.setattr(SizeControl, "_steer", counted)
    model = nn.Sequential(*norms, network(name)) if norms else network(name)
    plan = fitted(name, 10, model=model, optimizer=optimizer).plan
    assert (plan.refit_optimizer, plan.warmup_lr, plan.steer) == (*refit, steer)
    searched = round((plan.warmup_epochs + plan.search_epochs) * 8) - round(plan.warmup_epochs * 8)
    assert max(looks) == round(steer * searched)


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The learning rates of torch's optimizers, step by step."""
    found: list[float] = []
    for kind in (torch.optim.AdamW, torch.optim.SGD):

        def noted(optimizer: Any, *args: Any, step: Any = kind.step) -> Any:
            found.append(optimizer.param_groups[0]["lr"])
            return step(optimizer, *args)

        monkeypatch.setattr(kind, "step", noted)
    return found


@pytest.mark.parametrize("optimizer", ["ramda", "rmda"])
@pytest.mark.parametrize(
    ("target", "end"),
    [
        (dp.TargetSize(params=0.05), 0.5),
        (dp.TargetSize(params=0.5), 1.0),
        (dp.TargetSize(macs=0.07), 0.7),
        (dp.TargetSize(weighted_group_sparsity=0.5), 0.0),
    ],
    ids=str,
)
def test_the_warmup_comes_the_more_to_rest_the_less_is_to_stay(
    target: dp.TargetSize, end: float, optimizer: Any, rates: list[float]
) -> None:
    plan = fitted("mlp", 10, target=target, optimizer=optimizer).plan
    steps = round(plan.warmup_epochs * 8)
    assert plan.warmup_end == pytest.approx(end)
    fall = [(1 + math.cos(math.pi * t / steps)) / 2 for t in range(steps)]
    assert rates[:steps] == pytest.approx([plan.warmup_lr * (end + (1 - end) * f) for f in fall])


@pytest.mark.parametrize(
    ("name", "params", "rate"),
    [("cnn", 0.5, 3e-3), ("cnn", 0.08, 3.75e-3), ("cnn", 0.03, 6e-3), ("mlp", 0.03, 3e-3)],
)
def test_with_batch_norms_the_warmup_of_small_ones_takes_longer_steps(
    name: str, params: float, rate: float
) -> None:
    plan = fitted(name, 4, target=dp.TargetSize(params=params)).plan
    assert plan.warmup_lr == pytest.approx(rate)


@pytest.mark.parametrize(
    ("name", "params", "options", "rate"),
    [
        ("mlp", 0.05, {}, 1.5e-3 / math.sqrt(0.05)),
        ("mlp", 0.9, {}, 3e-3),
        ("mlp", 0.05, {"refit_lr": 1e-3}, 1e-3),
        ("mlp", 0.05, {"optimizer": "rmda"}, 0.05),
        ("transformer", 0.6, {}, 1.5e-3 / math.sqrt(0.6)),
        ("cnn", 0.05, {}, 3e-3 / math.sqrt(0.05)),
        ("cnn", 0.05, {"optimizer": "rmda"}, 0.1),
    ],
)
def test_narrow_networks_are_refitted_by_longer_steps(
    name: str, params: float, options: Any, rate: float, rates: list[float]
) -> None:
    """Of the share that was reached; up to it in a tenth of the steps, and down a cosine."""
    result = fitted(name, 10, target=dp.TargetSize(params=params), **options)
    steps, first = round(result.plan.refit_epochs * 8), result.plan.refit_lr
    assert first == pytest.approx(rate, rel=0.03)
    expected = [
        rate / 2 * (1 + math.cos(math.pi * t / steps)) * min(1, (t + 1) / (0.1 * steps))
        for t in range(steps)
    ]
    assert rates[-steps:] == pytest.approx(expected, rel=0.03)


def test_without_a_refit_there_is_no_rate_of_it() -> None:
    assert fitted("mlp", 4, refit=False).plan.refit_lr is None


def test_convolutions_keep_most_of_the_width_of_an_even_cut() -> None:
    """The layer behind them, too: what it reads is what the last convolution writes."""

    def widths(**bounds: Any) -> tuple[float, int, int]:
        result: Any = fitted("cnn", 6, target=dp.TargetSize(params=0.12, **bounds))
        return result.plan.least_width, result.model[4].in_channels, result.model[9].in_features

    share, between, last = widths()
    assert share == pytest.approx(0.7 * math.sqrt(0.12))
    assert between >= math.ceil(share * 12) and last >= math.ceil(share * 16)
    unbound, _, alone = widths(at_most={"*": 1.0})
    assert not unbound and alone < math.ceil(share * 16)


def test_hidden_units_behind_convolutions_are_free() -> None:
    model: Any = network("cnn")
    model.pop(-1)
    model.extend([nn.Linear(16, 400), nn.ReLU(), nn.Linear(400, 3)])
    result: Any = fitted("cnn", 6, model=model, target=dp.TargetSize(params=0.05))
    assert result.plan.least_width == pytest.approx(0.7 * math.sqrt(0.05))
    assert result.model[-3].in_features >= math.ceil(result.plan.least_width * 16)
    assert result.model[-1].in_features < result.plan.least_width * 400


def test_a_frozen_convolution_has_no_width_to_keep() -> None:
    model: Any = network("cnn")
    model[4].weight.requires_grad_(False)  # the one with groups
    assert not fitted("cnn", 4, model=model, target=dp.TargetSize(params=0.8)).plan.least_width


def test_a_size_in_parameters_is_a_share_as_well() -> None:
    count = sum(param.numel() for param in network("cnn").parameters())
    by_number = fitted("cnn", 4, target=dp.TargetSize(params=count // 8))
    assert by_number.plan.least_width == pytest.approx(0.7 * math.sqrt(count // 8 / count))


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("cnn", dp.TargetSize(params=0.5, at_most={"*": 0.9})),
        ("cnn", dp.TargetSize(params=0.5, at_least={"*": 0.0})),
        ("cnn", dp.TargetSize(weighted_group_sparsity=0.5)),
        ("mlp", dp.TargetSize(params=0.5)),
    ],
    ids=str,
)
def test_widths_are_free_where_bounds_are_given_or_nothing_is_known(
    name: str, target: dp.TargetSize
) -> None:
    assert fitted(name, 4, target=target).plan.least_width == 0.0


class Block(nn.Module):
    """Two convolutions beside the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Conv2d(12, 16, 3, padding=1), nn.Conv2d(16, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(self.inner(x).relu())


def test_a_stream_stays_wide_and_branches_beside_it_are_free() -> None:
    torch.manual_seed(0)
    stem, head = nn.Conv2d(1, 12, 3, padding=1), nn.Linear(12, 3)
    model: Any = nn.Sequential(
        stem, Block(), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head
    )  # fmt: skip
    result: Any = fitted("cnn", 6, model=model, target=dp.TargetSize(params=0.1))
    share = 0.1 ** (1 / 3)
    assert result.plan.least_width == pytest.approx(share)
    assert result.plan.refit_lr == pytest.approx(1.5e-3 / share)  # by steps of the stream's width
    assert result.is_reached and result.model[0].out_channels >= math.ceil(share * 12)
    assert all(result.model[k].outer.in_channels < 0.7 * math.sqrt(0.1) * 16 for k in (1, 2))


def test_a_bound_that_forbids_the_size_is_given_up() -> None:
    """Sizes that grow with the width and not with its square: an even cut is no guide."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 64, 3),
        nn.ReLU(),
        nn.Conv2d(64, 3, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    result = fitted("cnn", 4, model=model, target=dp.TargetSize(params=0.05))
    assert result.plan.least_width == 0.0 and result.is_reached
