"""The losses of an epoch, without a wait for the device in every step."""

import math

import torch
from torch import Tensor

from . import ranks

EVERY = 100


class Losses:
    """Losses of the steps of an epoch, read from the device a hundred at a time.

    Args:
        where: for the error, "epoch 3".

    Example:
        >>> losses = Losses("epoch 1")
        >>> for value in (1.0, 2.0):
        ...     losses.add(torch.tensor(value))
        >>> losses.mean()
        1.5
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.read: list[float] = []
        self.unread: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        """Take the loss, a scalar, of the next step; of several processes, this one's part of it.

        Raises:
            FloatingPointError: it, or one of those that had not been read, is not finite.
        """
        self.unread.append(loss.detach())
        if len(self.unread) == EVERY:
            self._read()

    def mean(self) -> float:
        """The mean over the steps, of which there is at least one.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        self._read()
        return sum(self.read) / len(self.read)

    def _read(self) -> None:
        if not self.unread:
            return
        new, before = ranks.total(torch.stack(self.unread)).tolist(), len(self.read)
        self.read += new
        self.unread.clear()
        for step, loss in enumerate(new, start=before + 1):
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss} in {self.where}, step {step}, found when steps "
                    f"{before + 1} to {len(self.read)} were looked at: try a smaller lr; the "
                    "checkpoint of the epoch before is untouched"
                )
