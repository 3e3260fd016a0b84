"""Parameters in half precision: the iterate that they round is kept, beside float64."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch

import dualprox as dp
from contracts import OPTIMIZERS, Maker, assert_same, snapshot
from dualprox.kernels import native
from oracles import algorithms
from oracles.cases import oracle

every = pytest.mark.parametrize("maker", OPTIMIZERS, ids=str)
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
IMPLS = ("eager", "native") if native.why_unavailable() is None else ("eager",)
SHAPE = (6, 5)
# Slow enough that half precision alone would round every step away.
SETTINGS: dict[str, dict[str, Any]] = {
    "RMDA": {"lr": 0.02, "momentum": 0.995},
    "RAMDA": {"lr": 0.005, "momentum": 0.995},
    "ProxSGD": {"lr": 0.001, "momentum": 0.9},
    "ProxAdamW": {"lr": 0.0002},
}


def transcription(method: str, start: np.ndarray) -> Any:
    psi = oracle("GroupLasso", strength=0.05, axis=1)
    own = SETTINGS[method]
    if method == "RMDA":
        return algorithms.RMDA(start, psi, own["lr"], 1 - own["momentum"])
    if method == "RAMDA":
        return algorithms.RAMDA(start, psi, own["lr"], 1 - own["momentum"], 1e-6)
    if method == "ProxSGD":
        return algorithms.ProxSGD(start, psi, own["lr"], own["momentum"])
    return algorithms.ProxAdamW(start, psi, own["lr"], (0.9, 0.999), 1e-8)


@pytest.mark.promise(
    "numbers",
    "parameters in bfloat16 and float16 are the rounding of an iterate that follows float64",
    "steps",
)
@HALVES
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("method", SETTINGS)
def test_half_precision_rounds_the_iterate_of_float64(method, impl, dtype, tries):
    if impl == "native" and dtype == torch.float16:
        pytest.skip("native kernels step float32 and bfloat16")
    rng = np.random.default_rng(0)
    start = torch.tensor(0.5 + rng.random(SHAPE)).to(dtype)
    target = np.where(np.arange(5) < 2, 0.0, 1.0 + rng.random(SHAPE))
    weight = torch.nn.Parameter(start.clone())
    group = {"params": [weight], "penalty": dp.GroupLasso(0.05)}
    ours = getattr(dp, method)([group], impl=impl, **SETTINGS[method])
    theirs = transcription(method, start.double().numpy())
    digit = torch.finfo(dtype).eps
    for _ in range(400):
        gradient = torch.tensor(theirs.w - target + 0.1 * rng.standard_normal(SHAPE)).to(dtype)
        weight.grad = gradient
        ours.step()
        theirs.step(gradient.double().numpy())
    tries.add(400)
    moved = np.abs(theirs.w - start.double().numpy()).max()
    assert moved > 10 * digit  # by so much that it had to be kept
    off = np.abs(weight.detach().double().numpy() - theirs.w)
    assert (off <= digit * np.abs(theirs.w) + 0.02 * moved).all()
    iterate = weight.detach().double() + ours.state[weight]["remainder"].double()
    assert np.abs(iterate.numpy() - theirs.w).max() <= 0.02 * moved
    assert torch.equal(iterate.to(dtype), weight.detach())


@every
@HALVES
def test_what_is_saved_goes_on_bit_by_bit_and_older_states_without_remainder_load(maker, dtype):
    def made() -> tuple[torch.nn.Parameter, dp.ProximalOptimizer]:
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 30).reshape(SHAPE).to(dtype))
        return weight, maker([{"params": [weight], "penalty": dp.GroupLasso(0.01)}])

    def train(weight: torch.nn.Parameter, opt: dp.ProximalOptimizer, steps: range) -> None:
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            weight.grad = torch.randn(SHAPE, generator=generator).to(dtype)
            opt.step()

    weight, opt = made()
    train(weight, opt, range(5))
    saved = copy.deepcopy(opt.state_dict())
    twin, other = made()
    twin.data.copy_(weight.data)
    other.load_state_dict(saved)
    train(weight, opt, range(5, 9))
    train(twin, other, range(5, 9))
    assert_same([weight, *snapshot(opt)], [twin, *snapshot(other)])
    del saved["state"][0]["remainder"]
    other.load_state_dict(saved)
    assert other.state[twin]["remainder"].eq(0).all()


@every
def test_a_change_of_dtype_begins_and_ends_the_remainder(maker: Maker):
    model = torch.nn.Linear(5, 4)
    opt = maker(dp.param_groups(model, dp.GroupLasso(0.01)), impl="eager")

    def step() -> None:
        model.zero_grad()
        model(torch.ones(2, 5, dtype=model.weight.dtype)).sum().backward()
        opt.step()

    for move, has in ((model.float, False), (model.bfloat16, True), (model.float, False)):
        move()
        step()
        assert ("remainder" in opt.state[model.weight]) == has


@every
def test_finalize_and_a_refit_leave_nothing_of_the_iterate_behind(maker: Maker):
    for dead in (False, True):
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 30).reshape(SHAPE).bfloat16())
        weight.data[:, 2] = 0.001
        lr = 0.005 if maker.make is dp.ProxAdamW else maker.lr
        opt = maker([{"params": [weight], "penalty": dp.GroupLasso(0.1)}], lr=lr)
        for step in range(8):
            generator = torch.Generator().manual_seed(step)
            weight.grad = 0.1 * torch.randn(SHAPE, generator=generator).bfloat16()
            opt.step()
        assert opt.state[weight]["remainder"].ne(0).any()
        (opt.freeze_structure_ if dead else opt.finalize_)()
        assert opt.state[weight]["remainder"].eq(0).all()
        if dead:
            zeros = weight == 0
            assert zeros.any()
            for _ in range(3):
                weight.grad = torch.ones_like(weight)
                opt.step()
            assert weight[zeros].eq(0).all() and opt.state[weight]["remainder"][zeros].eq(0).all()


@every
def test_bf16_autocast_trains_float32_parameters(maker: Maker):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    opt = maker(dp.param_groups(model, dp.GroupLasso(1e-4)))
    x = torch.randn(64, 6)
    y = x[:, :1] - x[:, 1:2]
    losses = []
    output = y
    for _ in range(100):
        opt.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            output = model(x)
        loss = (output.float() - y).square().mean()
        loss.backward()
        opt.step()
        losses.append(float(loss.detach()))
    assert output.dtype == torch.bfloat16 and math.isfinite(losses[-1])
    assert losses[-1] < 0.5 * losses[0]
    for param in model.parameters():
        assert param.dtype == torch.float32 and "remainder" not in opt.state[param]


@pytest.mark.promise(
    "numbers", "a run with steps that a GradScaler skipped is the run without those steps", "runs"
)
@every
@pytest.mark.parametrize("milestones", [[], [3]])
@pytest.mark.parametrize("impl", IMPLS)
def test_skipped_steps_advance_neither_sums_nor_stage_nor_ramp(maker, milestones, impl, tries):
    """Bit by bit: scales are powers of two."""

    def run(scaled: bool) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(SHAPE, generator=generator))
        opt = maker([{"params": [weight], "penalty": dp.GroupLasso(0.05)}], impl=impl)
        stages = dp.StageSchedule(opt, milestones, gamma=0.5)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3, enabled=scaled)
        skipped = 0
        for step in range(40):
            overflows = step % 5 in (0, 3)
            gradient = torch.randn(SHAPE, generator=generator)
            if scaled or not overflows:
                loss = (weight * gradient).sum()
                scaler.scale(loss).backward()
                assert weight.grad is not None
                if overflows:
                    weight.grad[2, 3] = math.inf if step % 2 else math.nan
                before = scaler.get_scale()
                scaler.step(opt)
                scaler.update()
                skipped += scaler.get_scale() < before
                opt.zero_grad()
            if step % 10 == 9:
                stages.step()
        assert skipped == 16 * scaled
        taken = 24 if not milestones or not maker.averages else 6
        assert opt.state[weight]["step"] == taken
        return [weight.detach(), opt.structured_point(weight), *snapshot(opt)]

    with tries.one():
        assert_same(run(True), run(False))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("make", [dp.RMDA, dp.RAMDA])
def test_a_stage_begins_at_the_whole_iterate(make, impl):
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 30).reshape(SHAPE).bfloat16())
    opt = make([{"params": [weight], "penalty": dp.GroupLasso(0.01)}], impl=impl)
    whole = weight.detach().float()
    for step in range(6):
        if step == 5:
            opt.restart()
            whole = weight.detach().float() + opt.state[weight]["remainder"].float()
            assert not torch.equal(whole, weight.float())
        generator = torch.Generator().manual_seed(step)
        weight.grad = torch.randn(SHAPE, generator=generator).bfloat16()
        opt.step()
    assert torch.equal(opt.state[weight]["anchor"], whole)
