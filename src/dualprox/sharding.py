"""Tensors whose parts lie on several processes, torch's DTensor.

Torch's operations on them, reductions included, mean what they mean on the full tensor. Two
things do not, and are done here: reading a number, which gives each process its own part of a
sum, and algorithms that are not made of operations DTensor knows. The latter run on the parts:
`Cut` says which entries of the full tensor a process has, for every way to shard one.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from .kinds import check_kinds


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor."""
    if type(tensor) in (Tensor, torch.nn.Parameter) or not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor  # slow to import; here it has been already

    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The full tensor, the same on every process that holds a part of it; itself if not sharded.

    Whatever a process decides from a number it must decide from this one, as all others do.
    """
    sharded: Any = tensor
    return sharded.full_tensor() if is_sharded(tensor) else tensor


def sharded_like(full: Tensor, other: Tensor) -> Tensor:
    """A full tensor that every process has, cut as `other` is; itself if `other` is not."""
    if not is_sharded(other):
        return full
    cut = Cut.of(other)
    return cut.joined(cut.part(full))


def placed_like(tensor: Tensor, other: Tensor) -> Tensor:
    """The tensor, cut as `other` is: what is cut otherwise is redistributed."""
    mine: Any = tensor
    theirs: Any = other
    if not is_sharded(other) or not is_sharded(tensor) or mine.placements == theirs.placements:
        return tensor
    return mine.redistribute(theirs.device_mesh, theirs.placements)


def require_held(param: Tensor, name: str) -> None:
    """Raise for a sharded parameter whose entries this process cannot tell.

    Raises:
        ValueError: the processes hold the terms of a sum.
        NotImplementedError: the entries are interleaved in a way that is not known.
    """
    if not is_sharded(param):
        return
    cut = Cut.of(param)
    if any(placement.is_partial() for placement in cut.placements):
        raise ValueError(
            f"parameter {name} must be sharded or replicated, got placements "
            f"{cut.placements}: no process has an entry of it, only a term of a sum"
        )
    if tuple(map(len, cut.index)) != tuple(local(param).shape):
        raise NotImplementedError(
            f"parameter {name} has placements {cut.placements}, by which this process should have "
            f"a part of shape {tuple(map(len, cut.index))}, got {tuple(local(param).shape)}"
        )


@dataclass(frozen=True)
class Cut:
    """How a tensor is cut into the parts that the processes of a mesh hold.

    Args:
        mesh: the processes, torch's DeviceMesh.
        placements: one for each axis of the mesh.
        shape: of the full tensor.
        stride: of the full tensor.
    """

    mesh: Any
    placements: tuple[Any, ...]
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> "Cut":
        """That of a DTensor."""
        sharded: Any = tensor
        return cls(
            sharded.device_mesh, tuple(sharded.placements), tuple(tensor.shape), tensor.stride()
        )

    @cached_property
    def mesh_axes(self) -> tuple[int, ...]:
        """The axes of the mesh along which processes have different parts."""
        kept = enumerate(self.placements)
        return tuple(i for i, placement in kept if not placement.is_replicate())

    @cached_property
    def index(self) -> tuple[Tensor, ...]:
        """Along each axis, which entries of the full tensor this process has.

        Raises:
            NotImplementedError: they are interleaved in another way than by `fully_shard` over
                tensor parallelism.
        """
        found = [torch.arange(length) for length in self.shape]
        place = self.mesh.get_coordinate()
        # fully_shard cuts what tensor parallelism has cut before, on a later axis of the mesh.
        strided = [i for i in self.mesh_axes if _factor(self.placements[i]) > 1]
        plain = [i for i in self.mesh_axes if i not in strided]
        for i in (*plain, *reversed(strided)):
            axis = self.placements[i].dim
            later = [j for j in self.mesh_axes if j > i and self.placements[j].dim == axis]
            finer = 1
            for j in later:
                finer *= self.mesh.size(j)
            if i in strided and finer != _factor(self.placements[i]):
                raise NotImplementedError(f"no parts are known of placements {self.placements}")
            length = -(-len(found[axis]) // self.mesh.size(i))
            found[axis] = found[axis][place[i] * length : (place[i] + 1) * length]
        return tuple(found)

    def part(self, full: Tensor) -> Tensor:
        """What this process has of a full tensor."""
        for axis, index in enumerate(self.index):
            if len(index) < self.shape[axis]:
                full = full.index_select(axis, index.to(full.device))
        return full

    def joined(self, part: Tensor) -> Tensor:
        """The DTensor of which the processes hold these parts; no copy, no communication."""
        from torch.distributed.tensor import DTensor

        return DTensor.from_local(
            part,
            self.mesh,
            self.placements,
            run_check=False,
            shape=torch.Size(self.shape),
            stride=self.stride,
        )

    def reduced(self, values: Tensor, op: Any) -> Tensor:
        """Values that each process has of its part, combined over the parts; in place.

        Args:
            values: of one shape on every process.
            op: torch.distributed.ReduceOp.SUM or .MAX.
        """
        # Offloaded parameters lie on the CPU, where the mesh may have nothing to talk with.
        there = values.to(self.mesh.device_type)
        for axis in self.mesh_axes:
            torch.distributed.all_reduce(there, op, self.mesh.get_group(axis))
        return there.to(values.device)


def _factor(placement: Any) -> int:
    """Into how many pieces an axis is cut before this placement cuts each of them."""
    return getattr(placement, "split_factor", 1)


def local(tensor: Tensor) -> Tensor:
    """The part of a DTensor that this process has, no copy; itself if not sharded."""
    sharded: Any = tensor
    return sharded.to_local() if is_sharded(tensor) else tensor


def gather_(into: nn.Module | None, model: nn.Module) -> None:
    """Give an ordinary model the whole parameters and buffers of a sharded one, in place.

    For what needs a network as one: `shrink`, exports, a file. All processes of the model call it
    together; parameters are gathered one at a time, and only where there is a model to go into.

    Args:
        into: a model of the same architecture that is not sharded, on any device; None on
            processes that want none.
        model: made of DTensors, by `fully_shard`, `parallelize_module` or otherwise; untouched.

    Raises:
        ValueError: `into` has other parameters or buffers, or is sharded itself.

    Example:
        >>> import torch, dualprox as dp
        >>> model, plain = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        >>> dp.gather_(plain, model)  # of a sharded model: inside opt.structured()
        >>> torch.equal(plain.weight, model.weight)
        True
    """
    check_kinds(gather_, locals())
    there = {} if into is None else into.state_dict()
    found = model.state_dict()
    if into is not None:
        if there.keys() != found.keys():
            odd = ", ".join(sorted(there.keys() ^ found.keys()))
            raise ValueError(f"into must have the parameters and buffers of the model, got {odd}")
        for name, tensor in there.items():
            if is_sharded(tensor) or tensor.shape != found[name].shape:
                raise ValueError(
                    f"{name} of into must be an ordinary tensor of shape "
                    f"{tuple(found[name].shape)}, got {type(tensor).__name__} of shape "
                    f"{tuple(tensor.shape)}"
                )
    for name, tensor in found.items():  # detached, so that copying leaves no graph
        full = whole(tensor)
        if name in there:
            there[name].copy_(full)


def require_ordinary(model: nn.Module, call: str) -> None:
    """Raise ValueError for a model with sharded parameters, and say what to do with it."""
    sharded = next((name for name, p in model.named_parameters() if is_sharded(p)), None)
    if sharded is not None:
        raise ValueError(
            f"{call} needs a model that is not sharded, but {sharded} is: inside opt.structured(), "
            f"gather_(whole, model) fills one, made as the model was; give that to {call}"
        )
