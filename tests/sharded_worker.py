"""What two processes do with sharded parameters; `test_sharded` starts them and judges."""

import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import dualprox as dp
from contracts import OPTIMIZERS
from dualprox.kernels import native

PLACEMENTS = (Shard(0), Shard(1), Replicate())
PENALTIES = (
    None,
    dp.L1(0.1),
    dp.GroupLasso(0.12, axis=0),
    dp.GroupLasso(0.12, axis=1),
    dp.SparseGroupLasso(0.2),
    dp.NuclearNorm(0.4),
    dp.Cardinality(9),
)
SHAPE, STEPS = (5, 6), 3  # five rows on two processes: uneven shards


def gradient(weight: torch.Tensor, step: int) -> torch.Tensor:
    """Of a noisy quadratic whose minimizer has zero rows and columns."""
    target = torch.outer(torch.tensor([1.0, 0, -2, 0, 1]), torch.tensor([1.0, 0, 2, -1, 0, 1]))
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(step))
    return weight.detach() - target + 0.05 * noise.double()


def agree(mesh: Any, placement: Any, penalty: Any, maker: Any) -> None:
    """The full tensor, its structure and the reports are those of the run that is not sharded."""
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(7)).double()
    one = nn.Parameter(start.clone())
    many: Any = nn.Parameter(distribute_tensor(start.clone(), mesh, [placement]))
    solver = dp.ProximalGradient(max_iter=8) if isinstance(penalty, dp.NuclearNorm) else None
    settings = {"penalty": penalty, "solver": solver}
    alone, sharded = (maker([{"params": [p], **settings}]) for p in (one, many))
    for step in range(STEPS):
        one.grad = gradient(one, step)
        many.grad = distribute_tensor(
            gradient(many.detach().full_tensor(), step), mesh, [placement]
        )
        alone.step()
        sharded.step()
    for value in sharded.state[many].values():
        assert value.dim() == 0 or value.placements == (placement,)
    assert many.placements == (placement,)
    with mock.patch.object(native, "why_unavailable", return_value=None):
        assert native.refusal(many, sharded.state[many], None) == "it is a DTensor"
    torch.testing.assert_close(many.detach().full_tensor(), one.detach(), rtol=1e-9, atol=1e-11)
    point, expected = sharded.structured_point(many), alone.structured_point(one)
    assert torch.equal(point.full_tensor() == 0, expected == 0)
    assert str(dp.structure(sharded)) == str(dp.structure(alone))
    for ours, theirs in zip(sharded.solver_report(), alone.solver_report(), strict=True):
        assert ours.iterations == theirs.iterations
    if penalty is None or penalty.is_convex:
        ours, theirs = (dp.StructureMonitor(opt).update() for opt in (sharded, alone))
        assert ours.stationarity == pytest.approx(theirs.stationarity, rel=1e-9)
    before = many.detach().full_tensor()
    with sharded.structured():
        assert torch.equal(many.detach().full_tensor(), point.full_tensor())
    assert torch.equal(many.detach().full_tensor(), before)
    twin: Any = nn.Parameter(many.detach().clone())
    loaded = maker([{"params": [twin], **settings}])
    loaded.load_state_dict(sharded.state_dict())
    many.grad = distribute_tensor(gradient(before, STEPS), mesh, [placement])
    twin.grad = many.grad.clone()
    sharded.step()
    loaded.step()
    assert torch.equal(twin.detach().full_tensor(), many.detach().full_tensor())


def refuse_coupled(mesh: Any, maker: Any) -> None:
    """Groups over sharded tensors are not there, and nothing pretends that they are."""
    params: Any = [nn.Parameter(distribute_tensor(torch.ones(4, 2), mesh, [Shard(0)]))]
    member = dp.Member((4, 2), dp.Slices(axis=1), (0, 1))
    penalty = dp.Coupled(dp.GroupLasso(0.1), dp.Coupling((member,)))
    with pytest.raises(NotImplementedError, match=r"parameter 0\.0 is sharded"):
        maker([{"params": params, "penalty": penalty}])


def mlp() -> nn.Sequential:
    """The same on every process."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()


def train(model: nn.Module, opt: dp.ProximalOptimizer, steps: range) -> None:
    """All processes see the same batches."""
    for step in steps:
        x = torch.randn(2, 6, generator=torch.Generator().manual_seed(step)).double()
        opt.zero_grad()
        model(x).square().sum().backward()
        opt.step()


def fsdp(mesh: Any, maker: Any, folder: Path, refit: bool = False) -> None:
    """FSDP trains like one process, and continues from a distributed checkpoint bit by bit."""
    one, many, resumed = mlp(), mlp(), mlp()
    optimizers = []
    for model in (one, many, resumed):
        if model is not one:
            for layer in (model[0], model[2]):
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
        optimizers.append(maker(dp.param_groups(model, dp.GroupLasso(0.02)), lr=0.01))
    if refit:
        first, sharded = one.get_parameter("0.weight"), many.get_parameter("0.weight")
        first.data[:, 2] = 0
        sharded.data.mul_(distribute_like(first.data.ne(0), sharded))
        for opt in optimizers:
            opt.freeze_structure_()
    train(one, optimizers[0], range(3))
    train(many, optimizers[1], range(3))
    same(one, many)
    saved = {"opt": get_optimizer_state_dict(many, optimizers[1]), "model": many.state_dict()}
    save(saved, checkpoint_id=folder)
    fresh = {"opt": get_optimizer_state_dict(resumed, optimizers[2]), "model": resumed.state_dict()}
    load(fresh, checkpoint_id=folder)
    resumed.load_state_dict(fresh["model"])
    set_optimizer_state_dict(resumed, optimizers[2], fresh["opt"])
    train(one, optimizers[0], range(3, 6))
    train(many, optimizers[1], range(3, 6))
    train(resumed, optimizers[2], range(3, 6))
    same(one, many)
    for ours, theirs in zip(resumed.parameters(), many.parameters(), strict=True):
        assert torch.equal(full(ours), full(theirs))
    if refit:
        assert not full(many.get_parameter("0.weight"))[:, 2].any()
        opts = optimizers[:2]
        ours, theirs = (dp.StructureMonitor(opt).update() for opt in reversed(opts))
        assert ours.stationarity == pytest.approx(theirs.stationarity, rel=1e-9)


def distribute_like(tensor: torch.Tensor, other: Any) -> Any:
    """The tensor cut as another is."""
    return distribute_tensor(tensor, other.device_mesh, other.placements)


def full(param: Any) -> torch.Tensor:
    """The whole parameter."""
    assert isinstance(param, DTensor)
    return param.full_tensor().detach()


def same(one: nn.Module, many: nn.Module) -> None:
    """Compare all parameters."""
    for ours, theirs in zip(many.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(full(ours), theirs.detach(), rtol=1e-9, atol=1e-11)


def cases(mesh: Any, folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """Everything that is tried, with its name."""
    for maker in OPTIMIZERS:
        for penalty in PENALTIES:
            # A replicated tensor is an ordinary one on each process: one penalty is enough.
            for placement in PLACEMENTS if penalty == dp.SparseGroupLasso(0.2) else PLACEMENTS[:2]:
                name = f"{maker} {penalty} {placement}"
                yield name, lambda a=placement, b=penalty, c=maker: agree(mesh, a, b, c)
        yield f"{maker} coupled", lambda c=maker: refuse_coupled(mesh, c)
        yield f"{maker} FSDP", lambda c=maker: fsdp(mesh, c, folder / str(c))
        path = folder / f"{maker} refit"
        yield f"{maker} FSDP refit", lambda c=maker, d=path: fsdp(mesh, c, d, refit=True)


def main(rank: int, folder: str) -> None:
    """Run all cases; leave this process's failures in a file."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    failures = {}
    for name, case in cases(init_device_mesh("cpu", (2,)), Path(folder)):
        try:
            case()
            failures[name] = ""
        except Exception:
            failures[name] = traceback.format_exc()
    torch.save(failures, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
