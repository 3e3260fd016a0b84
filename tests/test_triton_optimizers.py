"""Optimizers with impl="triton": on a GPU, or on the CPU under TRITON_INTERPRET=1."""

import copy

import pytest
import torch

import dualprox as dp
from dualprox.kernels.triton_steps import unavailable

_WHY_NOT = unavailable()
pytestmark = [
    pytest.mark.skipif(_WHY_NOT is not None, reason=_WHY_NOT or "available"),
    # The interpreter is numpy, which warns of the 0/0 in lanes that are masked out.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MAKERS = {"rmda": dp.RMDA, "ramda": dp.RAMDA, "prox_sgd": dp.ProxSGD, "prox_adamw": dp.ProxAdamW}
makers = pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)


def problem() -> tuple[torch.nn.Sequential, list[dict]]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(9, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    return model.to(DEVICE), list(dp.param_groups(model, dp.GroupLasso(0.02)))


def train(model, opt, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        opt.zero_grad()
        model(torch.randn(8, 9, generator=generator).to(DEVICE)).square().mean().backward()
        opt.step()


def assert_close(model, other):
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@makers
@pytest.mark.parametrize("capturable", [False, True])
def test_a_run_follows_the_eager_one_over_a_restart(maker, capturable):
    runs = []
    for options in ({"impl": "eager"}, {"impl": "triton", "capturable": capturable}):
        model, groups = problem()
        opt = maker(groups, lr=0.05, **options)
        train(model, opt, 3, seed=1)
        opt.restart()
        for group in opt.param_groups:
            group["lr"] = 0.02
        train(model, opt, 3, seed=2)
        runs.append((model, opt))
    assert_close(runs[0][0], runs[1][0])
    with runs[0][1].structured(), runs[1][1].structured():
        assert_close(runs[0][0], runs[1][0])
        assert str(dp.structure(runs[0][1])) == str(dp.structure(runs[1][1]))


@makers
@pytest.mark.parametrize("capturable", [False, True])
def test_save_load_continue_is_bitwise_equal(maker, capturable):
    model, groups = problem()
    opt = maker(groups, lr=0.05, impl="triton", capturable=capturable)
    train(model, opt, 2, seed=1)
    twin, groups = problem()
    twin.load_state_dict(model.state_dict())
    other = maker(groups, lr=0.05, impl="triton", capturable=capturable)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    for state in other.state.values():
        assert state["step"].device.type == (DEVICE if capturable else "cpu")
    train(model, opt, 2, seed=2)
    train(twin, other, 2, seed=2)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_tensor_lr_of_zero_on_the_device_is_a_no_op():
    model, groups = problem()
    lr = torch.tensor(0.0, device=DEVICE)
    opt = dp.RAMDA(groups, lr=lr, impl="triton", capturable=True)
    before = [p.detach().clone() for p in model.parameters()]
    train(model, opt, 1, seed=1)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert all(state["step"] == 0 for state in opt.state.values())
    lr.fill_(0.05)
    train(model, opt, 1, seed=1)
    assert all(state["step"] == 1 for state in opt.state.values())


def test_what_triton_cannot_step_is_refused_before_anything_moves():
    model, groups = problem()
    free = torch.nn.Parameter(torch.ones(2, 2, device=DEVICE, dtype=torch.float64))
    before = [p.detach().clone() for p in model.parameters()]
    opt = dp.RMDA([*groups, {"params": [("free", free)]}], lr=0.05, impl="triton")
    free.grad = torch.ones_like(free)
    model(torch.ones(1, 9, device=DEVICE)).sum().backward()
    with pytest.raises(RuntimeError, match=r"impl='triton' cannot step parameter .*float64"):
        opt.step()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
