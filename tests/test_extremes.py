"""Huge and tiny gradients, strengths and learning rates; shapes with next to nothing in them."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dualprox as dp
from contracts import LAWS, OPTIMIZERS, Maker, assert_same
from dualprox.kernels import native
from oracles.cases import CASES, Case, NoisyQuadratic, oracle
from test_trajectories import SETTINGS, oracle_of

every = pytest.mark.parametrize("maker", OPTIMIZERS, ids=str)
FUSED = ("L1", "GroupLasso", "SparseGroupLasso")
HAS_NATIVE = native.why_unavailable() is None
IMPLS = ("eager", "native") if HAS_NATIVE else ("eager",)
EXTREMES: tuple[dict[str, float], ...] = (
    *({"gradient": scale} for scale in (1e-40, 1e-30, 1e-20, 1e12, 1e18)),
    *({"lr": lr} for lr in (1e-300, 1e-30, 1e4)),
)


def impls_of(name: str | None) -> tuple[str, ...]:
    return IMPLS if name is None or name in FUSED else ("eager",)


def is_iterated(method: str, name: str) -> bool:
    """Whether the subproblem is solved to a stopping rule's precision alone."""
    kind = getattr(dp, name)
    return method in ("RAMDA", "ProxAdamW") and not issubclass(kind, dp.DiagonalPenalty)


@pytest.mark.promise(
    "numbers",
    "float32 steps follow float64 ones, and to the same support, for gradients from 1e-40 to "
    "1e18 and learning rates from 1e-300 to 1e4",
    "runs of four steps",
)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("method", SETTINGS)
def test_float32_follows_float64_over_sixty_orders_of_magnitude(method, case: Case, tries):
    shape, more = case.weights[0]
    problem = NoisyQuadratic(shape, 1, steps=4)
    arguments: dict[str, Any] = {**case.arguments, **more}
    for extreme in EXTREMES:
        own = {**SETTINGS[method]}
        own["lr"] = extreme.get("lr", own["lr"])
        for impl in impls_of(case.name):
            weight = torch.nn.Parameter(torch.tensor(problem.start, dtype=torch.float32))
            start = weight.detach().double().numpy()
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(SETTINGS, method, own)
                theirs = oracle_of(method, start, oracle(case.name, **arguments), None)
            penalty = getattr(dp, case.name)(**arguments)
            ours = getattr(dp, method)([{"params": [weight], "penalty": penalty}], impl=impl, **own)
            with tries.one():
                for t in range(4):
                    noise = (extreme.get("gradient", 1.0) * problem.noise[t]).astype(np.float32)
                    weight.grad = torch.tensor(noise)
                    ours.step()
                    theirs.step(noise.astype(float))
                tolerance = 5e-3 if is_iterated(method, case.name) else 3e-5
                off = np.abs(weight.detach().double().numpy() - theirs.w).max()
                assert off <= tolerance * np.abs(theirs.w).max(), (extreme, impl)
                point, size = ours.structured_point(weight).numpy(), np.abs(theirs.structured())
                alike = (point == 0) == (size == 0)
                assert (alike | (np.maximum(size, np.abs(point)) < 1e-25)).all(), (extreme, impl)


STRONG = [law for law in LAWS if law.penalty.own_strength() is not None]


@pytest.mark.promise(
    "numbers", "a strength of 1e30 or 1e300 removes everything, one of 1e-300 nothing", "runs"
)
@every
def test_strengths_over_six_hundred_orders_of_magnitude(maker: Maker, tries):
    for law in STRONG:
        if isinstance(law.penalty, dp.Coupled):
            continue
        for strength in (1e30, 1e300, 0.0, 1e-300):
            for impl in impls_of(type(law.penalty).__name__):
                with tries.one():
                    penalty = law.penalty.with_strength(strength)
                    weight = torch.nn.Parameter(torch.randn(law.shape, generator=torch.Generator()))
                    group = {"params": [weight], "penalty": penalty}
                    opt = maker([group], impl=impl)
                    for _ in range(3):
                        weight.grad = torch.full(law.shape, 0.01)
                        opt.step()
                    point = opt.structured_point(weight)
                    dead = strength > 1
                    assert bool((point == 0).all() if dead else (point != 0).all()), penalty
                    assert weight.isfinite().all(), penalty


@pytest.mark.promise(
    "numbers", "weights that are empty, of one entry or one group, or of 10^6 entries step", "runs"
)
@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_shapes_with_little_in_them(maker: Maker, dtype, tries):
    shapes = ((0,), (0, 5), (5, 0), (1,), (1, 1), (1, 7), (7, 1), (1, 1, 3, 3), (3, 2, 0, 3))
    penalties = (
        None,
        dp.L1(0.1),
        *(kind(0.1, axis=0) for kind in (dp.GroupLasso, dp.SparseGroupLasso, dp.GroupMCP)),
        *(kind(0.1, axis=-1) for kind in (dp.GroupLasso, dp.SparseGroupLasso, dp.GroupL0)),
        dp.NuclearNorm(0.1),
    )
    for shape in shapes:
        for penalty in penalties:
            if isinstance(penalty, dp.NuclearNorm) and len(shape) < 2:
                continue
            for impl in impls_of(None if penalty is None else type(penalty).__name__):
                if impl == "native" and dtype == torch.float64:
                    continue
                with tries.one():
                    weight = torch.nn.Parameter(torch.ones(shape, dtype=dtype))
                    opt = maker([{"params": [weight], "penalty": penalty}], impl=impl)
                    for _ in range(2):
                        weight.grad = torch.full_like(weight, 0.25)
                        opt.step()
                    assert weight.isfinite().all() and (weight < 1).all(), (shape, penalty)
                    assert opt.structured_point(weight).shape == shape
                    dp.structure(opt)


@every
def test_a_group_of_a_million_entries_follows_float64(maker: Maker):
    results = []
    for impl, dtype in (*((impl, torch.float32) for impl in IMPLS), ("eager", torch.float64)):
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(2, 1_000_000, generator=generator)
        weight = torch.nn.Parameter(start.to(dtype))
        opt = maker([{"params": [weight], "penalty": dp.GroupLasso(0.02, axis=0)}], impl=impl)
        for _ in range(2):
            weight.grad = torch.randn(start.shape, generator=generator).to(dtype)
            weight.grad[1] *= 1e-3
            opt.step()
        results.append(weight.detach().double())
    for result in results[:-1]:
        assert (result - results[-1]).abs().max() <= 2e-5 * results[-1].abs().max()


@pytest.mark.promise(
    "numbers", "a weight whose gradient comes late or seldom takes its own steps alone", "runs"
)
@every
@pytest.mark.parametrize("impl", IMPLS)
def test_gradients_that_come_late_or_seldom(maker: Maker, impl, tries):
    def weights() -> list[torch.nn.Parameter]:
        generator = torch.Generator().manual_seed(3)
        return [torch.nn.Parameter(torch.randn(4, 5, generator=generator)) for _ in range(3)]

    def gradient(number: int, step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(100 * number + step)
        return torch.randn(4, 5, generator=generator)

    comes = (lambda t: True, lambda t: t >= 100, lambda t: t % 7 == 3)
    together = weights()
    opt = maker([{"params": together, "penalty": dp.GroupLasso(0.1)}], impl=impl)
    for step in range(150):
        for number, weight in enumerate(together):
            weight.grad = gradient(number, step) if comes[number](step) else None
        opt.step()
    for number, alone in enumerate(weights()):
        other = maker([{"params": [alone], "penalty": dp.GroupLasso(0.1)}], impl=impl)
        for step in filter(comes[number], range(150)):
            alone.grad = gradient(number, step)
            other.step()
        with tries.one():
            assert_same([together[number]], [alone])
            assert_same([*opt.state[together[number]].values()], [*other.state[alone].values()])


@pytest.mark.parametrize("impl", IMPLS)
def test_momentum_at_the_ends_of_its_range(impl):
    for make in (dp.RMDA, dp.RAMDA):
        weight = torch.nn.Parameter(torch.ones(3, 4))
        opt = make([{"params": [weight], "penalty": dp.L1(0.1)}], impl=impl, momentum=0.0)
        for momentum in (0.0, 0.999999):
            opt.param_groups[0]["momentum"] = momentum
            before, weight.grad = weight.detach().double(), torch.full((3, 4), 0.5)
            opt.step()
            point = opt.structured_point(weight).double()
            expected = momentum * before + (1 - momentum) * point
            assert (weight - expected).abs().max() <= 1e-7
            if momentum == 0:
                assert torch.equal(weight, point.float())


def worst_violation(opt: Any, weight: torch.Tensor, penalty: dp.GroupLasso) -> float:
    """How far the structured point of a matrix is from optimal, beside the terms that must cancel.

    Written out in float64 from the optimizer's sums; groups are columns.
    """
    state = {k: v.double().numpy() for k, v in opt.state[weight].items()}
    z, alpha = opt.structured_point(weight).double().numpy(), state["penalty_sum"]
    if isinstance(opt, dp.RAMDA):
        metric = np.cbrt(state["grad_sq_sum"]) + state["eps"]
    else:
        metric = np.full(z.shape, np.sqrt(state["step"]))
    threshold = alpha * penalty.strength * np.sqrt(len(z))
    linear, anchored = state["grad_sum"], metric * state["anchor"]
    worst = 0.0
    for g in range(z.shape[1]):
        own = (slice(None), g)
        scale = np.linalg.norm(linear[own]) + np.linalg.norm(anchored[own]) + threshold
        norm = np.linalg.norm(z[own])
        if norm == 0:
            excess = max(np.linalg.norm(anchored[own] - linear[own]) - threshold, 0.0)
        else:
            pull = metric[own] * z[own] - anchored[own] + linear[own]
            excess = np.linalg.norm(pull + threshold * z[own] / norm)
        worst = max(worst, float(excess / scale))
    return worst


@pytest.mark.promise(
    "numbers",
    "float32 solutions of RMDA's and RAMDA's subproblem meet its optimality condition to 2e-5, "
    "with gradients from 1e-15 to 1e15 in one matrix",
    "random problems",
)
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("make", [dp.RMDA, dp.RAMDA])
def test_subproblems_of_any_scale_are_solved(make, impl, tries):
    powers = st.integers(-15, 15)

    @settings(
        max_examples=60,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(
        shape=st.tuples(st.integers(1, 6), st.integers(1, 6)),
        rows=st.lists(powers, min_size=6, max_size=6),
        strength=st.integers(-15, 10),
        lr=st.integers(-6, 3),
        seed=st.integers(0, 99),
    )
    def solves(shape, rows, strength, lr, seed):
        generator = torch.Generator().manual_seed(seed)
        weight = torch.nn.Parameter(torch.randn(shape, generator=generator))
        penalty = dp.GroupLasso(10.0**strength)
        opt = make([{"params": [weight], "penalty": penalty}], lr=10.0**lr, impl=impl)
        for _ in range(2):
            scales = torch.tensor([10.0**power for power in rows[: shape[0]]])
            weight.grad = torch.randn(shape, generator=generator) * scales[:, None]
            opt.step()
        with tries.one():
            assert weight.isfinite().all()
            assert worst_violation(opt, weight, penalty) <= 2e-5

    solves()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("make", [dp.RAMDA, dp.ProxAdamW])
@pytest.mark.parametrize("penalty", [None, dp.L1(0.1)], ids=str)
def test_squares_that_overflow_leave_finite_weights(make, penalty, impl):
    weight = torch.nn.Parameter(torch.tensor([[1.0, 0.0, -1.0]]))
    opt = make([{"params": [weight], "penalty": penalty}], impl=impl)
    for gradient in (1e25, 0.0):
        weight.grad = torch.full_like(weight, gradient)
        opt.step()
        assert weight.isfinite().all()
        assert opt.structured_point(weight).isfinite().all()
