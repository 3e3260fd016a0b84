"""Cases of whole models on several processes: DDP, FSDP2, tensor parallelism, ZeRO-1."""

import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

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
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

import dualprox as dp
from contracts import OPTIMIZERS, Maker
from dualprox.sharding import Cut, is_sharded, local
from sharded_worker import Case, full

Cutter = Callable[[nn.Module], None]
PENALTY = dp.GroupLasso(0.1)


class Residual(nn.Module):
    """A stream of seven channels, read by two layers: groups over both."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.first = nn.Linear(6, 7), nn.Linear(7, 8)
        self.second, self.leave = nn.Linear(8, 7), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stream = self.enter(x)
        return self.leave(stream + self.second(torch.relu(self.first(stream))))


def network(dtype: torch.dtype = torch.float64) -> Residual:
    """The same on every process."""
    torch.manual_seed(0)
    return Residual().to(dtype)


def batch(step: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(4, 6, generator=generator, dtype=torch.float64).to(dtype)


def backward(model: nn.Module, x: torch.Tensor) -> None:
    target = x[:, :3] * torch.tensor([1.0, -1.0, 0.5], dtype=x.dtype)
    (model(x) - target).square().mean().backward()


def train(model: nn.Module, opt: torch.optim.Optimizer, steps: range) -> None:
    """All processes see the same batches."""
    for step in steps:
        opt.zero_grad()
        backward(model, batch(step))
        opt.step()


def same(one: nn.Module, many: nn.Module) -> None:
    """Compare all parameters."""
    for ours, theirs in zip(many.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(full(ours), full(theirs), rtol=1e-9, atol=1e-11)


@lru_cache
def groups_of(coupled: bool) -> dp.ParamGroups:
    """Param groups of the network before anything is sharded; uncoupled, those of outputs."""
    if not coupled:
        return dp.param_groups(network(), PENALTY, by="output")
    return dp.param_groups(network(), PENALTY, coupled=True, example_input=batch(0))


def grouped(model: nn.Module, coupled: bool = True) -> dp.ParamGroups:
    """Those of the parameters that a model has, sharded or not."""
    return groups_of(coupled).on(model)


def fsdp(mesh: Any, model: nn.Module, **options: Any) -> None:
    """Layer by layer, as it is done; the root as well reshards after forward."""
    for layer in model.children():
        fully_shard(layer, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, reshard_after_forward=True, **options)


def tensor_parallel(mesh: Any, model: nn.Module) -> None:
    """One layer by its outputs, the next by its inputs."""
    plan = {"first": ColwiseParallel(), "second": RowwiseParallel()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parallelize_module(model, mesh, plan)


def follows(cut: Cutter, maker: Maker, coupled: bool = True) -> None:
    """A model trains as on one process, and through a refit."""
    one, many = network(), network()
    cut(many)
    for param in many.parameters():
        if is_sharded(param):
            assert torch.equal(local(param), Cut.of(param).part(full(param)))
    alone, sharded = maker(grouped(one, coupled)), maker(grouped(many, coupled))
    train(one, alone, range(30))
    train(many, sharded, range(30))
    same(one, many)
    assert str(dp.structure(sharded)) == str(dp.structure(alone))
    found = dp.structure(alone).group_sparsity
    assert found is not None and 0 < found < 1
    ours, theirs = (dp.StructureMonitor(opt).update() for opt in (sharded, alone))
    assert ours.stationarity == pytest.approx(theirs.stationarity, rel=1e-8)
    x = batch(99)
    with torch.no_grad():
        with alone.structured(), sharded.structured():
            torch.testing.assert_close(full(many(x)), one(x), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(full(many(x)), one(x), rtol=1e-9, atol=1e-11)
    for opt in (alone, sharded):
        opt.freeze_structure_()
    train(one, alone, range(30, 32))
    train(many, sharded, range(30, 32))
    for opt in (alone, sharded):
        opt.finalize_()
    same(one, many)
    for ours, theirs in zip(many.parameters(), one.parameters(), strict=True):
        assert torch.equal(full(ours) == 0, theirs == 0)


def shrinks(cut: Cutter, maker: Maker) -> None:
    """Once gathered, on the one process that asks for it, to the same network as on one process."""
    one, many = network(), network()
    cut(many)
    alone, sharded = maker(grouped(one)), maker(grouped(many))
    train(one, alone, range(30))
    train(many, sharded, range(30))
    x = batch(99)
    whole = network() if dist.get_rank() == 0 else None
    with sharded.structured():
        dp.gather_(whole, many)
        with pytest.raises(ValueError, match=r"gather_\(whole, model\)"):
            dp.shrink(many, x, latency=False)
        with pytest.raises(ValueError, match=r"gather_\(whole, model\)"):
            dp.shrink_training(many, sharded, x)
    if whole is not None:
        with alone.structured():
            expected = dp.shrink(one, x, latency=False)
        slim = dp.shrink(whole, x, latency=False)
        assert repr(slim) == repr(expected) != repr(whole)
        with torch.no_grad():
            torch.testing.assert_close(slim(x), expected(x), rtol=1e-9, atol=1e-11)


def finds_the_size(cut: Cutter, maker: Maker) -> None:
    """The strength at which the network has half of its parameters, and how it got there."""
    one, many, twin = network(), network(), network()
    cut(many)
    x, target = batch(0), dp.TargetSize(params=0.5)
    runs = []
    for model, known in ((one, one), (many, twin)):
        opt: Any = maker(grouped(model))
        control = dp.SizeControl(opt, known, target, x, ramp_steps=8, hold_from=16, every=4)
        for step in range(16):
            train(model, opt, range(step, step + 1))
            control.step()
        runs.append((control, opt))
    (theirs, alone), (ours, sharded) = runs
    found, expected = ([s for s in dp.strengths(o) if s] for o in (sharded, alone))
    assert found == pytest.approx(expected, rel=1e-9) and found != [PENALTY.strength] * 2
    assert ours.size() == theirs.size() <= 0.5
    same(one, many)


def resumes(cut: Cutter, maker: Maker, folder: Path, refit: bool) -> None:
    """From a distributed checkpoint it goes on bit by bit."""
    models, opts = [], []
    for _ in range(2):
        model = network()
        cut(model)
        models.append(model)
        opts.append(maker(grouped(model)))
        if refit:
            opts[-1].freeze_structure_()
    train(models[0], opts[0], range(3))
    saved = {"opt": get_optimizer_state_dict(models[0], opts[0]), "model": models[0].state_dict()}
    save(saved, checkpoint_id=folder)
    fresh = {"opt": get_optimizer_state_dict(models[1], opts[1]), "model": models[1].state_dict()}
    load(fresh, checkpoint_id=folder)
    models[1].load_state_dict(fresh["model"])
    set_optimizer_state_dict(models[1], opts[1], fresh["opt"])
    for model, opt in zip(models, opts, strict=True):
        train(model, opt, range(3, 6))
    for ours, theirs in zip(models[1].parameters(), models[0].parameters(), strict=True):
        assert torch.equal(full(ours), full(theirs))


def mixed_precision(mesh: Any, maker: Maker) -> None:
    """Forward and backward in bfloat16; the step is that of float32 with the same gradients."""
    one, many = network(torch.float32), network(torch.float32)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    fsdp(mesh, many, mp_policy=policy)
    sharded, alone = maker(grouped(many)), maker(grouped(one))
    for step in range(10):
        sharded.zero_grad()
        backward(many, batch(step, torch.bfloat16))
        for ours, theirs in zip(many.parameters(), one.parameters(), strict=True):
            assert ours.grad is not None
            theirs.grad = full(ours.grad)
        sharded.step()
        alone.step()
    for ours, theirs in zip(many.parameters(), one.parameters(), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(full(ours), theirs.detach(), rtol=1e-5, atol=1e-6)
    assert str(dp.structure(sharded)) == str(dp.structure(alone))


def ddp(maker: Maker) -> None:
    """Each process has its share of a batch, summed up over two backward passes."""
    one, many = network(), network()
    alone, opt = maker(grouped(one)), maker(grouped(many))
    parallel = DistributedDataParallel(many)
    rank, world = dist.get_rank(), dist.get_world_size()
    for step in range(10):
        alone.zero_grad()
        opt.zero_grad()
        for half in range(2):
            whole = torch.cat([batch(100 * step + 10 * half + r) for r in range(world)])
            backward(one, whole)
        with parallel.no_sync():
            backward(parallel, batch(100 * step + rank))
        backward(parallel, batch(100 * step + 10 + rank))
        alone.step()
        opt.step()
    same(one, many)
    assert str(dp.structure(opt)) == str(dp.structure(alone))


def zero(maker: Maker) -> None:
    """ZeRO-1: each process steps some of the parameters; its state comes together and goes on."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # which warns as it is imported

    one, many, resumed = network(), network(), network()
    alone = maker(grouped(one, coupled=False))
    method: Any = maker.make

    def partitioned(model: nn.Module) -> ZeroRedundancyOptimizer:
        groups = [
            {"params": [p for _, p in group["params"]], "penalty": group["penalty"]}
            for group in grouped(model, coupled=False)
        ]
        return ZeroRedundancyOptimizer(groups, method, lr=maker.lr)

    opt, again = partitioned(many), partitioned(resumed)
    train(one, alone, range(6))
    train(many, opt, range(6))
    same(one, many)
    own = {id(p) for group in opt.optim.param_groups for p in group["params"]}
    assert 0 < len(own) < len(list(many.parameters()))
    opt.consolidate_state_dict(to=0)
    box: list[Any] = [deepcopy(opt.state_dict()) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    resumed.load_state_dict(many.state_dict())
    again.load_state_dict(box[0])
    train(one, alone, range(6, 9))
    train(many, opt, range(6, 9))
    train(resumed, again, range(6, 9))
    same(one, many)
    same(one, resumed)


def zero_refuses_coupled() -> None:
    """It would give the tensors of a group to different processes."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    groups = [
        {"params": [p for _, p in group["params"]], "penalty": group["penalty"]}
        for group in grouped(network())
    ]
    with pytest.raises(ValueError, match="ZeroRedundancyOptimizer"):
        ZeroRedundancyOptimizer(groups, dp.RAMDA, lr=0.1)


def on_four(maker: Maker) -> Iterator[Case]:
    """What takes a mesh of two axes."""
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))

    def both(model: nn.Module) -> None:
        tensor_parallel(square["tp"], model)
        fsdp(square["dp"], model)

    yield f"{maker} HSDP", partial(follows, partial(fsdp, square), maker)
    yield f"{maker} FSDP of TP", partial(follows, both, maker)
    yield f"{maker} FSDP of TP by output", partial(follows, both, maker, coupled=False)


def cases(folder: Path) -> Iterator[Case]:
    """Everything that is tried, with its name."""
    if dist.get_world_size() == 4:
        yield from on_four(OPTIMIZERS[1])
        return
    mesh = init_device_mesh("cpu", (2,))
    cut = partial(fsdp, mesh)
    for maker in OPTIMIZERS:
        yield f"{maker} FSDP", partial(follows, cut, maker)
        yield f"{maker} resumes a refit", partial(resumes, cut, maker, folder / str(maker), True)
    thorough = OPTIMIZERS[1]
    yield "DDP", partial(ddp, thorough)
    yield "ZeRO-1", partial(zero, thorough)
    yield "resumes", partial(resumes, cut, thorough, folder / "resumes", False)
    yield "FSDP uncoupled", partial(follows, cut, thorough, coupled=False)
    offload = partial(fsdp, mesh, offload_policy=CPUOffloadPolicy(pin_memory=False))
    yield "FSDP offloaded", partial(follows, offload, thorough)
    yield "mixed precision", partial(mixed_precision, mesh, thorough)
    parallel = partial(tensor_parallel, mesh)
    yield "size", partial(finds_the_size, cut, thorough)
    yield "TP", partial(follows, parallel, thorough)
    yield "shrinks FSDP", partial(shrinks, cut, thorough)
    yield "shrinks TP", partial(shrinks, parallel, thorough)
    yield "ZeRO-1 refuses coupled groups", zero_refuses_coupled
