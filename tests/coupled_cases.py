"""Parameters whose groups span them, and gradients to train them with."""

from typing import Any

import numpy as np
import torch

import dualprox as dp
from contracts import coupling_of
from oracles.cases import NoisyQuadratic

# A stream of eight channels: written by a convolution, read by a grouped one and, four positions
# a channel, by a linear layer; its last channel is free, and so are some slices of others.
STREAM = (
    ((8, 3, 3, 3), 0, 1, 1, (0, 1, 2, 3, 4, 5, 6, -1)),
    ((4, 4, 1, 1), 1, 1, 2, (0, 1, 2, -1, 4, 5, 6, -1)),
    ((5, 32), 1, 4, 1, (6, 5, 4, 3, 2, 1, 0, -1)),
    ((6, 5), -1, 1, 1, (7, 8, 9, -1, 7)),
)
SHAPES = [member[0] for member in STREAM]
PENALTIES = {
    "GroupLasso": {"strength": 0.35},
    "SparseGroupLasso": {"strength": 0.35, "l1_ratio": 0.3},
    "GroupMCP": {"strength": 0.35, "gamma": 3.0},
    "GroupSCAD": {"strength": 0.35, "gamma": 2.5, "concavity": 0.9},
    "GroupL0": {"strength": 0.3},
    "GroupHalf": {"strength": 0.2},
}


def coupled(name: str = "GroupLasso", members: Any = STREAM, **more: Any) -> dp.Coupled:
    """The library's penalty over the members."""
    return dp.Coupled(getattr(dp, name)(**{**PENALTIES[name], **more}), coupling_of(members))


def parameters(members: Any = STREAM, dtype: torch.dtype = torch.float64) -> list[Any]:
    generator = torch.Generator().manual_seed(5)
    return [
        torch.nn.Parameter(torch.randn(m[0], generator=generator, dtype=torch.float64).to(dtype))
        for m in members
    ]


def gradients(params: list[Any]) -> Any:
    """A function that sets noisy gradients for step t."""
    targets = [NoisyQuadratic(tuple(p.shape), 40 + i, 1).target for i, p in enumerate(params)]

    def set_gradients(step: int) -> None:
        noise = torch.Generator().manual_seed(step)
        for p, target in zip(params, targets, strict=True):
            random = torch.randn(p.shape, generator=noise, dtype=torch.float64)
            p.grad = (p.detach().double() - torch.tensor(target) + 0.1 * random).to(p.dtype)

    return set_gradients


def joined(tensors: list[torch.Tensor]) -> np.ndarray:
    return np.concatenate([t.detach().double().numpy().ravel() for t in tensors])
