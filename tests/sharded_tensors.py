"""Cases of sharded tensors: every way to cut them, against the same run on one process."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Partial, Replicate, Shard

import dualprox as dp
from contracts import OPTIMIZERS, Maker
from coupled_cases import PENALTIES, STREAM, coupled
from dualprox.kernels import native
from sharded_worker import Case, Traffic, cut, full

STEPS = 3


@dataclass(frozen=True)
class Problem:
    """Parameters that one penalty is about, and how they are cut.

    Args:
        penalty: of all of them.
        shapes: theirs.
        places: the mesh and the placements of each; None for one that all processes have.
        dtype: theirs.
        solver: for adaptive methods.
    """

    penalty: dp.Penalty | None
    shapes: Sequence[tuple[int, ...]]
    places: Sequence[tuple[Any, Sequence[Any]] | None]
    dtype: torch.dtype = torch.float64
    solver: dp.Solver | None = None

    def cut(self, tensors: Sequence[torch.Tensor]) -> list[Any]:
        """Full tensors, of which this process keeps its parts."""
        return [
            tensor if place is None else cut(tensor, place[0], place[1])
            for tensor, place in zip(tensors, self.places, strict=True)
        ]

    def start(self) -> list[torch.Tensor]:
        """Where the parameters begin."""
        generator = torch.Generator().manual_seed(7)
        draw = partial(torch.randn, generator=generator, dtype=torch.float64)
        return [draw(shape).to(self.dtype) for shape in self.shapes]

    def gradients(self, params: Sequence[Any], step: int) -> list[torch.Tensor]:
        """Of a noisy quadratic whose minimizer has zero slices along both axes."""
        generator = torch.Generator().manual_seed(step)
        draw = partial(torch.randn, generator=generator, dtype=torch.float64)
        found = []
        for shape, param in zip(self.shapes, params, strict=True):
            target = torch.ones(shape, dtype=torch.float64)
            for axis, length in enumerate(shape):
                even = torch.arange(length, dtype=torch.float64) % 3 - 1
                target = target * even.view([-1 if i == axis else 1 for i in range(len(shape))])
            found.append((full(param).double() - target + 0.05 * draw(shape)).to(self.dtype))
        return found


def step(problem: Problem, opt: dp.ProximalOptimizer, params: Sequence[Any], number: int) -> None:
    """One step with the gradients at the full parameters."""
    gradients = problem.gradients(params, number)
    cut = problem.cut(gradients) if any(map(dp.sharding.is_sharded, params)) else gradients
    for param, gradient in zip(params, cut, strict=True):
        param.grad = gradient
    opt.step()


class Race:
    """The same optimizer on one process and on sharded parameters.

    Args:
        problem: what they train.
        maker: of the optimizer.
    """

    def __init__(self, problem: Problem, maker: Maker) -> None:
        self.problem = problem
        self.one = [nn.Parameter(tensor) for tensor in problem.start()]
        self.many: list[Any] = [nn.Parameter(t) for t in problem.cut(problem.start())]
        self.alone, self.sharded = (
            maker([{"params": params, "penalty": problem.penalty, "solver": problem.solver}])
            for params in (self.one, self.many)
        )

    def run(self, steps: range) -> None:
        for number in steps:
            step(self.problem, self.alone, self.one, number)
            step(self.problem, self.sharded, self.many, number)
        self.compare()

    def near(self, ours: Any, theirs: Any) -> None:
        rtol, atol = (1e-9, 1e-11) if self.problem.dtype == torch.float64 else (1e-5, 1e-6)
        torch.testing.assert_close(full(ours), full(theirs), rtol=rtol, atol=atol)

    def compare(self) -> None:
        """The parameters, and exactly the support of their structured points."""
        for ours, theirs in zip(self.many, self.one, strict=True):
            self.near(ours, theirs)
            point = full(self.sharded.structured_point(ours))
            expected = self.alone.structured_point(theirs)
            self.near(point, expected)
            assert torch.equal(point == 0, expected == 0)

    def compare_reports(self) -> None:
        """What is said of the structure, and of the solver."""
        assert str(dp.structure(self.sharded)) == str(dp.structure(self.alone))
        rel = 1e-9 if self.problem.dtype == torch.float64 else 1e-4
        ours, theirs = (dp.StructureMonitor(o).update() for o in (self.sharded, self.alone))
        assert (ours.support_size, ours.support_total) == (
            theirs.support_size,
            theirs.support_total,
        )
        if self.problem.penalty is None or self.problem.penalty.is_convex:
            assert ours.stationarity == pytest.approx(theirs.stationarity, rel=rel)
        if self.problem.dtype == torch.float64:
            for our, their in zip(
                self.sharded.solver_report(), self.alone.solver_report(), strict=True
            ):
                assert our.iterations == their.iterations


def agree(problem: Problem, maker: Maker) -> None:
    """From the first step over a restart to a refit, all is as on one process."""
    race = Race(problem, maker)
    race.run(range(STEPS))
    race.compare_reports()
    for param, place in zip(race.many, problem.places, strict=True):
        if place is not None:
            assert param.placements == tuple(place[1])
            for value in race.sharded.state[param].values():
                assert value.dim() == 0 or value.placements == param.placements
    for opt in (race.alone, race.sharded):
        opt.restart()
    race.run(range(STEPS, STEPS + 2))
    before = [full(param) for param in race.many]
    points = [full(race.sharded.structured_point(param)) for param in race.many]
    with race.sharded.structured():
        assert all(torch.equal(full(p), q) for p, q in zip(race.many, points, strict=True))
    assert all(torch.equal(full(p), q) for p, q in zip(race.many, before, strict=True))
    resumes(race, maker)
    if problem.penalty is not None and not problem.penalty.is_constraint:
        ours, theirs = (dp.FrozenSupport.of(opt).dead for opt in (race.sharded, race.alone))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(full(ours[name]), theirs[name]) for name in ours)
        for opt in (race.alone, race.sharded):
            opt.freeze_structure_()
        race.run(range(8, 9))
        race.compare_reports()
    for opt in (race.alone, race.sharded):
        opt.finalize_()
    race.compare()


def resumes(race: Race, maker: Maker) -> None:
    """A new optimizer that loads the state goes on bit by bit."""
    problem = race.problem
    twins: list[Any] = [nn.Parameter(param.detach().clone()) for param in race.many]
    settings = {"penalty": problem.penalty, "solver": problem.solver}
    loaded = maker([{"params": twins, **settings}])
    loaded.load_state_dict(race.sharded.state_dict())
    step(problem, loaded, twins, 6)
    step(problem, race.sharded, race.many, 6)
    step(problem, race.alone, race.one, 6)
    for ours, theirs in zip(twins, race.many, strict=True):
        assert torch.equal(full(ours), full(theirs))


# Five rows on two processes: uneven. Blocks and conv groups that the processes do not keep whole.
MATRIX, KERNEL = (5, 6), (6, 2, 3)
ENTRIES = (
    None,
    dp.L1(0.1),
    dp.ElasticNet(0.1),
    dp.MCP(0.1),
    dp.SCAD(0.1),
    dp.L0(0.02),
    dp.NuclearNorm(0.4),
    dp.Cardinality(9),
    dp.RankAtMost(2),
    dp.L2Ball(2.0),
    dp.Box(-0.4, 0.9),
    dp.NonNegative(),
)
GROUPS = (
    (MATRIX, dp.GroupLasso(0.12, axis=0)),
    (MATRIX, dp.GroupLasso(0.12, axis=1)),
    (MATRIX, dp.GroupLasso(0.12, axis=-1, block=2)),
    (MATRIX, dp.SparseGroupLasso(0.2)),
    (MATRIX, dp.GroupMCP(0.1)),
    (MATRIX, dp.GroupSCAD(0.1)),
    (MATRIX, dp.GroupL0(0.02)),
    (MATRIX, dp.GroupHalf(0.05)),
    (KERNEL, dp.GroupLasso(0.15, axis=1, conv_groups=3)),
    (KERNEL, dp.GroupMCP(0.1, axis=0, conv_groups=2)),
    (KERNEL, dp.GroupHalf(0.05, axis=2)),
)


def one_tensor(mesh: Any, maker: Maker) -> Iterator[Case]:
    """Every penalty, cut along one axis; groups of the method with metric and anchor along each."""
    solver = dp.ProximalGradient(max_iter=8)
    thorough = maker.make is dp.RAMDA
    for number, penalty in enumerate(ENTRIES, start=OPTIMIZERS.index(maker)):
        placement = Shard(number % 2)
        own = solver if isinstance(penalty, dp.NuclearNorm | dp.RankAtMost) else None
        problem = Problem(penalty, [MATRIX], [(mesh, [placement])], solver=own)
        yield f"{maker} {penalty} {placement}", partial(agree, problem, maker)
    for number, (shape, penalty) in enumerate(GROUPS):
        for axis in range(len(shape)) if thorough else (number % len(shape),):
            problem = Problem(penalty, [shape], [(mesh, [Shard(axis)])])
            yield f"{maker} {penalty} {Shard(axis)}", partial(agree, problem, maker)
    penalty = dp.SparseGroupLasso(0.2)
    for name, place, shape, dtype in (
        ("replicated", Replicate(), MATRIX, torch.float64),
        ("with an empty part", Shard(0), (1, 6), torch.float64),
        ("in float32", Shard(0), (7, 12), torch.float32),
    ):
        problem = Problem(penalty, [shape], [(mesh, [place])], dtype)
        yield f"{maker} tensor {name}", partial(agree, problem, maker)
    problem = Problem(dp.GroupLasso(0.1), [MATRIX], [(mesh, [Shard(0)])], solver=solver)
    yield f"{maker} tensor by proximal gradient", partial(agree, problem, maker)


STREAM_SHAPES = [member[0] for member in STREAM]


def many_tensors(mesh: Any, maker: Maker) -> Iterator[Case]:
    """Groups over four tensors, each cut in another way, one not at all."""
    places = [(mesh, [Shard(1)]), (mesh, [Shard(0)]), (mesh, [Shard(1)]), None]
    others = [(mesh, [Shard(0)]), None, (mesh, [Replicate()]), (mesh, [Shard(1)])]
    for name in PENALTIES:
        problem = Problem(coupled(name), STREAM_SHAPES, places)
        yield f"{maker} coupled {name}", partial(agree, problem, maker)
    problem = Problem(coupled(), STREAM_SHAPES, others)
    yield f"{maker} coupled otherwise", partial(agree, problem, maker)
    problem = Problem(coupled(), STREAM_SHAPES, places, torch.float32)
    yield f"{maker} coupled in float32", partial(agree, problem, maker)


def talks(problem: Problem, maker: Maker) -> tuple[int, int]:
    """Bytes and calls of the fourth step, and of reading its structure."""
    params: list[Any] = [nn.Parameter(t) for t in problem.cut(problem.start())]
    opt = maker([{"params": params, "penalty": problem.penalty, "solver": problem.solver}])
    for number in range(3):
        step(problem, opt, params, number)
    for param, grad in zip(params, problem.cut(problem.gradients(params, 3)), strict=True):
        param.grad = grad
    with Traffic() as traffic:
        opt.step()
    return traffic.bytes, traffic.calls


def talks_of_groups_alone(mesh: Any, maker: Maker) -> None:
    """A step sends some numbers for each group, and not one more where groups are larger."""
    for penalty in (dp.GroupLasso(0.12), dp.GroupMCP(0.1), dp.GroupHalf(0.05)):
        for placement in (Shard(0), Shard(1)):
            sent = []
            for rows in (8, 64):
                problem = Problem(penalty, [(rows, 6)], [(mesh, [placement])])
                sent.append(talks(problem, maker))
            (few, calls), (many, more_calls) = sent
            # Of larger groups the solver may need a step or two more, but each call is as large.
            most = 8 * 6 * 4  # float64, six groups, four numbers each
            assert few <= most * calls and many <= most * more_calls, sent
            assert more_calls <= 60 and 0 < calls, sent


def talks_of_coupled_groups(mesh: Any, maker: Maker) -> None:
    """The same for groups over tensors."""
    groups = 10 + 4  # ten groups and the free slices
    for name in PENALTIES:
        places = [(mesh, [Shard(0)])] * 4
        sent, calls = talks(Problem(coupled(name), STREAM_SHAPES, places), maker)
        assert 0 < sent <= 8 * groups * 4 * calls and calls <= 80, (name, sent, calls)


def talks_of_nothing(mesh: Any, maker: Maker) -> None:
    """What is decided entry by entry needs nobody else."""
    for penalty in (None, dp.L1(0.1), dp.ElasticNet(0.1), dp.MCP(0.1), dp.SCAD(0.1), dp.Box(-1, 1)):
        for placement in (Shard(0), Shard(1)):
            assert talks(Problem(penalty, [MATRIX], [(mesh, [placement])]), maker) == (0, 0)


def is_left_to_eager_torch(mesh: Any) -> None:
    """No kernel steps a part as if it were all."""
    param: Any = nn.Parameter(cut(torch.ones(4, 2), mesh, [Shard(0)]))
    opt = dp.RMDA([{"params": [param], "penalty": dp.GroupLasso(0.1)}])
    with mock.patch.object(native, "why_unavailable", return_value=None):
        assert native.refusal(param, opt.state[param], None) == "it is a DTensor"


def refuses_terms_of_sums(mesh: Any, maker: Maker) -> None:
    """Partial tensors are no parameters."""
    term = dp.sharding.Cut(mesh, (Partial(),), (4, 2), (2, 1)).joined(torch.ones(4, 2))
    with pytest.raises(ValueError, match=r"parameter 0\.0 must be sharded or replicated"):
        maker([{"params": [nn.Parameter(term)], "penalty": dp.GroupLasso(0.1)}])


def keeps_nan(mesh: Any) -> None:
    """A NaN on one process is seen by all, in its group and nowhere else."""
    w = torch.ones(4, 6, dtype=torch.float64)
    w[3, 2] = torch.nan
    part = cut(w, mesh, [Shard(0)])
    joint: Any = dp.penalties.coupled.taken_by(dp.GroupLasso(0.1), [part])
    for found in (joint.coupling.amax(joint), joint.coupling.norm(joint)):
        assert found.isnan().tolist() == [False, False, True, False, False, False]


def has_no_maximum(mesh: Any) -> None:
    """A part without entries says nothing of how large the largest is."""
    part = cut(-torch.ones(1, 6, dtype=torch.float64), mesh, [Shard(0)])
    joint: Any = dp.penalties.coupled.taken_by(dp.GroupLasso(0.1), [part])
    assert joint.coupling.amax(joint).tolist() == [-1.0] * 6
    assert float(joint.max()) == -1.0


def on_four() -> Iterator[Case]:
    """Meshes of two axes, along which a tensor is cut twice, once or not at all."""
    mesh, maker = init_device_mesh("cpu", (2, 2)), OPTIMIZERS[1]
    for places in (
        [Shard(0), Shard(1)],
        [Shard(1), Shard(1)],
        [Shard(0), Shard(0)],
        [Replicate(), Shard(1)],
        [Shard(0), Replicate()],
    ):
        for shape, penalty in ((MATRIX, dp.GroupLasso(0.12, block=2)), GROUPS[8]):
            problem = Problem(penalty, [shape], [(mesh, places)])
            yield f"four {penalty} {places}", partial(agree, problem, maker)
        across = [(mesh, places), (mesh, places[::-1]), (mesh, [Shard(1), Shard(0)]), None]
        problem = Problem(coupled("GroupMCP"), STREAM_SHAPES, across)
        if places[0] != places[1]:
            yield f"four coupled {places}", partial(agree, problem, maker)


def cases(folder: Path) -> Iterator[Case]:
    """Everything that is tried, with its name."""
    del folder
    if dist.get_world_size() == 4:
        yield from on_four()
        return
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for maker in OPTIMIZERS:
        yield from one_tensor(mesh, maker)
        yield from many_tensors(mesh, maker)
        yield f"{maker} talks of groups alone", partial(talks_of_groups_alone, mesh, maker)
        yield f"{maker} talks of coupled groups", partial(talks_of_coupled_groups, mesh, maker)
        yield f"{maker} talks of nothing", partial(talks_of_nothing, mesh, maker)
        yield f"{maker} refuses terms of sums", partial(refuses_terms_of_sums, mesh, maker)
    yield "a part is left to eager torch", partial(is_left_to_eager_torch, mesh)
    yield "a NaN is seen by all", partial(keeps_nan, mesh)
    yield "a part without entries has no maximum", partial(has_no_maximum, mesh)
