"""A step over bundles of parameters is the step of each parameter, bit by bit."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dualprox as dp
from contracts import OPTIMIZERS, assert_same, snapshot
from dualprox.optim import bundle

every = pytest.mark.parametrize("maker", OPTIMIZERS, ids=str)
SHAPES = [(7, 5), (7,), (), (3, 4, 2, 2), (9, 5), (0, 3), (11,), (6, 4), (40, 30)]
PENALTIES = [
    None,
    dp.L1(0.02),
    dp.ElasticNet(0.02),
    dp.GroupLasso(0.02),
    dp.SparseGroupLasso(0.02, axis=0),
    dp.NuclearNorm(0.05),
]


def alone(maker: Any) -> Any:
    """The optimizer as a user's subclass, whose update gets one parameter at a time."""
    return type("Alone", (maker.make,), {})


def groups_of(penalty: dp.Penalty | None, dtype: torch.dtype) -> list[dict[str, Any]]:
    """All shapes without penalty, and those of two axes or more with it."""
    generator = torch.Generator().manual_seed(3)
    params = [
        torch.nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype))
        for s in SHAPES
    ]
    many = [p for p in params if p.dim() > 1 and p.numel()]
    few = [p for p in params if not (p.dim() > 1 and p.numel())]
    return [{"params": many, "penalty": penalty}, {"params": few}]


def train(opt: dp.ProximalOptimizer, dtype: torch.dtype) -> list[torch.Tensor]:
    """Steps with missing gradients, other strides, and a restart of some parameters alone."""
    params = [p for _, p, _ in opt.named_params()]
    for step in range(7):
        noise = torch.Generator().manual_seed(step)
        for index, p in enumerate(params):
            p.grad = torch.randn(p.shape, generator=noise, dtype=torch.float64).to(dtype)
            if (index + step) % 6 == 5:
                p.grad = None
            elif p.dim() == 2 and index % 2:
                p.grad = p.grad.t().contiguous().t()
        if step == 4:
            for p in params[::2]:
                if "restart" in opt.state[p]:
                    opt.state[p]["restart"].fill_(1)
        opt.step()
    points = [opt.structured_point(p) for p in params] if dtype != torch.float16 else []
    return [*(p.detach() for p in params), *points, *snapshot(opt)]


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
def test_bundles_step_as_parameters_alone_do(maker, penalty, dtype, monkeypatch):
    monkeypatch.setattr(bundle, "_MOST_BYTES", {"cpu": 500})  # 125 entries: three bundles or more
    settings: dict[str, Any] = {"impl": "eager", "maximize": dtype == torch.float32}
    results = []
    for make in (maker, alone(maker)):
        opt = make(groups_of(penalty, dtype), lr=maker.lr, **settings)
        results.append(train(opt, dtype))
        reports = opt.solver_report()
        assert len(reports) == (0 if penalty is None else 5)
    assert_same(*results)


@pytest.mark.parametrize(
    "settings", [{"amsgrad": True}, {"certify": True}, {"ramp": True}], ids=str
)
@pytest.mark.parametrize("solver", [None, dp.ProximalGradient()], ids=repr)
def test_bundles_keep_to_every_setting(settings, solver):
    make = dp.RAMDA if "ramp" in settings else dp.ProxAdamW
    results, reports = [], []
    for kind in (make, type("Alone", (make,), {})):
        groups = groups_of(dp.L1(0.02), torch.float32)
        settings_of_groups = {k: settings[k] for k in settings if k == "ramp"}
        groups = [{**group, **settings_of_groups} for group in groups]
        options = {k: settings[k] for k in settings if k != "ramp"}
        opt = kind(groups, lr=0.05, impl="eager", solver=solver, **options)
        results.append(train(opt, torch.float32))
        reports.append(opt.solver_report())
    assert_same(*results)
    assert reports[0] == reports[1] and len(reports[0]) == 5


@every
def test_a_subclass_is_asked_for_every_parameter(maker):
    seen = []

    class Mine(maker.make):
        def update(self, param, grad, state, group, lr):
            assert isinstance(param, torch.nn.Parameter) and isinstance(grad, torch.Tensor)
            seen.append(param)
            super().update(param, grad, state, group, lr)

    groups = groups_of(None, torch.float32)
    opt = Mine(groups, lr=maker.lr)
    for p in (params := [p for _, p, _ in opt.named_params()]):
        p.grad = torch.ones_like(p)
    opt.step()
    assert len(seen) == len(params) and all(a is b for a, b in zip(seen, params, strict=True))


@every
def test_a_step_launches_the_same_few_operations_for_any_number_of_parameters(maker):
    counts = []
    for many in (2, 40):
        params = [torch.nn.Parameter(torch.ones(8)) for _ in range(many)]
        opt = maker([{"params": params, "penalty": dp.L1(0.1)}], impl="eager")
        for p in params:
            p.grad = torch.ones_like(p)
        opt.step()
        with Launches() as launches:
            opt.step()
        counts.append(launches.count)
    assert counts[0] == counts[1] <= 21


class Launches(TorchDispatchMode):
    """Counts the operations on tensors that are not counters."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = tree_leaves((args, kwargs or {}))
        self.count += any(isinstance(t, torch.Tensor) and t.dim() > 0 for t in tensors)
        return func(*args, **(kwargs or {}))


def test_bundles_stay_small_and_share_counters():
    params = [torch.nn.Parameter(torch.ones(n)) for n in (10, 10**6, 60_000, 10, 10, 60_000)]
    opt = dp.RMDA(params)
    for p in params:
        p.grad = torch.ones_like(p)
    states = [opt.ready_state(p) for p in params]
    together = [*bundle.bundles(params, states, opt.counters)]
    assert together == [[1], [0, 2, 3, 4], [5]]
    opt.state[params[3]]["step"] += 1
    together = [*bundle.bundles(params, states, opt.counters)]
    assert together == [[1], [0, 2, 4], [5], [3]]
