"""Which penalties and parameters the control steers, and which it refuses."""

from typing import Any

import pytest
import torch
from torch import nn

import dualprox as dp
from fitting_cases import batches, groups_of, network, share, shrunk, train


def one_by_one(model: nn.Module, penalty: dp.Penalty) -> Any:
    """Every penalized weight in a param group of its own."""
    return [
        {**group, "params": [pair]}
        for group in dp.param_groups(model, penalty)
        for pair in group["params"]
    ]


@pytest.mark.slow
@pytest.mark.parametrize("grouped", [True, False])
def test_the_size_of_low_rank_is_that_after_factorizing(grouped: bool) -> None:
    for name in ("mlp", "cnn"):
        model, data = network(name), batches(name)
        groups = dp.param_groups(model, dp.NuclearNorm(1.0))
        opt = dp.RMDA(groups if grouped else one_by_one(model, dp.NuclearNorm(1.0)), lr=0.1)
        target = dp.TargetSize(params=0.5)
        control = dp.SizeControl(
            opt, model, target, data[0][0], ramp_steps=10, hold_from=30, every=5
        )
        train(model, opt, control, data, 30)
        with opt.structured():
            thin = dp.factorize(model)
        found = share(model, thin, data, "params")
        assert found <= control.size() <= 0.5
        if name == "mlp":
            assert found == pytest.approx(control.size(), rel=1e-12)


def test_only_layers_that_can_be_factorized_count_as_thinner() -> None:
    model, data = network("transformer"), batches("transformer")
    opt = dp.RMDA(one_by_one(model, dp.NuclearNorm(1.0)), lr=0.1)
    target = dp.TargetSize(params=0.6)
    control = dp.SizeControl(opt, model, target, data[0][0], ramp_steps=5, hold_from=10, every=5)
    train(model, opt, control, data, 10)
    with opt.structured():
        found = share(model, dp.factorize(model), data, "params")
    assert found == pytest.approx(control.size(), rel=1e-12)


def test_weights_that_share_a_param_group_share_a_strength() -> None:
    model, data = network("mlp"), batches("mlp")
    opt = dp.RAMDA(dp.param_groups(model, dp.GroupLasso(1.0), exclude=["0"]), lr=5e-3)
    control = dp.SizeControl(
        opt, model, dp.TargetSize(params=0.4), data[0][0], ramp_steps=10, hold_from=30, every=5
    )
    train(model, opt, control, data, 30)
    assert len({id(level.unit.group) for level in control.levels}) == 1 < len(control.levels)
    assert share(model, shrunk(model, opt, data), data, "params") == pytest.approx(control.size())
    bound = dp.TargetSize(params=0.4, at_least={"2.weight": 0.5})
    with pytest.raises(ValueError, match="in a param group of its own"):
        dp.SizeControl(opt, model, bound, data[0][0], ramp_steps=10, hold_from=30)


def test_strengths_keep_their_ratios_without_balance() -> None:
    model, data = network("mlp"), batches("mlp")
    penalties = {"2.*": dp.GroupLasso(3.0), "4.*": dp.GroupLasso(1.0)}
    opt = dp.RAMDA(groups_of(model, data, penalties), lr=5e-3)
    control = dp.SizeControl(
        opt, model, dp.TargetSize(params=0.4), data[0][0], ramp_steps=10, hold_from=20, every=5,
        balance=False,
    )  # fmt: skip
    train(model, opt, control, data, 20)
    named = {control.names[i][0]: level.unit.group["penalty"].own_strength()
             for i, level in enumerate(control.levels)}  # fmt: skip
    assert named["2.weight"] == pytest.approx(3 * named["4.weight"])


def test_frozen_weights_are_let_be() -> None:
    model, data = network("mlp"), batches("mlp")
    model.get_parameter("2.weight").requires_grad_(False)
    opt = dp.RAMDA(groups_of(model, data), lr=5e-3)
    control = dp.SizeControl(
        opt, model, dp.TargetSize(params=0.8), data[0][0], ramp_steps=5, hold_from=10, every=5
    )
    train(model, opt, control, data, 10)
    assert share(model, shrunk(model, opt, data), data, "params") == pytest.approx(control.size())
    assert control.names == [["4.weight"]]


def test_the_network_and_random_numbers_are_left_alone() -> None:
    model, data = network("cnn"), batches("cnn")
    opt = dp.RAMDA(groups_of(model, data), lr=5e-3)
    control = dp.SizeControl(
        opt, model, dp.TargetSize(macs=0.4), data[0][0], ramp_steps=5, hold_from=50, every=100
    )
    train(model, opt, control, data, 5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    control.land()
    control.size()
    assert torch.equal(torch.get_rng_state(), random) and model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_penalties_without_a_size_are_refused() -> None:
    model, data = network("mlp"), batches("mlp")
    example, more = data[0][0], dict[str, Any]({"ramp_steps": 5, "hold_from": 10, "every": 5})
    entries = dp.RMDA(dp.param_groups(model, dp.L1(1e-3)), lr=0.1)
    with pytest.raises(TypeError, match=r"params needs .*groups.*got L1.*0\.weight"):
        dp.SizeControl(entries, model, dp.TargetSize(params=0.5), example, **more)
    control = dp.SizeControl(
        entries, model, dp.TargetSize(weighted_group_sparsity=0.8), example, **more
    )
    train(model, entries, control, data, 10)
    found = dp.structure(entries).unstructured_sparsity
    assert found is not None and 0.8 <= found < 0.82
    ranks = dp.RMDA(dp.param_groups(model, dp.NuclearNorm(1.0)), lr=0.1)
    with pytest.raises(TypeError, match=r"weighted_group_sparsity needs .*got NuclearNorm"):
        dp.SizeControl(ranks, model, dp.TargetSize(weighted_group_sparsity=0.5), example, **more)


def test_refusals_say_what_is_wrong() -> None:
    model, data = network("mlp"), batches("mlp")
    example, target = data[0][0], dp.TargetSize(params=0.5)
    groups, fine = groups_of(model, data), dict[str, Any](ramp_steps=5, hold_from=10)
    opt = dp.RMDA(groups, lr=0.1)
    with pytest.raises(TypeError, match=r"RMDA or RAMDA.*got ProxSGD"):
        dp.SizeControl(dp.ProxSGD(groups, lr=0.1), model, target, example, **fine)  # pyright: ignore
    for name in ("ramp_steps", "hold_from", "every"):
        for value in (0, -1, 1.5, True):
            with pytest.raises(ValueError, match=f"{name} must be an int >= 1, got"):
                dp.SizeControl(opt, model, target, example, **{**fine, name: value})
    with pytest.raises(ValueError, match=r"matches no parameter with groups; there are 2\.weight"):
        wrong = dp.TargetSize(params=0.5, at_least={"7.*": 0.5})
        dp.SizeControl(opt, model, wrong, example, **fine)
    with pytest.raises(ValueError, match=r"at_least 0\.6 must be <= at_most 0\.5"):
        wrong = dp.TargetSize(params=0.5, at_least={"2.*": 0.6}, at_most={"*": 0.5})
        dp.SizeControl(opt, model, wrong, example, **fine)
    zero = dp.RMDA(groups_of(model, data, dp.GroupLasso(0.0)), lr=0.1)
    with pytest.raises(ValueError, match="strengths must be > 0"):
        dp.SizeControl(zero, model, target, example, **fine)
    held = dp.RMDA(dp.param_groups(model, dp.RankAtMost(2)), lr=0.1)
    with pytest.raises(ValueError, match="whose penalty has a strength"):
        dp.SizeControl(held, model, target, example, **fine)
    with pytest.raises(ValueError, match="opt has a parameter that is none of the model's"):
        dp.SizeControl(opt, network("mlp"), target, example, **fine)


def test_the_target_of_a_count_is_its_share() -> None:
    for count, expected in ((400, 400 / 1771), (10_000, 1.0)):
        model, data = network("mlp"), batches("mlp")
        assert sum(param.numel() for param in model.parameters()) == 1771
        opt = dp.RMDA(groups_of(model, data), lr=0.1)
        target = dp.TargetSize(params=count)
        control = dp.SizeControl(opt, model, target, data[0][0], ramp_steps=5, hold_from=10)
        assert control.goal == pytest.approx(expected)
