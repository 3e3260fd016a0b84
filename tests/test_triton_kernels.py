"""The Triton steps against the eager ones: on a GPU, or on the CPU under TRITON_INTERPRET=1."""

import math
from typing import Any

import numpy as np
import pytest
import torch

import dualprox as dp
from dualprox.kernels.scalars import Method
from dualprox.kernels.tiling import Tiling
from dualprox.kernels.triton_steps import TritonGroup, unavailable, unsupported
from kernel_cases import EAGER, FREE, LARGE, LR, RESIDENT, TOLERANCE, Case
from oracles import algorithms
from oracles.cases import oracle

_WHY_NOT = unavailable()
pytestmark = [
    pytest.mark.skipif(_WHY_NOT is not None, reason=_WHY_NOT or "available"),
    # The interpreter is numpy, which warns of the 0/0 in lanes that are masked out.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:lr went from"),
]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = DEVICE == "cpu"
SWEPT = Tiling(resident=0, chunk=256, few=0)
SPLIT = Tiling(resident=0, chunk=128, few=99, programs=3)
CLUSTERED = Tiling(resident=8192, blocks=4)
COUNTERS = ("step", "penalty_sum", "restart", "eps")

methods = pytest.mark.parametrize("method", EAGER)


class Run:
    """An optimizer on the weights of some cases, stepped eagerly or by Triton."""

    def __init__(
        self,
        method: Method,
        cases: tuple[Case, ...],
        tiling: Tiling | None = None,
        dtype: torch.dtype = torch.float32,
        capturable: bool = False,
        **settings: Any,
    ) -> None:
        self.params = [
            torch.nn.Parameter(c.weight(k, dtype).to(DEVICE)) for k, c in enumerate(cases)
        ]
        groups = [
            {"params": [p], "penalty": c.penalty} for p, c in zip(self.params, cases, strict=True)
        ]
        self.opt = EAGER[method](groups, **{"lr": LR[method], "impl": "eager", **settings})
        self.method: Method = method
        self.forms = [
            None if c.penalty is None else c.penalty.sparse_group_form(p)
            for p, c in zip(self.params, cases, strict=True)
        ]
        self.tiling, self.capturable = tiling, capturable
        if capturable:
            for state in self.states:
                state.update({c: state[c].to(DEVICE) for c in COUNTERS if c in state})

    @property
    def states(self) -> list[dict[str, torch.Tensor]]:
        return [self.opt.state[p] for p in self.params]

    def fused(self) -> TritonGroup:
        weights = [p.data for p in self.params]
        return TritonGroup(
            self.method, weights, self.states, self.forms, self.capturable, self.tiling
        )

    def set(self, **settings: Any) -> None:
        for group in self.opt.param_groups:
            group.update({k: v for k, v in settings.items() if k in group})

    def gradients(self, step: int, scale: float = 1.0) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(step)
        return [
            (scale * torch.randn(p.shape, generator=generator)).to(p.device, p.dtype)
            for p in self.params
        ]

    def step_eagerly(self, grads: list[torch.Tensor]) -> None:
        for param, grad in zip(self.params, grads, strict=True):
            param.grad = grad
        self.opt.step()


def snapshot(run: Run) -> list[torch.Tensor]:
    states = [t for s in run.states for t in s.values()]
    return [t.detach().clone() for t in (*run.params, *states)]


def assert_equal(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.cpu(), b.cpu())


def assert_close(ours: Run, theirs: Run, tolerance: float = TOLERANCE) -> None:
    """Parameters within the tolerance, buffers too, counters equal to float64's rounding."""
    for param, state, other, like in zip(
        ours.params, ours.states, theirs.params, theirs.states, strict=True
    ):
        pairs = [(param.detach(), other.detach()), *((state[k], like[k]) for k in state)]
        for a, b in pairs:
            a, b = a.double().cpu(), b.double().cpu()
            bound = 1e-14 if a.dim() == 0 and param.dim() else tolerance
            assert (a - b).abs().max() <= bound * b.abs().max().clamp_min(1e-30)


def train(method: Method, ours: Run, theirs: Run, steps: int = 5) -> None:
    """Steps with a restart, another lr, a ramp and, at last, the structured point."""
    fused = ours.fused()
    for step in range(steps):
        if step == steps // 2:
            for run in (ours, theirs):
                run.opt.restart()
                run.set(lr=LR[method] / 2, ramp=True, eps=1e-5)
        if step == steps - 1:  # iterate = structured point
            for run in (ours, theirs):
                run.set(momentum=0.0)
        grads = ours.gradients(step)
        fused.step(grads, ours.opt.param_groups[0])
        theirs.step_eagerly(grads)
        assert_close(ours, theirs, TOLERANCE * (step + 1))


@methods
@pytest.mark.parametrize(
    ("cases", "tiling"),
    [
        (FREE + RESIDENT, None),
        (LARGE, SWEPT),
        (LARGE[::2], SPLIT),
    ],
    ids=["resident", "swept", "split"],
)
def test_steps_follow_the_eager_ones_to_the_same_support(method, cases, tiling):
    ours, theirs = Run(method, cases, tiling), Run(method, cases)
    train(method, ours, theirs, steps={None: 5, SWEPT: 3, SPLIT: 2}[tiling])
    for case, a, b in zip(cases, ours.params, theirs.params, strict=True):
        assert torch.equal(a == 0, b == 0), case
    dead = sum(int((p == 0).sum()) for p in ours.params)
    assert 0 < dead < sum(p.numel() for p in ours.params)


@pytest.mark.parametrize(
    ("method", "tiling"), [("rmda", Tiling()), ("rmda", CLUSTERED), ("ramda", CLUSTERED)]
)
def test_tall_matrices_follow_eager(method, tiling):
    cases = (Case((1100, 9), dp.GroupLasso(0.2)), Case((1030, 3, 2, 2), dp.GroupLasso(0.2)))
    train(method, Run(method, cases, tiling), Run(method, cases), steps=2)


def test_a_tile_shared_by_more_programs_than_are_added_at_once_follows_eager():
    cases = (Case((40, 5), dp.GroupLasso(0.2)),)
    crowd = Tiling(resident=0, chunk=8, few=99, programs=40)
    train("rmda", Run("rmda", cases, crowd), Run("rmda", cases), steps=2)


@methods
def test_a_run_repeats_bit_by_bit(method):
    results = []
    for _ in range(2):
        run = Run(method, LARGE[:1], SPLIT)
        fused = run.fused()
        for step in range(2):
            fused.step(run.gradients(step), run.opt.param_groups[0])
        results.append(snapshot(run))
    assert_equal(*results)


@methods
def test_bf16_parameters_keep_float32_state(method):
    cases = (Case((6, 10), dp.GroupLasso(0.1)), Case((7,), None))
    ours = Run(method, cases, dtype=torch.bfloat16)
    theirs = Run(method, cases, dtype=torch.bfloat16)
    fused = ours.fused()
    for step in range(3):
        for a, b in zip(ours.params, theirs.params, strict=True):
            a.data.copy_(b.data)  # the interpreter truncates to bf16 where GPUs round
            ours.opt.state[a]["remainder"].copy_(theirs.opt.state[b]["remainder"])
        grads = ours.gradients(step)
        fused.step(grads, ours.opt.param_groups[0])
        theirs.step_eagerly(grads)
        for a, b in zip(ours.params, theirs.params, strict=True):
            assert (a.float() - b.float()).abs().le(b.float().abs() * 2**-7).all()
            rests = [ours.opt.state[a]["remainder"], theirs.opt.state[b]["remainder"]]
            apart = (a.float() + rests[0].float()) - (b.float() + rests[1].float())
            assert apart.abs().le(1e-5 + b.float().abs() * 2**-14).all()
        for state, like in zip(ours.states, theirs.states, strict=True):
            for key in state.keys() - {"remainder"}:
                assert state[key].dtype == (torch.float32 if state[key].dim() else torch.float64)
                assert torch.allclose(state[key], like[key], rtol=1e-5, atol=1e-6)


@methods
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_counters_on_the_device_make_the_same_steps(method, tensor_lr):
    cases = (Case((4, 6), dp.GroupLasso(0.1)), Case((3,), None))
    host, device = Run(method, cases), Run(method, cases, capturable=True)
    fused, captured = host.fused(), device.fused()
    lr = torch.tensor(LR[method], device=DEVICE, dtype=torch.float64)
    if tensor_lr:
        device.set(lr=lr)
    for step in range(5):
        if step == 2:
            for run in (host, device):
                run.opt.restart()
                run.set(ramp=True, eps=1e-4)
            host.set(lr=LR[method] / 2)
            if tensor_lr:
                lr.mul_(0.5)
            else:
                device.set(lr=LR[method] / 2)
        grads: list[Any] = host.gradients(step)
        if step == 3:
            grads[1] = None
        fused.step(grads, host.opt.param_groups[0])
        captured.step(grads, device.opt.param_groups[0])
        assert_close(device, host, 1e-6)
    if host.opt.param_groups[0].get("stage_lr") is not None:
        assert host.opt.param_groups[0]["stage_lr"] == LR[method] / 2


@methods
@pytest.mark.parametrize("capturable", [False, True])
def test_zero_lr_and_missing_gradients_change_nothing(method, capturable):
    run = Run(method, (Case((4, 6), dp.GroupLasso(0.1)), Case((3,), None)), capturable=capturable)
    fused = run.fused()
    before = snapshot(run)
    run.set(lr=torch.zeros((), device=DEVICE))
    fused.step(run.gradients(0), run.opt.param_groups[0])
    run.set(lr=0.5)
    fused.step([None, None], run.opt.param_groups[0])
    assert_equal(snapshot(run), before)


@methods
def test_maximize_and_weight_decay_follow_eager(method):
    settings = {"weight_decay": 0.2, "betas": (0.5, 0.7)} if method == "prox_adamw" else {}
    cases = (Case((4, 6), dp.GroupLasso(0.1)), Case((3,), None))
    ours, theirs = (Run(method, cases, maximize=True, **settings) for _ in range(2))
    fused = ours.fused()
    for step in range(2):
        grads = ours.gradients(step)
        fused.step(grads, ours.opt.param_groups[0])
        theirs.step_eagerly(grads)
    assert_close(ours, theirs)


def test_words_written_for_a_graph_are_those_uploaded_otherwise(monkeypatch):
    cases = tuple(Case((2, 3), dp.GroupLasso(0.1)) for _ in range(9))
    runs = [Run("ramda", cases, capturable=True) for _ in range(2)]
    for run in runs:
        grads: list[Any] = run.gradients(0)
        grads[4] = None
        fused = run.fused()
        if run is runs[1]:
            monkeypatch.setattr(fused, "_is_capturing", lambda: True)
        fused.step(grads, run.opt.param_groups[0])
    assert_equal(snapshot(runs[0]), snapshot(runs[1]))
    assert runs[0].states[4]["step"] == 0 and runs[0].states[8]["step"] == 1


@methods
def test_zero_gradients_follow_eager(method):
    cases = (Case((4, 6), dp.GroupLasso(0.1)), Case((3, 5), dp.L1(0.1)), Case((3,), None))
    ours, theirs = Run(method, cases), Run(method, cases)
    fused = ours.fused()
    for _ in range(2):
        grads = ours.gradients(0, scale=0.0)
        fused.step(grads, ours.opt.param_groups[0])
        theirs.step_eagerly(grads)
    assert_close(ours, theirs)


@methods
@pytest.mark.parametrize("tiling", [None, SWEPT, SPLIT], ids=["resident", "swept", "split"])
def test_a_nan_stays_in_its_group_and_reaches_all_of_it(method, tiling):
    cases = (Case((4, 6), dp.GroupLasso(0.1)), Case((5, 3), dp.L1(0.1)))
    ours, theirs = Run(method, cases, tiling), Run(method, cases)
    grads = ours.gradients(0)
    for grad in grads:
        grad[2, 1] = math.nan
    ours.fused().step(grads, ours.opt.param_groups[0])
    theirs.step_eagerly(grads)
    for a, b in zip(ours.params, theirs.params, strict=True):
        assert torch.equal(a.isnan(), b.isnan())
    assert ours.params[0].isnan()[:, 1].all() and ours.params[0].isnan().sum() == 4


def test_a_norm_equal_to_the_threshold_is_dead():
    weight = torch.tensor([[3.0, 3.0], [4.0, 4.1]], device=DEVICE)
    penalty = dp.GroupLasso(5.0, size_weighted=False)
    cases = (Case((2, 2), penalty), Case((2, 2), dp.L1(4.0)))
    for run in (
        Run("prox_sgd", cases, lr=1.0),
        Run("prox_adamw", cases, lr=0.5, eps=0.5),
    ):
        for param in run.params:
            param.data.copy_(weight)
        run.fused().step(run.gradients(0, scale=0.0), run.opt.param_groups[0])
        assert (run.params[0] == 0).tolist() == [[True, False], [True, False]]
        assert (run.params[1] == 0).tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize("method", ["rmda", "ramda"])
def test_steps_follow_the_float64_oracle(method):
    case = Case((5, 7), dp.GroupLasso(0.3))
    run = Run(method, (case,), momentum=0.0)
    make = algorithms.RMDA if method == "rmda" else algorithms.RAMDA
    more = {} if method == "rmda" else {"eps": 1e-6}
    theirs = make(
        run.params[0].detach().double().cpu().numpy(),
        oracle("GroupLasso", strength=0.3, axis=1),
        LR[method],
        1.0,
        **more,
    )
    fused = run.fused()
    for step in range(5):
        grads = run.gradients(step)
        fused.step(grads, run.opt.param_groups[0])
        theirs.step(grads[0].double().cpu().numpy())
        ours = run.params[0].detach().double().cpu().numpy()
        assert np.abs(ours - theirs.w).max() <= 1e-5 * np.abs(theirs.w).max()
        assert ((ours == 0) == (theirs.w == 0)).all()


def test_a_gradient_laid_out_otherwise_is_read_right_and_not_written():
    case = Case((4, 6), dp.GroupLasso(0.1))
    ours, theirs = Run("ramda", (case,)), Run("ramda", (case,))
    grads = theirs.gradients(0)
    strided = [g.t().contiguous().t() for g in grads]
    ours.fused().step(strided, ours.opt.param_groups[0])
    theirs.step_eagerly(grads)
    assert_close(ours, theirs)
    assert_equal(strided, grads)


def test_what_has_no_triton_step_is_named():
    run = Run("prox_adamw", (Case((4, 6), None),))
    param, state = run.params[0].data, run.states[0]
    assert unsupported("prox_adamw", param, state, None) is None
    assert "float64" in str(unsupported("prox_adamw", param.double(), state, None))
    gap = torch.zeros(4, 12, device=DEVICE)[:, ::2]
    assert "laid out as a grid" in str(unsupported("prox_adamw", gap, state, None))
    turned = {**state, "exp_avg": state["exp_avg"].t().contiguous().t()}
    assert "not laid out like it" in str(unsupported("prox_adamw", param, turned, None))
    assert "amsgrad" in str(
        unsupported("prox_adamw", param, {**state, "max_exp_avg_sq": param}, None)
    )
    with pytest.raises(ValueError, match="not laid out like it"):
        TritonGroup("prox_adamw", [param], [turned], [None])


def test_replaced_tensors_do_not_fit():
    run = Run("rmda", (Case((4, 6), None),))
    fused = run.fused()
    assert fused.fits([p.data for p in run.params], run.states)
    run.states[0]["grad_sum"] = run.states[0]["grad_sum"].clone()
    assert not fused.fits([p.data for p in run.params], run.states)


def test_a_compiled_function_may_take_steps():
    ours, theirs = (Run("ramda", (Case((4, 6), dp.GroupLasso(0.1)),)) for _ in range(2))
    fused, grads = ours.fused(), ours.gradients(0)
    group = ours.opt.param_groups[0]
    torch.compile(lambda: fused.step(grads, group), backend="eager")()
    theirs.step_eagerly(grads)
    assert_close(ours, theirs)


@pytest.mark.gpu
@methods
def test_a_replayed_graph_takes_the_same_steps(method):
    if INTERPRETED:
        pytest.skip("CUDA graphs need a GPU")
    cases = (Case((40, 60), dp.GroupLasso(0.1)), Case((3,), None), Case((50, 8), dp.L1(0.1)))
    ours, theirs = (Run(method, cases, capturable=True) for _ in range(2))
    lr = torch.tensor(LR[method], device=DEVICE)
    for run in (ours, theirs):
        run.set(lr=lr)
    fused, plain, grads = ours.fused(), theirs.fused(), ours.gradients(0)
    group = ours.opt.param_groups[0]
    fused.step(grads, group)  # compiles
    plain.step(grads, group)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fused.step(grads, group)
    for step in range(4):
        if step == 2:
            lr.mul_(0.5)
            for run in (ours, theirs):
                run.opt.restart()
        for grad, new in zip(grads, ours.gradients(step), strict=True):
            grad.copy_(new)
        graph.replay()
        plain.step(grads, group)
        assert_equal(snapshot(ours), snapshot(theirs))


@methods
@pytest.mark.parametrize("tiling", [None, SWEPT, SPLIT], ids=["resident", "swept", "split"])
def test_subnormal_numbers_are_not_kept(method, tiling):
    cases = (Case((4, 6), dp.GroupLasso(0.1)), Case((5, 3), dp.L1(0.1)), Case((3,), None))
    settings: dict[str, Any] = {"betas": (0.5, 0.7)} if method == "prox_adamw" else {}
    run = Run(method, cases, tiling, **settings)
    for param in run.params:
        param.data.fill_(3e-39)
    fused = run.fused()
    for _ in range(2):
        fused.step(run.gradients(0, scale=1e-39), run.opt.param_groups[0])
        for tensor in snapshot(run):
            numbers = torch.finfo(tensor.dtype)
            assert not ((tensor != 0) & (tensor.abs() < numbers.tiny)).any()
