"""What a target counts as zeros is zero in the end: single entries, and groups that cannot go."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dualprox as dp
from fitting_cases import batches, fitted, groups_of, network, train

WEIGHTS = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """What entries are charged for: the weights of layers, attention's joint one too."""
    return {
        f"{path}.{name}": param
        for path, module in model.named_modules()
        if isinstance(module, WEIGHTS)
        for name, param in module.named_parameters(recurse=False)
        if name.endswith("weight")
    }


def left(model: nn.Module) -> int:
    """Parameters less the zeros in weights of layers."""
    zeros = sum(int((param == 0).sum()) for param in weights(model).values())
    return sum(param.numel() for param in model.parameters()) - zeros


@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer"])
@pytest.mark.parametrize("wanted", [0.6, 0.25])
def test_as_many_entries_are_left_as_asked_for(name: str, wanted: float) -> None:
    dense = left(network(name))
    result = fitted(name, 8, dp.TargetSize(nonzeros=wanted))
    assert result.plan.penalty == "L0(strength=1.0)" and result.plan.hold_epochs == 0
    assert result.is_reached and result.reached == left(result.model) / dense
    assert result.reached == pytest.approx(wanted, rel=0.03) == result.history[-1]["size"]
    assert result.model(batches(name)[0][0]).isfinite().all()


def test_adamw_refits_a_network_that_is_as_narrow_as_it_has_nonzeros() -> None:
    result = fitted("cnn", 8, dp.TargetSize(nonzeros=0.25))
    slim = sum(param.numel() for param in result.model.parameters())
    assert slim > 1.2 * left(result.model)
    assert result.plan.refit_lr == pytest.approx(3e-3 / math.sqrt(result.reached))


@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize("more", [{"optimizer": "rmda"}, {"penalty": dp.L1(2.0)}], ids=str)
def test_a_number_of_them_too(more: dict[str, Any], refit: bool) -> None:
    result = fitted(target=dp.TargetSize(nonzeros=400), epochs=8, refit=refit, **more)
    assert result.is_reached and result.reached == left(result.model) <= 412
    assert (result.history[-1]["stage"] == "refit") is refit


@pytest.mark.parametrize("penalty", [dp.L0(1.0), dp.L1(1.0), dp.MCP(1.0)], ids=str)
@pytest.mark.parametrize("refit_optimizer", ["sgd", "adamw"])
def test_zeros_stay_zero_while_the_refit_trains_the_others(
    penalty: dp.Penalty, refit_optimizer: Any
) -> None:
    seen: list[dict[str, Tensor]] = []

    def watch(row: Any) -> None:
        if row.stage == "refit":
            seen.append({name: param.clone() for name, param in weights(row.model).items()})

    target = dp.TargetSize(weighted_group_sparsity=0.7)
    result = fitted(
        "cnn", 8, target, penalty=penalty, watch=watch, refit_optimizer=refit_optimizer,
        refit_lr=0.01,
    )  # fmt: skip
    assert result.is_reached and len(seen) == 5  # the first right after the cut
    first, last = seen[0], seen[-1]
    assert all(torch.equal(first[name] == 0, last[name] == 0) for name in first)
    assert sum(int((param == 0).sum()) for param in last.values()) > 50
    assert all(bool((first[name] != last[name]).any()) for name in first)


def test_dead_groups_that_cannot_go_stay_dead() -> None:
    """The eight inputs of the network stay, and so do the weights that read dead ones."""
    model, data = network("mlp"), batches("mlp")
    groups = dp.param_groups(model, dp.GroupLasso(1.0), include=["0"])
    target = dp.TargetSize(weighted_group_sparsity=0.5)
    result = fitted(model=model, loader=data, penalty=groups, epochs=8, target=target)
    first: Any = result.model.get_submodule("0")
    assert first.in_features == 8 and result.reached >= 0.5
    assert int((first.weight != 0).any(0).sum()) == round(8 * (1 - result.reached))
    # Whose size is counted in parameters may use what it has.
    used = fitted(loader=data, penalty=dp.SparseGroupLasso(1.0), target=dp.TargetSize(params=0.6))
    assert all(bool((param != 0).all()) for param in weights(used.model).values())


def test_entries_that_lead_nowhere_make_room_for_others() -> None:
    """Biases count, and go with their channels: of 0.06, 75 of 1,771, that is most."""
    result = fitted(target=dp.TargetSize(nonzeros=0.06), epochs=8)
    dense = left(network("mlp"))
    sizes = [m.out_features for m in result.model.modules() if isinstance(m, nn.Linear)]
    assert sizes[:2] < [40, 32] and result.reached == left(result.model) / dense
    assert 0.05 < result.reached <= 0.0618


def test_the_control_lands_on_what_is_left_after_the_cut() -> None:
    model, data = network("mlp"), batches("mlp")
    opt = dp.RAMDA(dp.param_groups(model, dp.L0(1.0)), lr=2e-3)
    control = dp.SizeControl(
        opt, model, dp.TargetSize(nonzeros=0.1), data[0][0], ramp_steps=30, hold_from=40, every=5
    )
    train(model, opt, control, data, 40)
    control.land()
    assert left(control.cut()) / left(model) == pytest.approx(0.1, rel=0.03)
    records = control.history
    assert [r.goal for r in records[:3]] == sorted((r.goal for r in records[:3]), reverse=True)


def test_groups_are_none_of_entries() -> None:
    target = dp.TargetSize(nonzeros=0.2)
    for penalty in (dp.GroupL0(1.0), dp.NuclearNorm(1.0)):
        with pytest.raises(TypeError, match=r"nonzeros needs penalties on entries, as L0 is, got"):
            fitted(target=target, penalty=penalty)
    with pytest.raises(ValueError, match=r"nonzeros=0.001 cannot be reached"):
        fitted(target=dp.TargetSize(nonzeros=0.001))
    model, data = network("mlp"), batches("mlp")
    with pytest.raises(TypeError, match=r"needs penalties on entries, as L0 is, got GroupLasso"):
        fitted(model=model, target=target, penalty=groups_of(model, data))
