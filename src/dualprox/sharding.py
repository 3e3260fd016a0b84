"""Tensors whose parts lie on several processes, torch's DTensor.

Torch's operations on them, reductions included, mean what they mean on the full tensor. Two
things do not, and are done here: reading a number, which gives each process its own part of a
sum, and algorithms that are not made of operations DTensor knows.
"""

from typing import Any

import torch
from torch import Tensor


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
    from torch.distributed.tensor import DTensor, Replicate

    like: Any = other
    everywhere = [Replicate()] * like.device_mesh.ndim
    copies = DTensor.from_local(full, like.device_mesh, everywhere, run_check=False)
    return copies.redistribute(placements=like.placements)
