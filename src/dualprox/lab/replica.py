"""A network on one of several processes that train it together, each on its rows of a batch."""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any, Generic

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from . import ranks
from .tasks import Task
from .tasks.base import B


class Replica(Generic[B]):
    """Gives a process its part of the loss of every batch; alone, all of it.

    All processes make the same batch, and each computes the loss of its rows. With w_r the share
    that the rows of process r have in the mean over the batch, the gradient is

        sum_r w_r grad loss_r,   sum_r w_r = 1,

    that of the whole batch, also where shares are uneven. A process without rows computes with the
    whole batch, whose weight is then 0. Batch norms take mean and variance over the whole batch
    (torch's SyncBatchNorm does so on GPUs alone).

    Args:
        task: what is learned.
        model: the network, in training mode.
        seed: of the run; with the place of the step it decides the random numbers of dropout, which
            differ from process to process.
    """

    def __init__(self, task: Task[B], model: nn.Module, seed: int) -> None:
        self.task, self.bare, self.seed = task, model, seed
        self.model = model
        # Of the batch at hand: how many rows there are and are computed with, and whether those
        # are this process's.
        self.all_rows = self.here = 1
        self.counts = True

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """The steps of an epoch; on entry all processes take the first one's weights."""
        if ranks.world() == 1:
            yield
            return
        # Anew for every epoch, so that a run that goes on adds gradients up in the same order.
        self.model = DistributedDataParallel(self.bare)
        norms: list[Any] = [
            module
            for module in self.bare.modules()
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
        ]
        for norm in norms:
            norm.forward = partial(self._normalize, norm)
        try:
            yield
        finally:
            for norm in norms:
                del norm.forward
            self.model = self.bare

    def loss(self, batch: B, *place: int) -> Tensor:
        """This process's part of the mean loss of a batch; the parts add up to it.

        Args:
            batch: the same on all processes.
            place: of the step: epoch and number.
        """
        if ranks.world() == 1:
            return self.task.loss(self.model, batch)
        words = np.random.SeedSequence((self.seed, *place, ranks.rank())).generate_state(1)
        torch.manual_seed(int(words[0]))
        self.all_rows = len(batch[0])
        mine = ranks.rows(self.all_rows)
        self.here = mine.stop - mine.start
        self.counts = self.here > 0
        if not self.counts:
            self.here = self.all_rows
            return 0 * self.task.loss(self.model, batch)
        share = self.task.share(batch, mine)
        weight = self.task.weight(share) / self.task.weight(batch)
        return weight * self.task.loss(self.model, share)

    def _normalize(self, norm: Any, x: Tensor) -> Tensor:
        """What a batch norm makes of this process's part of a batch, whole in mean and variance."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        axes = [axis for axis in range(x.dim()) if axis != 1]
        # All rows are of one size.
        count = x.numel() // x.shape[1] * self.all_rows // self.here
        if count == 1:
            raise ValueError(f"a batch norm needs more than one value per channel, got {count}")
        mean = _total(wide.sum(axes) * self.counts) / count
        centered = wide - _along(mean, x)
        squares = _total(centered.square().sum(axes) * self.counts)
        normed = centered * _along((squares / count + norm.eps).rsqrt(), x)
        with torch.no_grad():
            norm.num_batches_tracked += 1
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(squares / (count - 1), norm.momentum)
        return (normed * _along(norm.weight, x) + _along(norm.bias, x)).to(x.dtype)


def _along(channels: Tensor, x: Tensor) -> Tensor:
    """A value for each channel, to be broadcast to `x`."""
    return channels.view(-1, *[1] * (x.dim() - 2))


class _Total(torch.autograd.Function):
    """The sum over all processes, and so of their slopes."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ranks.total(tensor)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ranks.total(slope)


def _total(tensor: Tensor) -> Tensor:
    summed: Any = _Total.apply(tensor)
    return summed
