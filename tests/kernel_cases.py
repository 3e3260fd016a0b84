"""The weights that the suites of the fused kernels step, here and on a GPU."""

from dataclasses import dataclass
from typing import Any

import torch

import dualprox as dp
from dualprox.kernels.scalars import Method

EAGER: dict[Method, Any] = {
    "rmda": dp.RMDA,
    "ramda": dp.RAMDA,
    "prox_sgd": dp.ProxSGD,
    "prox_adamw": dp.ProxAdamW,
}
# Of the largest entry: thirty rounding errors, of sums in another order and of the cube root.
TOLERANCE = 4e-6
LR: dict[Method, float] = {"rmda": 0.1, "ramda": 0.02, "prox_sgd": 0.1, "prox_adamw": 0.05}


@dataclass(frozen=True)
class Case:
    """A weight, its penalty, and whether it is stored channels_last."""

    shape: tuple[int, ...]
    penalty: dp.Penalty | None
    channels_last: bool = False

    def weight(self, seed: int, dtype: torch.dtype) -> torch.Tensor:
        """Entries whose size varies a lot along every axis, so that some groups die."""
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(self.shape, generator=generator)
        for axis, length in enumerate(self.shape):
            scale = torch.where(torch.rand(length, generator=generator) < 0.4, 0.05, 1.0)
            weight *= scale.view([-1 if k == axis else 1 for k in range(len(self.shape))])
        if self.channels_last:
            weight = weight.to(memory_format=torch.channels_last)
        return weight.to(dtype)


FREE = (Case((3, 5), None), Case((2100,), None), Case((3, 11), dp.L1(0.3)))
RESIDENT = (
    Case((1, 1), dp.GroupLasso(0.1)),
    Case((17, 67), dp.GroupLasso(0.2)),
    Case((33,), dp.GroupLasso(0.4, axis=0)),
    Case((5, 8, 3, 3), dp.GroupLasso(0.2)),
    Case((8, 3, 7, 7), dp.GroupLasso(0.2)),
    Case((5, 6, 3, 3), dp.GroupLasso(0.2), channels_last=True),
    Case((6, 4, 3, 3), dp.GroupLasso(0.2, conv_groups=2)),
    Case((3, 4, 5), dp.GroupLasso(0.3, axis=2)),
    Case((6, 5), dp.SparseGroupLasso(0.3, axis=0, block=2, l1_ratio=0.3)),
    Case((7, 8), dp.SparseGroupLasso(0.3, block=4, size_weighted=False)),
    Case((4, 9), dp.SparseGroupLasso(0.3, l1_ratio=1.0)),
    Case((5, 4), dp.GroupLasso(50.0)),
)
LARGE = (
    Case((30, 10), dp.GroupLasso(0.05, axis=1, block=10)),
    Case((40, 9), dp.GroupLasso(0.2)),
    Case((3, 2, 9, 9), dp.SparseGroupLasso(0.3, l1_ratio=0.2)),
)
