"""Who is stepped by the native kernels, who is refused, and what outlives a change of tensors."""

import copy
import io
from typing import Any

import pytest
import torch

import dualprox as dp
from contracts import OPTIMIZERS, assert_same, grouped, run, small_problem, snapshot
from dualprox.geometry import Slices
from dualprox.kernels import native
from dualprox.kernels.grid import Grid, grid_of

_WHY_NOT = native.why_unavailable()
pytestmark = pytest.mark.skipif(_WHY_NOT is not None, reason=f"native kernels {_WHY_NOT}")
every = pytest.mark.parametrize("maker", OPTIMIZERS, ids=str)


def problem(maker, impl="native", dtype=torch.float32, **settings):
    params, set_gradients = small_problem(dtype)
    return params, maker(grouped(params), impl=impl, **settings), set_gradients


def assert_close(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a == 0, b == 0)
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


@every
def test_zero_lr_changes_nothing(maker):
    params, opt, set_gradients = problem(maker)
    run(opt, set_gradients, range(2))
    before = [*(p.detach().clone() for p in params), *snapshot(opt)]
    for group in opt.param_groups:
        group["lr"] = 0.0
    run(opt, set_gradients, range(2))
    assert_same([*(p.detach() for p in params), *snapshot(opt)], before)


@every
def test_a_parameter_without_gradient_is_left_alone(maker):
    results = []
    for impl in ("native", "eager"):
        params, opt, set_gradients = problem(maker, impl)
        for step in range(4):
            set_gradients(step)
            before = params[2].detach().clone()
            if step % 2:
                params[2].grad = None
            opt.step()
            assert step % 2 == 0 or torch.equal(params[2], before)
        results.append([p.detach() for p in params])
        assert opt.state[params[2]]["step"] == 2 and opt.state[params[0]]["step"] == 4
    assert_close(*results)


def strided(grad: torch.Tensor) -> torch.Tensor:
    order = list(reversed(range(grad.dim())))
    return grad.permute(order).contiguous().permute(order)


GRADIENTS = {
    "other strides": strided,
    "expanded": lambda g: g.flatten()[0].expand(g.shape),
    "with gaps": lambda g: torch.stack([g, g], -1)[..., 0],
    "lazily negated": lambda g: torch._neg_view(g),  # pyright: ignore[reportPrivateImportUsage]
}


@every
@pytest.mark.parametrize("kind", GRADIENTS)
def test_gradients_laid_out_otherwise_are_read_right_and_not_written(maker, kind):
    results = []
    for impl in ("native", "eager"):
        params, opt, set_gradients = problem(maker, impl)
        set_gradients(0)
        for p in params:
            assert p.grad is not None
            p.grad = GRADIENTS[kind](p.grad)
        before = [p.grad.clone() for p in params if p.grad is not None]
        opt.step()
        assert_same([p.grad for p in params if p.grad is not None], before)
        results.append([p.detach() for p in params])
    assert_close(*results)


@every
def test_a_step_between_forward_and_backward_is_noticed(maker):
    (matrix, *_), opt, set_gradients = problem(maker)
    set_gradients(0)
    loss = matrix.square().sum()
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@every
def test_save_load_continue_is_bitwise_equal(maker):
    params, opt, set_gradients = problem(maker)
    run(opt, set_gradients, range(3))
    file = io.BytesIO()
    torch.save({"opt": opt.state_dict(), "params": params}, file)
    file.seek(0)
    straight = run(opt, set_gradients, range(3, 6))
    others, other, set_others = problem(maker)
    run(other, set_others, range(1))  # has a plan that loading must replace
    saved = torch.load(file, weights_only=True)
    other.load_state_dict(saved["opt"])
    for p, q in zip(others, saved["params"], strict=True):
        p.data.copy_(q)
    assert_same(run(other, set_others, range(3, 6)), straight)
    assert_same(snapshot(other), snapshot(opt))


def replace_data(opt, params):
    for p in params:
        p.data = p.data.clone()


def replace_state(opt, params):
    for p in params:
        for key in opt.state[p]:
            opt.state[p][key] = opt.state[p][key].clone()


def replace_state_data(opt, params):
    for p in params:
        for value in opt.state[p].values():
            value.data = value.data.clone()


def reload_state(opt, params):
    opt.load_state_dict(copy.deepcopy(opt.state_dict()))


def to_bfloat16_and_back(opt, params):
    """The memory of before, most likely, under another dtype in between."""
    for p in params:
        p.data = p.data.bfloat16()
        p.grad = None
    for p in params:
        p.data = p.data.float()


CHANGES = (replace_data, replace_state, replace_state_data, reload_state, to_bfloat16_and_back)


@every
@pytest.mark.parametrize("change", CHANGES)
def test_tensors_replaced_between_steps_are_followed(maker, change):
    results = []
    for impl in ("native", "eager"):
        params, opt, set_gradients = problem(maker, impl)
        for step in range(4):
            run(opt, set_gradients, range(step, step + 1))
            change(opt, params)
        results.append([*(p.detach() for p in params), *snapshot(opt)])
    assert_close(*results)


@every
def test_memory_reused_with_another_dtype_or_layout_is_noticed(maker):
    w = torch.nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))
    opt = maker([{"params": [w], "penalty": dp.GroupLasso(0.01)}], impl="native")
    kernel: Any = native.NativeGroup(maker.make.kernel, [w], [opt.state[w]], [None])
    assert kernel.fits([w], [opt.state[w]])
    place = w.data_ptr()
    w.data = w.data.t()
    assert w.data_ptr() == place and not kernel.fits([w], [opt.state[w]])


@every
def test_dtypes_may_differ_within_a_group(maker):
    results = []
    for impl in ("auto", "eager"):
        params = [
            torch.nn.Parameter(torch.linspace(-1, 1, 12, dtype=d).view(3, 4))
            for d in (torch.float32, torch.bfloat16, torch.float64, torch.float32, torch.bfloat16)
        ]
        opt = maker([{"params": params, "penalty": dp.GroupLasso(0.05)}], impl=impl)
        for _ in range(3):
            for p in params:
                p.grad = p.detach() - 0.3
            opt.step()
        results.append([p.detach().float() for p in params])
        assert all(opt.state[p]["step"] == 3 for p in params)
        assert len(opt.solver_report()) == 5
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=2**-7)


REFUSED = {
    "float64": ({"dtype": torch.float64}, {}, "it is torch.float64"),
    "certify": ({}, {"certify": True}, "certify"),
    "nuclear norm": ({}, {"penalty": dp.NuclearNorm(0.1)}, "NuclearNorm has no fused step"),
    "gaps": ({"gaps": True}, {}, "do not lie in a grid"),
    "state": ({"state": torch.float16}, {}, "its state"),
    "counter": ({"counter": torch.float32}, {}, "its state step"),
    "amsgrad": ({}, {"amsgrad": True}, "amsgrad"),
    "solver": ({}, {"solver": dp.ProximalGradient()}, "ProximalGradient"),
}


@pytest.mark.parametrize(
    ("maker", "what"),
    [
        pytest.param(maker, what, id=f"{maker}-{what}")
        for maker in OPTIMIZERS
        for what in REFUSED
        if what not in ("amsgrad", "solver") or what in maker([torch.zeros(1)]).defaults
    ],
)
def test_what_native_cannot_step_is_named_before_anything_has_moved(maker, what):
    tensors, settings, reason = REFUSED[what]
    ok = torch.nn.Parameter(torch.ones(3, 4))
    bad = torch.nn.Parameter(torch.ones(3, 4, dtype=tensors.get("dtype")))
    if "gaps" in tensors:
        bad = torch.nn.Parameter(torch.ones(3, 8)[:, ::2])
    options = {k: v for k, v in settings.items() if k == "certify"}
    group = {k: v for k, v in settings.items() if k != "certify"}
    penalty = group.pop("penalty", dp.GroupLasso(0.1))
    params = [
        {"params": [("fine", ok)], "penalty": dp.GroupLasso(0.1)},
        {"params": [("awkward", bad)], "penalty": penalty, **group},
    ]
    opt = maker(params, impl="native", **options)
    state = opt.state[bad]
    name = list(state)[-1]
    if "state" in tensors:
        state[name] = state[name].half()
        state["step"].fill_(1)  # or it would be made anew
    if "counter" in tensors:
        state["step"] = state["step"].float()
    for p in (ok, bad):
        p.grad = torch.ones_like(p)
    before = [ok.detach().clone(), bad.detach().clone(), *snapshot(opt)]
    culprit = "fine" if what == "certify" else "awkward"
    with pytest.raises(RuntimeError, match=f"cannot step parameter {culprit}: .*{reason}"):
        opt.step()
    assert_same([ok.detach(), bad.detach(), *snapshot(opt)], before)


def test_a_subclass_that_overrides_update_is_never_fused():
    class Still(dp.RMDA):
        def update(self, param, grad, state, group, lr):
            state["step"] += 1

    w = torch.nn.Parameter(torch.ones(3))
    w.grad = torch.ones(3)
    opt = Still([w], impl="auto")
    opt.step()
    assert torch.equal(w, torch.ones(3)) and opt.state[w]["step"] == 1
    with pytest.raises(RuntimeError, match="class has no fused step"):
        Still([w], impl="native").step()


def test_a_penalty_that_overrides_its_prox_is_never_fused():
    class Doubled(dp.GroupLasso):
        def prox(self, w, step):
            return super().prox(w, 2 * step)

    results = []
    for impl in ("auto", "eager"):
        w = torch.nn.Parameter(torch.ones(3, 2))
        w.grad = torch.zeros(3, 2)
        dp.ProxSGD([{"params": [w], "penalty": Doubled(0.5)}], lr=0.1, impl=impl).step()
        results.append(w.detach())
    assert_same(results[:1], results[1:])
    with pytest.raises(RuntimeError, match="Doubled has no fused step"):
        dp.ProxSGD([{"params": [w], "penalty": Doubled(0.5)}], impl="native").step()


def test_an_axis_of_length_one_has_a_grid_whatever_its_stride():
    weight = torch.empty(1, 6, 3).transpose(0, 1)
    assert weight.stride() == (3, 18, 1)
    assert grid_of(weight, Slices(axis=1, conv_groups=2)) == Grid(1, 1, 2, 9)
