"""The tables that the laws run over: a new penalty or optimizer adds one row here."""

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

import dualprox as dp


@dataclass(frozen=True)
class Law:
    """A penalty and what the laws need to know of it.

    Args:
        penalty: the object under test.
        shape: of the tensors to try it on; small, so that many can be tried.
        is_constraint: its value is 0 or infinity, and the step does not matter.
        is_local: whether a NaN stays within its own entry or group.
    """

    penalty: dp.Penalty
    shape: tuple[int, ...] = (4, 6)
    is_constraint: bool = False
    is_local: bool = True

    def __str__(self) -> str:
        return str(self.penalty)


# Uneven groups: 0 in two tensors, 1 twice in one of them, 3 in one alone, and free slices.
MEMBERS = (
    ((3, 4), 1, 1, 1, (0, 1, -1, 2)),
    ((4, 2, 2), 1, 1, 2, (1, 3, 0, 1)),
    ((4, 3), 0, 2, 1, (2, -1)),
)


def coupling_of(members: Iterable[Any]) -> dp.Coupling:
    """The coupling of members given as the oracles take them."""
    return dp.Coupling(
        tuple(
            dp.Member(shape, dp.Slices(axis, block, conv_groups), groups)
            for shape, axis, block, conv_groups, groups in members
        )
    )


LAWS = (
    Law(dp.L1(0.7)),
    Law(dp.ElasticNet(0.8, l1_ratio=0.6)),
    Law(dp.GroupLasso(0.4)),
    Law(dp.GroupLasso(0.5, axis=0, size_weighted=False)),
    Law(dp.GroupLasso(0.3, axis=-2, block=2)),
    Law(dp.GroupLasso(0.4, axis=1, conv_groups=2), shape=(4, 3, 2)),
    Law(dp.SparseGroupLasso(0.5, l1_ratio=0.4)),
    Law(dp.SparseGroupLasso(0.5, axis=0, block=2, l1_ratio=0.7)),
    Law(dp.NuclearNorm(0.6), is_local=False),
    Law(dp.NuclearNorm(0.6), shape=(3, 2, 2), is_local=False),
    Law(dp.MCP(0.8, gamma=2.5)),
    Law(dp.SCAD(0.8, gamma=3.2)),
    Law(dp.L0(0.6)),
    Law(dp.GroupMCP(0.5, gamma=2.0)),
    Law(dp.GroupMCP(0.6, axis=0, size_weighted=False, gamma=1.3)),
    Law(dp.MCP(0.8, concavity=0.0)),
    Law(dp.SCAD(0.8, concavity=0.4)),
    Law(dp.GroupMCP(0.5, gamma=2.0, concavity=0.0)),
    Law(dp.GroupSCAD(0.4, gamma=2.6)),
    Law(dp.GroupSCAD(0.6, axis=0, size_weighted=False, gamma=1.2)),
    Law(dp.GroupSCAD(0.4, conv_groups=2, concavity=0.5), shape=(4, 3, 2)),
    Law(dp.GroupL0(0.3)),
    Law(dp.GroupL0(0.7, axis=0, size_weighted=False)),
    Law(dp.GroupHalf(0.3)),
    Law(dp.GroupHalf(0.7, axis=0, size_weighted=False, block=2)),
    Law(dp.Coupled(dp.GroupLasso(0.4), coupling_of(MEMBERS)), shape=(40,)),
    Law(dp.Coupled(dp.SparseGroupLasso(0.5, l1_ratio=0.4), coupling_of(MEMBERS)), shape=(40,)),
    Law(dp.Coupled(dp.GroupMCP(0.5, gamma=2.0), coupling_of(MEMBERS)), shape=(40,)),
    Law(dp.Coupled(dp.GroupSCAD(0.4, gamma=2.6), coupling_of(MEMBERS)), shape=(40,)),
    Law(dp.Coupled(dp.GroupL0(0.3), coupling_of(MEMBERS)), shape=(40,)),
    Law(dp.Coupled(dp.GroupHalf(0.3), coupling_of(MEMBERS)), shape=(40,)),
    Law(dp.Box(-0.4, 0.9), is_constraint=True),
    Law(dp.NonNegative(), is_constraint=True),
    Law(dp.L2Ball(1.5), is_constraint=True, is_local=False),
    Law(dp.Cardinality(5), is_constraint=True, is_local=False),
    Law(dp.RankAtMost(2), is_constraint=True, is_local=False),
)
CONVEX = tuple(law for law in LAWS if law.penalty.is_convex)
DIAGONAL = tuple(law for law in LAWS if isinstance(law.penalty, dp.DiagonalPenalty))

Params = list[dict[str, Any]]


@dataclass(frozen=True)
class Maker:
    """How an optimizer is made, and whether it averages structured points.

    Args:
        make: from param groups and keyword settings.
        lr: a sensible learning rate for the small problems of the tests.
        averages: whether it is RMDA or RAMDA.
    """

    make: Callable[..., dp.ProximalOptimizer]
    lr: float
    averages: bool

    def __str__(self) -> str:
        return getattr(self.make, "__name__", "optimizer")

    def __call__(self, params: Any, **settings: Any) -> dp.ProximalOptimizer:
        """The optimizer with its learning rate for tests, unless given another."""
        return self.make(params, **{"lr": self.lr, **settings})


OPTIMIZERS = (
    Maker(dp.RMDA, 0.1, averages=True),
    Maker(dp.RAMDA, 0.02, averages=True),
    Maker(dp.ProxSGD, 0.1, averages=False),
    Maker(dp.ProxAdamW, 0.05, averages=False),
)


def small_problem(
    dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[list[torch.nn.Parameter], Callable[[int], None]]:
    """A matrix, a vector and a kernel, and a function that sets their gradients for step t."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(5, 6), (5,), (3, 4, 2, 2)]
    params = [
        torch.nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype))
        for s in shapes
    ]
    targets = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]

    def set_gradients(step: int) -> None:
        noise = torch.Generator().manual_seed(1000 * seed + step)
        for param, target in zip(params, targets, strict=True):
            random = torch.randn(param.shape, generator=noise, dtype=torch.float64)
            param.grad = (param.detach().double() - target + 0.1 * random).to(dtype)

    return params, set_gradients


def grouped(params: list[torch.nn.Parameter], strength: float = 0.05) -> Params:
    """Param groups: the matrix and the kernel by inputs, the vector free."""
    matrix, vector, kernel = params
    return [
        {"params": [matrix, kernel], "penalty": dp.GroupLasso(strength)},
        {"params": [vector]},
    ]


def run(
    opt: torch.optim.Optimizer, set_gradients: Callable[[int], None], steps: range
) -> list[torch.Tensor]:
    """Take the steps; copies of all parameters afterwards."""
    for step in steps:
        set_gradients(step)
        opt.step()
    return [p.detach().clone() for group in opt.param_groups for p in group["params"]]


def assert_same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    """Bitwise equality of two lists of tensors."""
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


def snapshot(opt: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Copies of all state tensors."""
    return [t.clone() for state in opt.state.values() for t in state.values()]


def assert_resumes(made: Callable[[], Any], saved_at: int, last: int) -> tuple[Any, Any]:
    """A run that is saved, loaded into fresh objects and continued has the bits of one in one go.

    Args:
        made: new parameters, optimizer, schedule of stages, and the function that sets gradients.
        saved_at: steps before saving.
        last: steps in all.

    Returns:
        The optimizer that was loaded, and the saved state of the schedule.
    """

    def steps(opt: Any, stages: Any, set_gradients: Any, which: range) -> None:
        for step in which:
            run(opt, set_gradients, range(step, step + 1))
            stages.step()

    params, opt, stages, set_gradients = made()
    steps(opt, stages, set_gradients, range(saved_at))
    buffer = io.BytesIO()
    torch.save([[p.detach() for p in params], opt.state_dict(), stages.state_dict()], buffer)
    steps(opt, stages, set_gradients, range(saved_at, last))
    buffer.seek(0)
    weights, saved, saved_stages = torch.load(buffer, weights_only=True)
    others, twin, twin_stages, set_others = made()
    for p, weight in zip(others, weights, strict=True):
        p.data.copy_(weight)
    twin.load_state_dict(saved)
    twin_stages.load_state_dict(saved_stages)
    steps(twin, twin_stages, set_others, range(saved_at, last))
    assert_same([*params, *snapshot(opt)], [*others, *snapshot(twin)])
    return twin, saved_stages
