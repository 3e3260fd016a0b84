"""For every public name how it is called well, so that a test can spoil one argument."""

import copy
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import dualprox as dp

Given = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """A public function or class, and arguments that it takes.

    Args:
        call: what is called.
        given: makes its arguments, new ones each time; of a folder, those that write to it.
        may_raise: exceptions that its docstring has besides ValueError and TypeError.
        is_slow: takes longer than a few milliseconds.
    """

    call: Callable[..., Any]
    given: Callable[[Path], Given]
    may_raise: tuple[type[Exception], ...] = ()
    is_slow: bool = False


def _net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


def _x() -> torch.Tensor:
    return torch.ones(2, 4)


def _params() -> list[dict[str, Any]]:
    return [{"params": [nn.Parameter(torch.ones(2, 2))], "penalty": dp.GroupLasso(0.1)}]


def _opt() -> dp.RMDA:
    (group,) = _params()
    group["params"][0].grad = torch.ones(2, 2)
    opt = dp.RMDA([group])
    opt.step()
    return opt


def _trained() -> tuple[nn.Module, dp.RMDA]:
    return copy.deepcopy(_trained_once())


@functools.cache
def _trained_once() -> tuple[nn.Module, dp.RMDA]:
    model = _net()
    opt = dp.RMDA(dp.param_groups(model, dp.GroupLasso(0.1), coupled=True, example_input=_x()))
    model(_x()).sum().backward()
    opt.step()
    return model, opt


def _loader() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(_x(), torch.tensor([0, 1]))]


def _shrink_training(_: Path) -> Given:
    model, opt = _trained()
    return {"model": model, "opt": opt, "example_input": _x(), "round_to": 1, "select_inputs": True}


def _narrow(_: Path) -> Given:
    model, opt = _trained()
    return {"opt": opt, "model": model, "slim": dp.apply_plan(model, dp.Plan()), "plan": dp.Plan()}


def _size_control(_: Path) -> Given:
    model, opt = _trained()
    settings = {"ramp_steps": 2, "hold_from": 8, "steer_until": 4, "every": 2}
    flags = {"balance": True, "select_inputs": False, "narrow_norms": False}
    target = dp.TargetSize(params=0.9)
    return dict(opt=opt, model=model, target=target, example_input=_x(), **settings, **flags)


def _rigl(_: Path) -> Given:
    model = _net()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = dict(delta_t=2, drop_fraction=0.3, distribution="erk", dense_first=False, seed=0)
    return dict(optimizer=opt, model=model, sparsity=0.5, t_end=9, **settings)


@functools.cache
def _slim() -> nn.Module:
    return dp.shrink(_net(), _x(), latency=False)


def _slim_folder(folder: Path) -> Given:
    dp.save_slim(_slim(), folder)
    return {"model": _net(), "folder": folder}


def _fit(_: Path) -> Given:
    settings = dict(lr=0.1, momentum=0.9, warmup=0.1, search=0.5, refit_lr=0.1, weight_decay=0.0)
    kinds = dict(optimizer="rmda", refit_optimizer="sgd", loss=nn.functional.cross_entropy)
    flags = dict(refit=True, select_inputs=False, latency=False, progress=False, narrow_norms=None)
    others = dict(example_input=_x(), penalty=dp.GroupLasso(1.0), round_to=1, watch=None)
    target = dp.TargetSize(params=0.9)
    needed = dict(model=_net(), loader=_loader(), epochs=2, target=target)
    return dict(**needed, **settings, **kinds, **flags, **others)


_COMMON = dict(maximize=False, impl="eager", foreach=None, fused=None, capturable=False)
_COMMON |= dict(differentiable=False, certify=False)
_GROUPS = dict(axis=1, size_weighted=True, block=1, conv_groups=1)
_MEASURED = dict(latency=False, batch_sizes=(1,), seconds=0.01)
_FEATURES = dict(in_features=32, out_features=8, bias=True, device="cpu", dtype=torch.float32)
_CHANGE = {"change": "factorize", "layers": {"0": {"rank": 1, "rows": "out"}}}
_CSR = {"change": "sparsify", "layers": {"0": {"format": "CSR", "nonzeros": 3}}}
_MEMBER = dp.Member((2, 2), dp.Slices(), (0, 1))
_TRACED = (dp.ShrinkError,)

CALLS: dict[str, Call] = {
    "L0": Call(dp.L0, lambda _: {"strength": 0.1}),
    "L1": Call(dp.L1, lambda _: {"strength": 0.1}),
    "MCP": Call(dp.MCP, lambda _: dict(strength=0.1, gamma=3.0, concavity=1.0)),
    "SCAD": Call(dp.SCAD, lambda _: dict(strength=0.1, gamma=3.7, concavity=1.0)),
    "ElasticNet": Call(dp.ElasticNet, lambda _: dict(strength=0.1, l1_ratio=0.5)),
    "GroupLasso": Call(dp.GroupLasso, lambda _: dict(strength=0.1, **_GROUPS)),
    "GroupHalf": Call(dp.GroupHalf, lambda _: dict(strength=0.1, **_GROUPS)),
    "GroupL0": Call(dp.GroupL0, lambda _: dict(strength=0.1, **_GROUPS)),
    "GroupMCP": Call(
        dp.GroupMCP, lambda _: dict(strength=0.1, **_GROUPS, gamma=3.0, concavity=1.0)
    ),
    "GroupSCAD": Call(
        dp.GroupSCAD, lambda _: dict(strength=0.1, **_GROUPS, gamma=3.7, concavity=1.0)
    ),
    "SparseGroupLasso": Call(
        dp.SparseGroupLasso, lambda _: dict(strength=0.1, **_GROUPS, l1_ratio=0.5)
    ),
    "NuclearNorm": Call(dp.NuclearNorm, lambda _: {"strength": 0.1}),
    "RankAtMost": Call(dp.RankAtMost, lambda _: {"rank": 1}),
    "Box": Call(dp.Box, lambda _: dict(lower=-1.0, upper=1.0)),
    "NonNegative": Call(dp.NonNegative, lambda _: {}),
    "L2Ball": Call(dp.L2Ball, lambda _: {"radius": 1.0}),
    "Cardinality": Call(dp.Cardinality, lambda _: {"k": 1}),
    "Coupled": Call(
        dp.Coupled, lambda _: dict(penalty=dp.GroupLasso(0.1), coupling=dp.Coupling((_MEMBER,)))
    ),
    "Coupling": Call(
        dp.Coupling, lambda _: dict(members=(_MEMBER,), counted=(2, 2), weights=(1.0, 1.0))
    ),
    "Member": Call(dp.Member, lambda _: dict(shape=(2, 2), slices=dp.Slices(), groups=(0, 1))),
    "Slices": Call(dp.Slices, lambda _: dict(axis=1, block=1, conv_groups=1)),
    "Exact": Call(dp.Exact, lambda _: {}),
    "NewtonRaphson": Call(dp.NewtonRaphson, lambda _: dict(max_iter=9, tol=1e-7)),
    "ProximalGradient": Call(
        dp.ProximalGradient, lambda _: dict(max_iter=9, rtol=1e-8, min_iter=2, tol=None)
    ),
    "RMDA": Call(dp.RMDA, lambda _: dict(params=_params(), lr=0.1, momentum=0.9, **_COMMON)),
    "RAMDA": Call(
        dp.RAMDA,
        lambda _: dict(params=_params(), lr=0.1, momentum=0.9, eps=1e-6, solver=None, **_COMMON),
    ),
    "ProxSGD": Call(dp.ProxSGD, lambda _: dict(params=_params(), lr=0.1, momentum=0.9, **_COMMON)),
    "ProxAdamW": Call(
        dp.ProxAdamW,
        lambda _: dict(
            params=_params(),
            lr=0.1,
            betas=(0.9, 0.99),
            eps=1e-8,
            weight_decay=0.1,
            amsgrad=False,
            solver=None,
            **_COMMON,
        ),
    ),
    "RigL": Call(dp.RigL, _rigl),
    "FrozenSupport": Call(
        dp.FrozenSupport,
        lambda _: dict(
            params={"w": nn.Parameter(torch.ones(2, 2))}, dead={"w": torch.eye(2).bool()}
        ),
    ),
    "StageSchedule": Call(
        dp.StageSchedule,
        lambda _: dict(
            optimizer=dp.RMDA([{**_params()[0], "penalty": dp.GroupMCP(0.1)}]),
            milestones=[1, 2],
            gamma=0.1,
            ramp=True,
            refit=True,
            refit_gamma=0.5,
            concavity=[0.0, 0.5, 1.0],
        ),
    ),
    "gather_": Call(dp.gather_, lambda _: dict(into=_net(), model=_net())),
    "nonfinite_gradients": Call(dp.nonfinite_gradients, lambda _: {"opt": _opt()}),
    "StructureMonitor": Call(dp.StructureMonitor, lambda _: {"opt": _opt()}),
    "structure": Call(dp.structure, lambda _: dict(opt=_opt(), at="structured")),
    "strengths": Call(dp.strengths, lambda _: {"opt": _opt()}),
    "set_strength": Call(dp.set_strength, lambda _: dict(opt=_opt(), strength=0.1)),
    "scale_strength": Call(dp.scale_strength, lambda _: dict(opt=_opt(), factor=0.1)),
    "set_concavity": Call(
        dp.set_concavity,
        lambda _: dict(opt=dp.RMDA([{**_params()[0], "penalty": dp.GroupMCP(0.1)}]), concavity=0.5),
    ),
    "param_groups": Call(
        dp.param_groups,
        lambda _: dict(
            model=_net(),
            penalty=dp.GroupLasso(0.1),
            by="input",
            include=["*"],
            exclude=(),
            axes=None,
            heads=False,
            coupled=False,
            example_input=None,
            select_inputs=False,
            narrow_norms=False,
        ),
        _TRACED,
    ),
    "TargetSize": Call(
        dp.TargetSize,
        lambda _: dict(
            params=0.5,
            macs=None,
            latency_ms=None,
            weighted_group_sparsity=None,
            batch_size=1,
            at_least={"*": 0.1},
            at_most={"*": 0.9},
            tolerance=0.03,
        ),
    ),
    "SizeControl": Call(dp.SizeControl, _size_control, _TRACED, True),
    "fit": Call(dp.fit, _fit, _TRACED, True),
    "strength_max": Call(
        dp.strength_max,
        lambda _: dict(
            model=_net(), loader=_loader(), penalty=dp.L1(1.0), loss=nn.functional.cross_entropy
        ),
    ),
    "shrink": Call(
        dp.shrink,
        lambda _: dict(
            model=_net(),
            example_input=_x(),
            round_to=2,
            lossy=True,
            select_inputs=False,
            narrow_norms=False,
            latency=False,
            batch_sizes=(1,),
        ),
        _TRACED,
        True,
    ),
    "shrink_training": Call(dp.shrink_training, _shrink_training, _TRACED, True),
    "narrow_": Call(dp.narrow_, _narrow, (), True),
    "apply_plan": Call(dp.apply_plan, lambda _: dict(model=_net(), plan=dp.Plan())),
    "Plan": Call(
        dp.Plan, lambda _: dict(keep={}, attributes={}, biases=(), attention=(), select={})
    ),
    "factorize": Call(
        dp.factorize,
        lambda _: dict(model=_net(), example_input=_x(), **_MEASURED),
        (RuntimeError,),
        True,
    ),
    "factorize_like": Call(dp.factorize_like, lambda _: dict(model=_net(), plan=_CHANGE)),
    "sparsify": Call(
        dp.sparsify,
        lambda _: dict(model=_net(), example_input=_x(), faster_only=True, **_MEASURED),
        (RuntimeError,),
        True,
    ),
    "sparsify_like": Call(dp.sparsify_like, lambda _: dict(model=_net(), plan=_CSR)),
    "measure": Call(dp.measure, lambda _: dict(model=_net(), example_input=_x(), **_MEASURED)),
    "compare": Call(
        dp.compare, lambda _: dict(before=_net(), after=_net(), example_input=_x(), **_MEASURED)
    ),
    "Footprint": Call(
        dp.Footprint, lambda _: dict(model=_net(), example_input=_x(), selected=()), _TRACED, True
    ),
    "report_of": Call(dp.report_of, lambda _: {"model": copy.deepcopy(_slim())}),
    "save_slim": Call(
        dp.save_slim,
        lambda folder: dict(slim=copy.deepcopy(_slim()), folder=folder),
        (OSError,),
        True,
    ),
    "load_slim": Call(dp.load_slim, _slim_folder, (OSError,), True),
    "export_program": Call(
        dp.export_program, lambda _: dict(model=_net(), example_input=_x()), _TRACED, True
    ),
    "save_program": Call(
        dp.save_program,
        lambda folder: dict(model=_net(), example_input=_x(), path=folder.parent / "x.pt2"),
        (*_TRACED, OSError),
        True,
    ),
    "save_onnx": Call(
        dp.save_onnx,
        lambda folder: dict(model=_net(), example_input=_x(), path=folder.parent / "x.onnx"),
        (*_TRACED, OSError, ImportError),
        True,
    ),
    "LowRank": Call(dp.LowRank, lambda _: dict(layer=nn.Linear(4, 3), rank=1, rows="out")),
    "SparseLinear": Call(dp.SparseLinear, lambda _: dict(nonzeros=3, **_FEATURES)),
    "SemiStructuredLinear": Call(dp.SemiStructuredLinear, lambda _: dict(_FEATURES)),
    "SelectLinear": Call(
        dp.SelectLinear,
        lambda _: dict(
            of_features=4,
            out_features=2,
            index=[0, 2],
            bias=True,
            device="cpu",
            dtype=torch.float32,
        ),
    ),
    "NarrowAttention": Call(
        dp.NarrowAttention, lambda _: {"attention": nn.MultiheadAttention(4, 2)}
    ),
}

# What the library makes and hands out: records, which hold whatever they are made of.
RECORDS = {
    "Cost", "Faces", "Fit", "Latency", "LayerChange", "NetworkStructure", "ParamGroups", "Rank",
    "ShrinkError", "ShrinkReport", "SizeRecord", "Solution", "SolveReport", "StructureRecord",
    "Subproblem", "Support",
}  # fmt: skip


def abstract(name: str) -> bool:
    """Whether a public name is a class to write others from."""
    return inspect.isabstract(getattr(dp, name))
