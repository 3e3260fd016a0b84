"""Torch's own optimizers keep the zeros of a structured point."""

import io
from typing import Any

import pytest
import torch

import dualprox as dp
from contracts import assert_same, grouped, run, small_problem
from coupled_cases import coupled, gradients, parameters

TORCH: dict[str, Any] = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1),
    "AdamW amsgrad": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1, amsgrad=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=0.1),
    "SGD nesterov": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True),
}
every_torch = pytest.mark.parametrize("name", TORCH)


def trained() -> tuple[Any, Any, dp.ProximalOptimizer]:
    """Parameters at a structured point with dead groups, their gradients and the optimizer."""
    params, set_gradients = small_problem()
    opt = dp.RMDA(grouped(params, strength=0.5), lr=0.1)
    run(opt, set_gradients, range(30))
    opt.finalize_()
    assert not params[0].any(dim=0).all() and params[0].any()
    return params, set_gradients, opt


def schedules(opt: torch.optim.Optimizer, steps: int) -> list[Any]:
    return [
        torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps),
        torch.optim.lr_scheduler.OneCycleLR(opt, 0.1, total_steps=steps),
    ]


@every_torch
@pytest.mark.parametrize("kind", [0, 1])
def test_zeros_stay_under_torch_optimizers(name, kind):
    params, set_gradients, opt = trained()
    support = dp.FrozenSupport.of(opt)
    other = TORCH[name](params)
    run(other, set_gradients, range(30, 35))  # momentum in dead entries
    assert params[0].all()
    support.hold(other)
    scheduler = schedules(other, 20)[kind]
    for step in range(35, 54):
        run(other, set_gradients, range(step, step + 1))
        scheduler.step()
        for label, mask in support.dead.items():
            index = {"0.0": 0, "0.1": 2}[label]
            assert torch.equal(params[index] == 0, mask)
    assert support.dead.keys() == {"0.0", "0.1"}


@every_torch
def test_without_gradient_zeros_stay_by_themselves(name):
    """What clips afterwards sees the gradient along the support alone."""
    params, set_gradients, opt = trained()
    support = dp.FrozenSupport.of(opt)
    other = TORCH[name](params)
    for step in range(30, 45):
        set_gradients(step)
        before = [param.grad.clone() for param in params]
        support.project_gradients_()
        for label, mask in support.dead.items():
            index = {"0.0": 0, "0.1": 2}[label]
            assert torch.equal(params[index].grad, before[index].masked_fill(mask, 0.0))
        assert torch.equal(params[1].grad, before[1])
        other.step()
    for label, mask in support.dead.items():
        assert torch.equal(params[{"0.0": 0, "0.1": 2}[label]] == 0, mask)
    other.zero_grad()
    support.project_gradients_()
    assert all(param.grad is None for param in params)


@every_torch
def test_live_weights_move_as_if_nothing_were_held(name):
    params, set_gradients, opt = trained()
    support = dp.FrozenSupport.of(opt)
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    held, free = TORCH[name](params), TORCH[name](others)
    handle = support.hold(held)
    for step in range(30, 40):
        set_gradients(step)
        for p, q in zip(params, others, strict=True):
            q.grad = p.grad
        held.step()
        free.step()
    for label, mask in support.dead.items():
        index = {"0.0": 0, "0.1": 2}[label]
        assert torch.equal(params[index][~mask], others[index][~mask])
    handle.remove()
    run(held, set_gradients, range(40, 41))
    assert params[0].all()


def test_the_masks_of_a_coupled_group_are_the_slices_of_dead_groups():
    params = parameters()
    set_gradients = gradients(params)
    penalty = coupled("GroupMCP", strength=1.5)
    opt = dp.ProxSGD([{"params": params, "penalty": penalty}], lr=0.1)
    run(opt, set_gradients, range(40))
    live = penalty.structure(penalty.coupling.joint([p.detach() for p in params])).live  # pyright: ignore
    assert live.any() and not live.all()
    before = dp.FrozenSupport.of(opt).dead
    dead = {group for group, lives in enumerate(live.tolist()) if not lives}
    for member, mask in zip(penalty.coupling.members, before.values(), strict=True):
        view = member.slices.view(mask)
        sums = member.slices.amax(view.to(torch.uint8)).flatten().tolist()
        assert sums == [int(group in dead) for group in member.groups]
    opt.freeze_structure_()
    assert_same([*before.values()], [*dp.FrozenSupport.of(opt).dead.values()])


def test_masks_are_saved_and_loaded_in_place():
    params, set_gradients, opt = trained()
    support = dp.FrozenSupport.of(opt)
    buffer = io.BytesIO()
    torch.save(support.state_dict(), buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    twin = dp.FrozenSupport(
        {"0.0": params[0], "0.1": params[2]},
        {
            "0.0": torch.zeros(5, 6, dtype=torch.bool),
            "0.1": torch.zeros(3, 4, 2, 2, dtype=torch.bool),
        },
    )
    other = torch.optim.SGD(params, lr=0.1)
    twin.hold(other)
    run(other, set_gradients, range(30, 31))
    assert params[0].all()
    twin.load_state_dict(saved)
    run(other, set_gradients, range(31, 32))
    assert torch.equal(params[0] == 0, saved["0.0"])
    with pytest.raises(ValueError, match=r"masks must be those of 0\.0, 0\.1, got 0\.0"):
        twin.load_state_dict({"0.0": saved["0.0"]})
    with pytest.raises(ValueError, match=r"the mask of 0\.0 must be bool of shape \(5, 6\), got"):
        twin.load_state_dict({**saved, "0.0": saved["0.0"].float()})


def test_what_cannot_be_held_is_refused():
    _, _, opt = trained()
    stranger = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    with pytest.raises(ValueError, match=r"optimizer must step one of 0\.0, 0\.1, this SGD"):
        dp.FrozenSupport.of(opt).hold(stranger)
    with pytest.raises(ValueError, match="dead must name parameters, got 'w'"):
        dp.FrozenSupport({}, {"w": torch.ones(2, dtype=torch.bool)})


def test_ranks_constraints_and_free_weights_have_no_masks():
    params = [torch.nn.Parameter(torch.ones(2, 2)) for _ in range(4)]
    penalties = (dp.NuclearNorm(1.0), dp.Box(0.0, 1.0), None, dp.L1(1.0))
    groups = [{"params": [p], "penalty": q} for p, q in zip(params, penalties, strict=True)]
    assert dp.FrozenSupport.of(dp.RMDA(groups)).dead.keys() == {"3.0"}
