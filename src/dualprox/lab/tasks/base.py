"""What a run learns: its batches, its loss, and how well it does."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from ..settings import Run

# Tensors with a row for each example.
B = TypeVar("B", bound=tuple[Tensor, ...])


class Task(ABC, Generic[B]):
    """What a run learns, with its data; batches of type `B` lie on the run's device.

    Args:
        run: whose data are read.

    Raises:
        DataError: the files of the data set are missing or damaged.
        ValueError: they do not suit the network.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.device = torch.device(run.device)

    @staticmethod
    @abstractmethod
    def check(run: Run) -> None:
        """Raise ValueError for settings that make no sense for this task."""

    @abstractmethod
    def __len__(self) -> int:
        """How many batches a pass over the training set has."""

    @abstractmethod
    def batches(self, epoch: int, first: int = 0) -> Iterator[B]:
        """The batches of an epoch, at least a pass; the caller stops where the epoch ends.

        Args:
            epoch: which, from 1.
            first: how many were taken before the run was stopped within the epoch.
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: B) -> Tensor:
        """The mean loss of a batch, a scalar to go backward from."""

    def share(self, batch: B, rows: slice) -> B:
        """Some rows of a batch, padded as the batch is."""
        return cast(B, tuple(part[rows] for part in batch))

    def weight(self, batch: B) -> Tensor | int:
        """How many things the mean loss of a batch is a mean over; here its rows."""
        return len(batch[0])

    @abstractmethod
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Metrics on the validation set; the model is in evaluation mode from then on."""

    def state_dict(self) -> dict[str, Any]:
        """What a batch leaves for the next, loadable with ``weights_only=True``; here nothing."""
        return {}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        del saved
