"""From the last restart on a structure is held by a convex penalty, and stays what it is."""

import io
from typing import Any

import numpy as np
import pytest
import torch

import dualprox as dp
from contracts import MEMBERS, OPTIMIZERS, assert_same, coupling_of, run
from coupled_cases import gradients, parameters
from fitting_cases import batches, groups_of, network, train

FLAT = {
    "l0": dp.GroupL0(1.0),
    "half": dp.GroupHalf(1.0),
    "mcp": dp.GroupMCP(1.0),
    "scad": dp.GroupSCAD(1.0),
}
HOLD_FROM = 40


def held(
    penalty: dp.Penalty, steps: int = HOLD_FROM, name: str = "mlp", hold_from: int = HOLD_FROM
) -> tuple[Any, Any, Any, Any]:
    """A network after some steps of control, the last of them that from which it is held."""
    model, data = network(name), batches(name)
    opt = dp.RAMDA(groups_of(model, data, penalty), lr=0.01)
    control = dp.SizeControl(
        opt, model, dp.TargetSize(params=0.4), data[0][0],
        ramp_steps=30, hold_from=hold_from, every=5,
    )  # fmt: skip
    train(model, opt, control, data, steps)
    return model, opt, control, data


def live(opt: Any) -> list[torch.Tensor]:
    return [~dead for dead in dp.FrozenSupport.of(opt).dead.values()]


@pytest.mark.parametrize(
    ("name", "net"), [*((name, "mlp") for name in FLAT), ("l0", "transformer"), ("l0", "cnn")]
)
def test_what_was_found_stays_without_shrinking(name: str, net: str) -> None:
    # A dead group whose gradient still grows comes back: the convolutions need longer to settle.
    steps = 60 if net == "cnn" else HOLD_FROM
    model, opt, control, data = held(FLAT[name], steps, net, steps)
    assert control.is_held
    found, size = live(opt), control.size()
    opt.finalize_()
    opt.restart()
    assert_same(live(opt), found)
    for _ in range(30):
        train(model, opt, control, data, 10)
        assert_same(live(opt), found)
        assert control.size() == size
    assert all(group["penalty"].is_convex for group in opt.param_groups if group["penalty"])
    assert control.land() == size
    for group in opt.param_groups:
        if group["penalty"] is None:
            continue
        weights = torch.tensor(group["penalty"].coupling.weights)
        assert set(weights.tolist()) <= {0.0, 1.0}
        unit = next(unit for unit in opt.units() if unit.group is group)
        joint = unit.point([opt.gradient_estimate(p) for p in unit.params])
        norms = group["penalty"].coupling.norm(joint)[: len(weights)]
        bound = group["penalty"].penalty.group_strength(joint)[: len(weights)]
        # Nondegenerate: the dead want to live less than they are charged.
        assert bool((norms[weights == 1] < bound[weights == 1]).all())


def test_without_it_a_flat_penalty_loses_everything() -> None:
    """Why it is held: at constant strength the number of groups drives all out in the end."""
    model, opt, control, data = held(FLAT["l0"], HOLD_FROM - 1)
    control.hold_from = 10**9
    control.every = 10**9
    opt.restart()
    before = sum(int(alive.sum()) for alive in live(opt))
    train(model, opt, control, data, 1500)
    assert sum(int(alive.sum()) for alive in live(opt)) < before / 2


def test_a_convex_penalty_and_a_shared_param_group_stay() -> None:
    _, opt, control, _ = held(dp.GroupLasso(1.0))
    assert not control.is_held
    kinds = {type(group["penalty"]) for group in opt.param_groups if group["penalty"]}
    assert kinds == {dp.GroupLasso}
    model, data = network("mlp"), batches("mlp")
    opt = dp.RAMDA(dp.param_groups(model, dp.GroupL0(1.0)), lr=0.01)
    control = dp.SizeControl(
        opt, model, dp.TargetSize(params=0.6), data[0][0], ramp_steps=5, hold_from=10, every=5
    )
    train(model, opt, control, data, 10)
    assert not control.is_held
    assert isinstance(opt.param_groups[0]["penalty"], dp.GroupL0)


def test_a_revived_group_dies_again_when_the_size_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dualprox.fitting.hold._SAFETY", 1e-9)  # so weak that the dead come back
    _, opt, control, _ = held(FLAT["l0"])
    revived = live(opt)
    assert control.history[-1].size <= 0.4 < control.size()
    assert control.land() <= 0.4
    assert control.size() == pytest.approx(control.history[-2].size, rel=1e-6)
    now = live(opt)
    assert sum(int(own.sum()) for own in now) < sum(int(own.sum()) for own in revived)


def test_the_size_is_met_at_the_moment_of_holding() -> None:
    """Left alone since the last look, the strength fits the sums of then, and not of now."""
    model, data = network("mlp"), batches("mlp")
    opt = dp.RAMDA(groups_of(model, data, FLAT["l0"]), lr=0.01)
    control = dp.SizeControl(
        opt, model, dp.TargetSize(params=0.4), data[0][0],
        ramp_steps=5, steer_until=10, hold_from=200, every=5,
    )  # fmt: skip
    train(model, opt, control, data, 199)
    looks = [record.step for record in control.history]
    drifted = control.size()
    train(model, opt, control, data, 1)
    assert looks == [5, 10] and drifted < 0.36
    assert control.history[-1].step == 200 and 0.36 < control.size() <= 0.4
    with pytest.raises(ValueError, match=r"steer_until must be an int from 1 to hold_from = 5"):
        dp.SizeControl(
            opt, model, dp.TargetSize(params=0.4), data[0][0],
            ramp_steps=5, steer_until=6, hold_from=5,
        )  # fmt: skip


def test_a_group_of_weight_zero_is_a_group() -> None:
    """It costs nothing; but if it is zero, a frozen structure holds it, and it counts."""
    coupling = dp.Coupling(coupling_of(MEMBERS).members, weights=(0.0, 1.0, 1.0, 1.0))
    penalty = dp.Coupled(dp.GroupLasso(0.3), coupling)
    w = torch.zeros(coupling.numel())
    owner = torch.cat([own.flatten() for own in owners()])
    live = penalty.live_entries(w)
    assert live is not None and torch.equal(live, owner < 0)
    assert len(penalty.penalized_entries(w)) == int((owner >= 0).sum())


def test_a_checkpoint_of_a_held_structure_continues() -> None:
    model, opt, control, data = held(FLAT["l0"])
    opt.restart()
    train(model, opt, control, data, 3)
    file = io.BytesIO()
    torch.save(
        {"model": model.state_dict(), "opt": opt.state_dict(), "control": control.state_dict()},
        file,
    )
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    twin, twin_opt, twin_control, _ = held(FLAT["l0"], 0)
    twin.load_state_dict(saved["model"])
    twin_control.load_state_dict(saved["control"])
    twin_opt.load_state_dict(saved["opt"])
    assert twin_control.is_held and twin_control.size() == control.size()
    train(model, opt, control, data, 5)
    train(twin, twin_opt, twin_control, data, 5)
    assert_same([*model.parameters()], [*twin.parameters()])
    assert twin_control.land() == control.land()


@pytest.mark.parametrize("maker", OPTIMIZERS, ids=str)
def test_weights_are_factors_on_the_strengths_of_groups(maker: Any) -> None:
    """Against one optimizer for each group, whose strength carries the weight.

    The gradients are separable, so that groups do not see each other.
    """
    weights = (0.0, 2.5, 0.3, 1.0)
    coupling = dp.Coupling(coupling_of(MEMBERS).members, weights=weights)
    params = parameters(MEMBERS)
    opt = maker([{"params": params, "penalty": dp.Coupled(dp.GroupLasso(0.3), coupling)}])
    ours = torch.cat([p.flatten() for p in run(opt, gradients(params), range(25))])
    places = torch.cat([p.flatten() for p in owners()])
    for number, weight in enumerate(weights):
        others = parameters(MEMBERS)
        plain = coupling_of(MEMBERS)
        alone = maker(
            [{"params": others, "penalty": dp.Coupled(dp.GroupLasso(0.3 * weight), plain)}]
        )
        theirs = torch.cat([p.flatten() for p in run(alone, gradients(others), range(25))])
        np.testing.assert_allclose(
            ours[places == number].detach(), theirs[places == number].detach(), rtol=1e-12
        )


def owners() -> list[torch.Tensor]:
    """The group of each entry of each tensor of MEMBERS, -1 for none, slice by slice."""
    found = []
    for shape, axis, block, conv_groups, groups in MEMBERS:
        owner = torch.empty(shape)
        assert conv_groups == 1 or axis == 1
        for number, group in enumerate(groups):
            part, place = divmod(number, len(groups) // conv_groups)
            index: list[Any] = [slice(None)] * len(shape)
            if conv_groups > 1:
                rows = shape[0] // conv_groups
                index[0] = slice(part * rows, (part + 1) * rows)
            index[axis] = slice(place * block, (place + 1) * block)
            owner[tuple(index)] = group
        found.append(owner)
    return found
