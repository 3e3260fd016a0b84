"""No subnormal number is kept: neither in parameters nor in the state."""

import math

import pytest
import torch

import dualprox as dp
from contracts import OPTIMIZERS, Maker
from dualprox.kernels import native
from dualprox.optim.rounding import flush_

every = pytest.mark.parametrize("maker", OPTIMIZERS, ids=str)
IMPLS = ("eager", "native") if native.why_unavailable() is None else ("eager",)


def subnormals(tensor: torch.Tensor) -> int:
    numbers = torch.finfo(tensor.dtype)
    return int(((tensor != 0) & (tensor.abs() < numbers.tiny)).sum())


def kept(opt: dp.ProximalOptimizer) -> list[torch.Tensor]:
    params = [p.detach() for group in opt.param_groups for p in group["params"]]
    return [*params, *(t for state in opt.state.values() for t in state.values() if t.dim())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bundled", [False, True])
def test_only_subnormal_numbers_become_zero(dtype, bundled):
    from dualprox.optim.bundle import as_tensor

    numbers = torch.finfo(dtype)
    largest, least = numbers.tiny * (1 - numbers.eps), numbers.tiny * numbers.eps
    values = [largest, -largest, least, 0.0, numbers.tiny, -numbers.tiny, numbers.max, 1.0]
    tensor = torch.tensor([*values, math.inf, -math.inf, math.nan], dtype=dtype)
    other = tensor.clone()
    flush_(as_tensor([tensor, other] if bundled else [tensor]))
    assert tensor[:4].eq(0).all()
    assert tensor[4:-1].tolist() == [*values[4:], math.inf, -math.inf] and tensor[-1].isnan()


@pytest.mark.promise(
    "numbers", "a dead layer leaves no subnormal number in parameters or state", "steps"
)
@every
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_dead_layer_leaves_no_subnormal_numbers(maker: Maker, impl, dtype, tries):
    """Gradients die out, and so do averages; the structured point dies, and the iterate decays."""
    generator = torch.Generator().manual_seed(0)
    weights = [
        torch.nn.Parameter(torch.randn(6, 5, generator=generator).to(dtype)) for _ in range(2)
    ]
    settings = {"betas": (0.5, 0.6)} if maker.make is dp.ProxAdamW else {"momentum": 0.7}
    groups = [
        {"params": weights[:1], "penalty": dp.GroupLasso(2.0)},
        {"params": weights[1:], "lr": 1e-3},
    ]
    opt = maker(groups, impl=impl, **settings)
    seen = 0
    for step in range(500):
        for weight in weights:
            shrinking = 10.0 ** -(step % 250)  # through all of float32's range, and on
            weight.grad = torch.full_like(weight, shrinking)
        opt.step()
        seen += sum(subnormals(tensor) for tensor in kept(opt))
        if step == 249:
            opt.restart()
    tries.add(500)
    assert seen == 0
    assert opt.structured_point(weights[0]).eq(0).all()
    assert weights[0].eq(0).all(), "decayed through the subnormal numbers to zero"


@every
def test_float64_and_float16_keep_to_their_own_ranges(maker: Maker):
    settings = {"betas": (0.01, 0.02)} if maker.make is dp.ProxAdamW else {"momentum": 0.01}
    wide = torch.nn.Parameter(torch.full((3, 4), 1e-300, dtype=torch.float64))
    narrow = torch.nn.Parameter(torch.full((3, 4), 1e-6, dtype=torch.float16))
    opt = maker([{"params": [wide, narrow]}], impl="eager", **settings)
    assert subnormals(narrow) == 12
    for _ in range(200):
        for weight in (wide, narrow):
            weight.grad = torch.zeros_like(weight)
        opt.step()
    # A float16 weight of 1e-6 is a weight; computations widen it, so it slows nothing down.
    assert subnormals(narrow) == 12 and wide.eq(1e-300).all()
    assert sum(subnormals(t) for t in kept(opt) if t.dtype != torch.float16) == 0


@every
@pytest.mark.parametrize("impl", IMPLS)
def test_the_structured_point_does_not_see_what_was_flushed(maker: Maker, impl):
    """Weights of 1e-39 under gradients of order one: as if they had been zero."""
    points = []
    for start in (0.0, 1e-39):
        weight = torch.nn.Parameter(torch.full((3, 4), start))
        opt = maker([{"params": [weight], "penalty": dp.GroupLasso(0.1)}], impl=impl)
        for step in range(5):
            generator = torch.Generator().manual_seed(step)
            weight.grad = torch.randn(3, 4, generator=generator)
            opt.step()
        points.append(opt.structured_point(weight))
    assert torch.equal(*points)
