"""The compiled CPU steps against the eager ones, which define them."""

import math
from typing import Any

import numpy as np
import pytest
import torch

import dualprox as dp
from dualprox.kernels import native
from dualprox.kernels.scalars import Method
from kernel_cases import EAGER, FREE, LARGE, LR, RESIDENT, TOLERANCE, Case
from oracles import algorithms
from oracles.cases import oracle

_WHY_NOT = native.why_unavailable()
pytestmark = pytest.mark.skipif(_WHY_NOT is not None, reason=f"native kernels {_WHY_NOT}")
SHAPED = (
    Case((1,), dp.GroupLasso(0.1, axis=0)),
    Case((300, 3), dp.GroupLasso(0.2, axis=0)),  # short runs side by side
    Case((40, 33), dp.GroupLasso(0.2, axis=0)),  # runs of one row
    Case((7, 300), dp.GroupLasso(0.2, axis=-2)),  # folded, with a tail
    Case((9, 2500), dp.GroupLasso(0.2)),  # several tiles side by side
    Case((130, 5), dp.GroupLasso(0.2, size_weighted=False)),  # sums of more than one block
    Case((2, 3, 50, 60), dp.GroupLasso(0.2)),  # a group wider than a tile
    Case((9, 4, 5), dp.GroupLasso(0.2, axis=2, conv_groups=3)),
    Case((12, 1, 3, 3), dp.GroupLasso(0.2, conv_groups=12), channels_last=True),
    Case((12, 2, 3, 3), dp.GroupLasso(0.2, conv_groups=3), channels_last=True),
    Case((12, 5), dp.GroupLasso(0.3, axis=0, block=2, conv_groups=3)),
    Case((6, 8), dp.GroupLasso(0.0)),
    Case((0, 5), dp.GroupLasso(0.1, size_weighted=False)),
    Case((5, 0), dp.GroupLasso(0.1, size_weighted=False)),
    Case((0,), None),
)
COUNTED = (
    Case((1, 1), dp.GroupL0(0.1)),
    Case((17, 67), dp.GroupL0(0.2)),
    Case((300, 3), dp.GroupL0(0.2, axis=0)),
    Case((7, 300), dp.GroupL0(0.2, axis=-2)),
    Case((9, 2500), dp.GroupL0(0.2)),
    Case((130, 5), dp.GroupL0(20.0, size_weighted=False)),
    Case((6, 4, 3, 3), dp.GroupL0(0.2, conv_groups=2)),
    Case((5, 6, 3, 3), dp.GroupL0(0.2), channels_last=True),
    Case((6, 8), dp.GroupL0(0.0)),
    Case((0, 5), dp.GroupL0(0.1)),
    Case((3, 11), dp.L0(0.05)),
    Case((17, 670), dp.L0(0.02)),
    Case((5, 6, 3, 3), dp.L0(0.02), channels_last=True),
    Case((6, 8), dp.L0(0.0)),
)
SHARED = (
    Case((30_000, 40), dp.GroupLasso(0.2)),
    Case((30_000, 40), dp.GroupL0(0.2)),
    Case((1, 800_000), dp.GroupLasso(0.1, axis=0)),
    Case((900, 1000), dp.L0(0.02)),
)

GROUPED = (dp.GroupLasso, dp.GroupL0)

methods = pytest.mark.parametrize("method", EAGER)


class Run:
    """An optimizer on the weights of some cases, and gradients for them."""

    def __init__(
        self,
        method: Method,
        cases: tuple[Case, ...],
        impl: str,
        dtype: torch.dtype = torch.float32,
        **settings: Any,
    ) -> None:
        self.cases = cases
        self.params = [torch.nn.Parameter(c.weight(k, dtype)) for k, c in enumerate(cases)]
        groups = [
            {"params": [p], "penalty": c.penalty} for p, c in zip(self.params, cases, strict=True)
        ]
        self.opt = EAGER[method](groups, impl=impl, **{"lr": LR[method], **settings})

    @property
    def supports(self) -> list[torch.Tensor]:
        """Live groups where there are no others' zeros; live entries elsewhere."""
        return [
            c.penalty.structure(p).live if isinstance(c.penalty, GROUPED) else p != 0
            for c, p in zip(self.cases, self.params, strict=True)
        ]

    @property
    def states(self) -> list[dict[str, torch.Tensor]]:
        return [self.opt.state[p] for p in self.params]

    def set(self, **settings: Any) -> None:
        for group in self.opt.param_groups:
            group.update({k: v for k, v in settings.items() if k in group})

    def gradients(self, step: int, scale: float = 1.0) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(step)
        grads = [scale * torch.randn(p.shape, generator=generator) for p in self.params]
        return [torch.empty_like(p).copy_(g) for p, g in zip(self.params, grads, strict=True)]

    def step(self, grads: list[torch.Tensor]) -> None:
        for param, grad in zip(self.params, grads, strict=True):
            param.grad = grad
        self.opt.step()

    def tensors(self) -> list[torch.Tensor]:
        states = [t for s in self.states for t in s.values()]
        return [t.detach().clone() for t in (*self.params, *states)]


def pair(method: Method, cases: tuple[Case, ...], **settings: Any) -> tuple[Run, Run]:
    return Run(method, cases, "native", **settings), Run(method, cases, "eager", **settings)


def assert_agree(ours: Run, theirs: Run, tolerance: float = TOLERANCE) -> None:
    """Same support, same counters, the rest within the tolerance."""
    assert_equal(ours.supports, theirs.supports)
    for a, b, state, like in zip(
        ours.params, theirs.params, ours.states, theirs.states, strict=True
    ):
        assert list(state) == list(like)
        for x, y in ((a.detach(), b.detach()), *((state[k], like[k]) for k in state)):
            if x.dtype == torch.float64:
                assert torch.equal(x, y)
            elif y.numel():
                largest = y.double().abs().max().clamp_min(1e-30)
                assert (x.double() - y.double()).abs().max() <= tolerance * largest


def assert_equal(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


def train(method: Method, ours: Run, theirs: Run, steps: int = 5) -> None:
    """Steps with a restart, another lr and eps, a ramp and, at last, the structured point."""
    for step in range(steps):
        for run in (ours, theirs):
            if step == steps // 2:
                run.opt.restart()
                run.set(lr=LR[method] / 2, ramp=True, eps=1e-5)
            if step == steps - 1:  # iterate = structured point
                run.set(momentum=0.0)
            run.step(run.gradients(step))
        assert_agree(ours, theirs, TOLERANCE * (step + 1))


@methods
@pytest.mark.parametrize(
    "cases",
    [FREE + RESIDENT, LARGE, SHAPED, COUNTED],
    ids=["resident", "large", "shaped", "counted"],
)
def test_steps_follow_the_eager_ones_to_the_same_support(method, cases):
    ours, theirs = pair(method, cases)
    train(method, ours, theirs)
    dead = sum(int((p == 0).sum()) for p in ours.params)
    assert dead < sum(p.numel() for p in ours.params)
    assert dead > 0 or cases is SHAPED
    for report in ours.opt.solver_report():
        assert 0 <= report.iterations <= 6 and report.certificate is None
    assert any(r.iterations for r in ours.opt.solver_report()) == (
        method in ("ramda", "prox_adamw") and cases is not COUNTED
    )


@methods
def test_tiles_that_all_threads_share_follow_eager_in_float64(method):
    """Its own float32 norms of so many entries are off by more than the tolerance."""
    theirs = Run(method, SHARED, "eager", torch.float64)
    train(method, Run(method, SHARED, "native"), theirs, steps=2)


@pytest.mark.slow
@methods
def test_groups_too_large_to_keep_in_memory_follow_eager_in_float64(method):
    cases = (Case((1, 4_300_000), dp.GroupLasso(0.1, axis=0)),)
    theirs = Run(method, cases, "eager", torch.float64)
    train(method, Run(method, cases, "native"), theirs, steps=2)


def test_a_group_of_very_many_rows_is_summed_in_double_precision():
    """In float32 the sum of 60,000 equal squares is off by 1e-4, and the weights by more."""
    param = torch.nn.Parameter(torch.full((1_000_000, 3), 0.1))
    param.grad = torch.zeros_like(param)
    dp.ProxSGD([{"params": [param], "penalty": dp.GroupLasso(0.5)}], lr=0.1, impl="native").step()
    assert (param.detach() - 0.05).abs().max() <= 0.05 * TOLERANCE


@methods
def test_maximize_and_weight_decay_follow_eager(method):
    settings: dict[str, Any] = (
        {"weight_decay": 0.2, "betas": (0.5, 0.7)} if method == "prox_adamw" else {}
    )
    ours, theirs = pair(method, FREE + RESIDENT, maximize=True, **settings)
    for step in range(3):
        for run in (ours, theirs):
            run.step(run.gradients(step))
    assert_agree(ours, theirs, 3 * TOLERANCE)


@methods
@pytest.mark.parametrize("scale", [0.0, 1e-40, 1e-20, 1e-6, 1e4, 1e12, 1e15])
@pytest.mark.parametrize("lr", [1e-3, 1.0])
def test_gradients_of_any_size_follow_eager(method, scale, lr):
    cases = (
        Case((6, 8), dp.GroupLasso(0.1)),
        Case((6, 8), dp.GroupLasso(1e-20)),  # lives however small the numerators are
        Case((7, 40), dp.GroupLasso(1e-20, axis=0)),
        Case((6, 8), dp.GroupL0(0.01)),
        Case((6, 8), dp.L0(0.01)),
        Case((5, 8), dp.SparseGroupLasso(0.1)),
        Case((3, 7), dp.L1(0.1)),
        Case((9,), None),
    )
    adaptive = method in ("ramda", "prox_adamw")
    ours, theirs = pair(method, cases, lr=lr, **({"eps": 1e-16} if adaptive else {"momentum": 0.0}))
    for step in range(2):
        for run in (ours, theirs):
            run.step(run.gradients(step, scale))
    # Squares that are subnormal numbers have four digits.
    assert_agree(ours, theirs, 1e-4 if scale == 1e-20 else 2 * TOLERANCE)


@pytest.mark.parametrize("method", ["ramda", "prox_adamw"])
def test_metrics_spread_over_eleven_orders_of_magnitude_follow_eager(method):
    cases = tuple(Case((30, 40), dp.GroupLasso(s, axis=k)) for k in (0, 1) for s in (1e-3, 1e-8))
    ours, theirs = pair(method, cases, eps=1e-12)
    generator = torch.Generator().manual_seed(0)
    spread = 10 ** (11 * torch.rand(30, 40, generator=generator) - 11)
    for step in range(3):
        for run in (ours, theirs):
            run.step([g * spread for g in run.gradients(step)])
    assert_agree(ours, theirs, 4 * TOLERANCE)
    assert max(report.iterations for report in ours.opt.solver_report()) <= 12


@methods
def test_zero_gradients_never_move_free_parameters(method):
    ours, _ = pair(method, (Case((50,), None), Case((50,), dp.L1(0.0))))
    before = [p.detach().clone() for p in ours.params]
    for _ in range(5):
        ours.step(ours.gradients(0, 0.0))
    assert_equal([p.detach() for p in ours.params], before)


@methods
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_nan_stays_in_its_group_and_reaches_all_of_it(method, value):
    cases = (
        Case((4, 6), dp.GroupLasso(0.1)),
        Case((4, 6), dp.GroupLasso(99.0)),  # all dead but for the NaN
        Case((4, 6), dp.GroupL0(99.0)),
        Case((4, 6), dp.L0(99.0)),
        Case((5, 3), dp.L1(0.1)),
        Case((5, 40), dp.SparseGroupLasso(0.1, axis=0)),
        Case((5, 3), None),
    )
    ours, theirs = pair(method, cases)
    for run in (ours, theirs):
        grads = run.gradients(0)
        for grad in grads:
            grad[2, 1] = value
        run.step(grads)
    for a, b in zip(ours.params, theirs.params, strict=True):
        assert torch.equal(a.isnan(), b.isnan()) and torch.equal(a.isinf(), b.isinf())
        assert not a[2, 1].isfinite()
    if math.isnan(value):
        assert ours.params[0].isnan()[:, 1].all() and ours.params[0].isnan().sum() == 4


def test_a_norm_equal_to_the_threshold_is_dead():
    weight = torch.tensor([[3.0, 3.0], [4.0, 4.1]])
    cases = (
        Case((2, 2), dp.GroupLasso(5.0, size_weighted=False)),
        Case((2, 2), dp.L1(4.0)),
        Case((2, 2), dp.GroupL0(12.5, size_weighted=False)),
        Case((2, 2), dp.L0(8.0)),
    )
    for run in (
        Run("prox_sgd", cases, "native", lr=1.0),
        Run("prox_adamw", cases, "native", lr=0.5, eps=0.5),
    ):
        for param in run.params:
            param.data.copy_(weight)
        run.step(run.gradients(0, scale=0.0))
        assert (run.params[0] == 0).tolist() == [[True, False], [True, False]]
        assert (run.params[1] == 0).tolist() == [[True, True], [True, False]]
        assert (run.params[2] == 0).tolist() == [[True, False], [True, False]]
        assert (run.params[3] == 0).tolist() == [[True, True], [True, False]]


@methods
def test_groups_within_rounding_of_the_threshold_come_out_dead_or_tiny(method):
    """Between norm = threshold (1 -+ 1e-5) either support is right, a wrong value is not."""
    close = 1 + torch.linspace(-1e-5, 1e-5, 41)
    weight = torch.randn(100, 1, generator=torch.Generator().manual_seed(0))
    adaptive = method in ("ramda", "prox_adamw")
    settings: dict[str, Any] = {"eps": 1.0} if adaptive else {}
    if method != "prox_adamw":
        settings["momentum"] = 0.0
    penalty = dp.GroupLasso(1.0, size_weighted=False)
    ours, theirs = pair(method, (Case((100, 41), penalty),), lr=0.5, **settings)
    for run in (ours, theirs):
        run.params[0].data.copy_(weight / weight.norm() * 0.5 * close)
        run.step(run.gradients(0, scale=0.0))
    a, b = ours.params[0].detach(), theirs.params[0].detach()
    assert (a - b).abs().max() <= 1e-6
    assert torch.equal(a[:, ::40] == 0, b[:, ::40] == 0)
    assert (a[:, 0] == 0).all() and (a[:, -1] != 0).all()


@methods
def test_bf16_parameters_keep_float32_state_and_differ_by_one_ulp_at_most(method):
    cases = (*FREE, *RESIDENT, *COUNTED, Case((130, 40), dp.GroupLasso(0.1)))
    ours, theirs = pair(method, cases, dtype=torch.bfloat16)
    for step in range(4):
        for a, b in zip(ours.params, theirs.params, strict=True):
            a.data.copy_(b.data)
            ours.opt.state[a]["remainder"].copy_(theirs.opt.state[b]["remainder"])
        for run in (ours, theirs):
            run.step(run.gradients(step))
        for a, b in zip(ours.params, theirs.params, strict=True):
            ahead = ours.opt.state[a]["remainder"] - theirs.opt.state[b]["remainder"].double()
            a, b = a.detach().float(), b.detach().float()
            assert ((a - b + ahead).abs() <= 1e-5 + 2**-15 * b.abs()).all()
            assert torch.equal(a == 0, b == 0)
            assert ((a - b).abs() <= b.abs() * 2**-7).all()
            assert (a != b).float().mean() <= 0.01 or a.numel() < 500  # a last bit in a hundred
        for state, like in zip(ours.states, theirs.states, strict=True):
            for key in state.keys() - {"remainder"}:
                assert state[key].dtype == (torch.float32 if state[key].dim() else torch.float64)
                assert torch.allclose(state[key], like[key], rtol=1e-5, atol=1e-6)


@methods
@pytest.mark.parametrize("penalty", [dp.GroupLasso(0.3), dp.GroupL0(0.2)], ids=str)
def test_steps_follow_the_float64_oracle(method, penalty):
    make: dict[str, Any] = {
        "rmda": lambda w, psi: algorithms.RMDA(w, psi, 0.1, 0.5),
        "ramda": lambda w, psi: algorithms.RAMDA(w, psi, 0.02, 0.5, 1e-6),
        "prox_sgd": lambda w, psi: algorithms.ProxSGD(w, psi, 0.1, 0.5),
        "prox_adamw": lambda w, psi: algorithms.ProxAdamW(w, psi, 0.05, (0.9, 0.999), 1e-8, 0.1),
    }
    settings: dict[str, Any] = (
        {"weight_decay": 0.1} if method == "prox_adamw" else {"momentum": 0.5}
    )
    ours = Run(method, (Case((50, 7), penalty),), "native", **settings)
    start = ours.params[0].detach().double().numpy()
    kind, strength = type(penalty).__name__, penalty.strength
    theirs = make[method](start, oracle(kind, strength=strength, axis=1))
    for step in range(5):
        grads = ours.gradients(step)
        ours.step(grads)
        theirs.step(grads[0].double().numpy())
    point = ours.params[0].detach().double().numpy()
    assert np.abs(point - theirs.w).max() <= 1e-5 * np.abs(theirs.w).max()
    assert ((point == 0) == (theirs.w == 0)).all()


@methods
def test_results_are_the_same_bits_every_time_and_for_any_number_of_threads(method):
    cases = (*FREE, *RESIDENT, *SHAPED, *COUNTED, *SHARED)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 1, 2, 3, 4):
            torch.set_num_threads(threads)
            run = Run(method, cases, "native")
            for step in range(2):
                run.step(run.gradients(step))
            results.append(run.tensors())
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert_equal(result, results[0])


@pytest.mark.parametrize("capability", ["AVX512", "AVX2", "DEFAULT"])
def test_every_instruction_set_of_this_machine_agrees_with_eager(capability, monkeypatch):
    sets = {"DEFAULT": "baseline", "AVX2": "avx2", "AVX512": "avx512"}
    able = torch.backends.cpu.get_cpu_capability()
    if capability != "DEFAULT" and (
        able not in sets or list(sets).index(able) < list(sets).index(capability)
    ):
        pytest.skip(f"this processor has {able}")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    native._load.cache_clear()
    try:
        assert native.instruction_set() == sets[capability]
        for method in EAGER:
            train(method, *pair(method, (*FREE, *RESIDENT, *SHAPED, *COUNTED)), steps=3)
    finally:
        monkeypatch.undo()
        native._load.cache_clear()


@pytest.mark.parametrize("method", ["ramda", "prox_adamw"])
def test_alike_slopes_need_one_sweep(method: Method):
    generator = torch.Generator().manual_seed(0)
    param = torch.nn.Parameter(torch.randn(400, 70, generator=generator))
    group = {"params": [param], "penalty": dp.GroupLasso(1e-3)}
    opt = EAGER[method]([group], lr=0.1, impl="native")
    for _ in range(5):
        param.grad = torch.rand(400, 70, generator=generator) + 1
        opt.step()
        assert opt.solver_report()[0].iterations == 1


def test_two_slopes_far_apart_need_one_sweep_of_prox_adamw():
    generator = torch.Generator().manual_seed(0)
    param = torch.nn.Parameter(torch.randn(400, 70, generator=generator))
    opt = dp.ProxAdamW([{"params": [param], "penalty": dp.GroupLasso(1e-1)}], impl="native")
    scale = torch.where(torch.arange(400) % 2 == 0, 1.0, 1000.0)[:, None]
    for _ in range(5):
        param.grad = scale.expand(400, 70).clone()
        opt.step()
        assert opt.solver_report()[0].iterations == 1
