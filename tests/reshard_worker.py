"""What processes do with distributed checkpoints; `test_reshard` starts them and judges."""

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

import dualprox as dp
from contracts import OPTIMIZERS
from processes import Case, outcomes
from sharded_worker import cut

PENALTY = dp.GroupLasso(0.02)
Meshes = dict[int, DeviceMesh]


def mlp() -> nn.Sequential:
    """The same on every process; its last weight has fewer rows than four processes."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()


def train(model: nn.Module, opt: dp.ProximalOptimizer, steps: range) -> None:
    """All processes see the same batches."""
    for step in steps:
        x = torch.randn(2, 6, generator=torch.Generator().manual_seed(step)).double()
        opt.zero_grad()
        model(x).square().sum().backward()
        opt.step()


def made(maker: Any, mesh: DeviceMesh | None, penalty: dp.Penalty = PENALTY) -> tuple[Any, Any]:
    """The network, sharded over a mesh or on one process, and its optimizer."""
    model = mlp()
    if mesh is not None:
        for layer in (model[0], model[2]):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model, maker(dp.param_groups(model, penalty), lr=0.01)


def freeze(model: nn.Module, opt: dp.ProximalOptimizer) -> None:
    """Hold a structure in which an input is dead."""
    weight: Any = model.get_parameter("0.weight")
    live = torch.ones(weight.shape, dtype=weight.dtype)
    live[:, 2] = 0
    sharded = hasattr(weight, "placements")
    weight.data.mul_(cut(live, weight.device_mesh, weight.placements) if sharded else live)
    opt.freeze_structure_()


def everything(model: nn.Module, opt: dp.ProximalOptimizer) -> list[torch.Tensor]:
    """Whole copies of the weights and of everything the optimizer keeps of each."""

    def copied(tensor: Any) -> torch.Tensor:
        whole = tensor.full_tensor() if hasattr(tensor, "placements") else tensor
        return whole.detach().clone()

    found = []
    for param in model.parameters():
        state = opt.state[param]
        found += [copied(param), *(copied(state[key]) for key in sorted(state))]
    return found


def assert_bits(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype and torch.equal(mine, other)


def assert_near(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)


def state_of(model: Any, opt: Any, options: StateDictOptions) -> dict[str, Any]:
    """What goes into a checkpoint."""
    return {
        "model": model.state_dict(),
        "opt": get_optimizer_state_dict(model, opt, options=options),
    }


def read(model: Any, opt: Any, folder: Path, options: StateDictOptions, group: Any) -> None:
    """Load a checkpoint."""
    target = state_of(model, opt, options)
    load(target, checkpoint_id=folder, process_group=group)
    model.load_state_dict(target["model"])
    set_optimizer_state_dict(model, opt, target["opt"], options=options)


def reshard(
    maker: Any, meshes: Meshes, sizes: list[int], folder: Path, flatten: bool, frozen: bool
) -> None:
    """One run on changing numbers of processes, each from the checkpoint of the one before."""
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    alone, own = made(maker, None)
    if frozen:
        freeze(alone, own)
    before: list[torch.Tensor] = []
    for number, size in enumerate(sizes):
        steps = range(3 * number, 3 * number + 3)
        train(alone, own, steps)
        if dist.get_rank() < size:
            group: Any = meshes[size].get_group()
            model, opt = made(maker, meshes[size])
            if frozen:
                freeze(model, opt)
            if number > 0:
                read(model, opt, folder / str(number - 1), options, group)
                before = torch.load(folder / f"{number - 1}.pt", weights_only=True)
                assert_bits(everything(model, opt), before)
                assert [g["frozen"] for g in opt.param_groups] == [frozen, False]
            train(model, opt, steps)
            now = everything(model, opt)
            assert_near(now, everything(alone, own))
            state = state_of(model, opt, options)
            save(state, checkpoint_id=folder / str(number), process_group=group)
            if dist.get_rank() == 0:
                torch.save(now, folder / f"{number}.pt")
        dist.barrier()


def save_meanwhile(maker: Any, meshes: Meshes, folder: Path) -> None:
    """An asynchronous save holds what was there when it was asked for."""
    mesh, options = meshes[dist.get_world_size()], StateDictOptions()
    model, opt = made(maker, mesh)
    train(model, opt, range(3))
    then = everything(model, opt)
    # Its processes talk while those of the training do: by a group of their own.
    group: Any = dist.new_group(backend="gloo")
    done: Any = async_save(state_of(model, opt, options), checkpoint_id=folder, process_group=group)
    train(model, opt, range(3, 6))
    done.result()
    other, twin = made(maker, mesh)
    read(other, twin, folder, options, mesh.get_group())
    assert_bits(everything(other, twin), then)
    train(other, twin, range(3, 6))
    assert_bits(everything(other, twin), everything(model, opt))


def gather(maker: Any, meshes: Meshes, flatten: bool) -> None:
    """A whole state on the CPU of the first process, which any number of processes loads."""
    mesh = meshes[dist.get_world_size()]
    options = StateDictOptions(
        full_state_dict=True, cpu_offload=True, flatten_optimizer_state_dict=flatten
    )
    model, opt = made(maker, mesh)
    train(model, opt, range(3))
    then = everything(model, opt)
    state = get_optimizer_state_dict(model, opt, options=options)
    if dist.get_rank() == 0:
        alone, own = made(maker, None)
        for param, value in zip(alone.parameters(), model_weights(then, opt), strict=True):
            param.data.copy_(value)
        # Of whole states torch reads flat ones only as if they were its own.
        own_options = StateDictOptions(flatten_optimizer_state_dict=flatten)
        set_optimizer_state_dict(alone, own, state, options=own_options)
        assert_bits(everything(alone, own), then)
    if flatten:
        return
    other, twin = made(maker, mesh)
    shared = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_optimizer_state_dict(other, twin, state, options=shared)
    other.load_state_dict(model.state_dict())
    assert_bits(everything(other, twin), then)


def model_weights(found: list[torch.Tensor], opt: dp.ProximalOptimizer) -> list[torch.Tensor]:
    """The weights among `everything`."""
    counts = [len(opt.state[param]) for _, param, _ in opt.named_params()]
    return [found[sum(counts[:place]) + place] for place in range(len(counts))]


def refuse(maker: Any, meshes: Meshes, folder: Path) -> None:
    """A checkpoint of another penalty is refused, after `load` has overwritten the buffers."""
    mesh, options = meshes[dist.get_world_size()], StateDictOptions()
    model, opt = made(maker, mesh)
    save(state_of(model, opt, options), checkpoint_id=folder)
    other, twin = made(maker, mesh, dp.GroupLasso(0.03))
    with pytest.raises(ValueError, match=r"was saved with penalty GroupLasso\(strength=0\.02"):
        read(other, twin, folder, options, mesh.get_group())


def cases(meshes: Meshes, sizes: list[int], folder: Path) -> Iterator[Case]:
    """Everything that is tried, with its name."""
    for maker in OPTIMIZERS if dist.get_world_size() == 2 else OPTIMIZERS[1:2]:
        for flatten in (False, True):
            name = f"{maker} reshard {flatten}"
            place = folder / name
            place.mkdir(exist_ok=True)
            # One of both ways with a frozen structure, whose marks are saved, too.
            yield name, partial(reshard, maker, meshes, sizes, place, flatten, not flatten)
            yield f"{maker} gather {flatten}", partial(gather, maker, meshes, flatten)
        yield f"{maker} async", partial(save_meanwhile, maker, meshes, folder / f"{maker} async")
        yield f"{maker} refuse", partial(refuse, maker, meshes, folder / f"{maker} refuse")


def main(sizes: str, folder: str) -> None:
    """Run all cases; leave this process's failures in a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    wanted = json.loads(sizes)
    meshes = {size: DeviceMesh("cpu", list(range(size))) for size in sorted({*wanted})}
    failures = outcomes(list(cases(meshes, wanted, Path(folder))))
    torch.save(failures, f"{folder}/{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
