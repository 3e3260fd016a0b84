"""Telling classes apart."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...checks import require
from .. import data
from ..data.normalization import PUBLISHED, published
from ..settings import Run
from .base import Task

Batch = tuple[Tensor, Tensor]


def make_split(run: Run) -> data.Data:
    """The data of the run on its device, pixels normalized as the run says.

    Raises:
        DataError: the files of the data set are missing or damaged.
    """
    if run.normalization == "own":
        return data.load(run.data, run.data_dir).to(run.device)
    split = data.load_split(run.data, run.data_dir)
    return replace(split, normalize=published(run.data)).to(run.device)


class Classification(Task[Batch]):
    """The cross-entropy of labels, smoothed as the run says."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.split = make_split(run)
        self.augment = data.CATALOGUE[run.data].augment if run.augment else None

    @staticmethod
    def check(run: Run) -> None:
        """Raise ValueError if the data set has no such augmentation or normalization."""
        augmented = data.CATALOGUE[run.data].augment is not None
        require(augmented or not run.augment, "augment", f"false for data={run.data}", run.augment)
        own = run.normalization == "own"
        rule = f"own for data={run.data}"
        require(own or run.data in PUBLISHED, "normalization", rule, run.normalization)

    def __len__(self) -> int:
        """How many batches a pass has, the last one smaller than the others or not."""
        return -(-len(self.split) // self.run.batch_size)

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Inputs and labels; seed and epoch alone determine their bits."""
        run = self.run
        return self.split.batches(run.batch_size, run.seed, epoch, self.augment, first)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean cross-entropy."""
        inputs, labels = batch
        return cross_entropy(model(inputs), labels, label_smoothing=self.run.label_smoothing)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Validation loss, of labels that are not smoothed, and accuracy."""
        return evaluate(model, self.split)


@torch.no_grad()
def evaluate(model: nn.Module, split: data.Data) -> dict[str, float]:
    """Validation loss and accuracy of a model, which is in evaluation mode from then on."""
    model.eval()
    pairs = [(model(inputs), labels) for inputs, labels in split.validation()]
    scores, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return {
        "val_loss": cross_entropy(scores, labels).item(),
        "val_accuracy": (scores.argmax(1) == labels).double().mean().item(),
    }
