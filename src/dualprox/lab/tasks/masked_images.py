"""Filling in the hidden patches of images."""

import math
from collections.abc import Iterator
from itertools import count

import torch
from torch import Tensor, nn

from ...checks import require
from .. import data
from ..data.crops import random_resized_crop, resize_boxes
from ..data.pixels import standardize
from ..data.split import Split, generator_of, random_flip
from ..settings import Run
from ..specs import VitMimSpec
from .base import Task

# Images, and which of their patches are hidden.
Batch = tuple[Tensor, Tensor]
# The share of the training images that is held out, the same at every call, and random boxes of
# at least two thirds of an image: arXiv:2111.09886, as trained in arXiv:2403.14398.
HELD_OUT, PART_SEED = 0.15, 20_211_118
SCALE = (0.67, 1.0)
# Other numbers than those that boxes and flips are drawn with; no epoch has this number.
MASKS, VALIDATION = 7919, 0


def hidden_patches(
    examples: int, side: int, cell: int, ratio: float, generator: torch.Generator
) -> Tensor:
    """Which patches are hidden: random square cells of them, the same number in each image.

    Args:
        examples: how many images.
        side: patches in a row of an image, a multiple of `cell`.
        cell: patches in a row of what is hidden together.
        ratio: the share of cells, rounded up, in (0, 1].
        generator: on the CPU.

    Returns:
        bool (examples, side * side), row by row.

    Source: Xie et al., arXiv:2111.09886, section 3.2.

    Example:
        >>> hidden_patches(1, 4, 2, 0.25, torch.Generator().manual_seed(0)).view(4, 4).int()
        tensor([[0, 0, 0, 0],
                [0, 0, 0, 0],
                [1, 1, 0, 0],
                [1, 1, 0, 0]], dtype=torch.int32)
    """
    cells = side // cell
    hidden = math.ceil(cells**2 * ratio)
    ranks = torch.rand((examples, cells**2), generator=generator).argsort(1).argsort(1)
    coarse = (ranks < hidden).view(examples, cells, cells)
    return coarse.repeat_interleave(cell, 1).repeat_interleave(cell, 2).flatten(1)


class MaskedImages(Task[Batch]):
    """The mean absolute error of the pixels of hidden patches, of images without labels.

    Pixels are scaled to [-1, 1]. Validation images are changed like training images, in the same
    way each time.
    """

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        assert isinstance(run.model, VitMimSpec)
        self.spec = run.model
        whole = data.load_split(run.data, run.data_dir)
        order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(PART_SEED))
        held = round(HELD_OUT * len(whole))
        train, val = order[held:].sort().values, order[:held].sort().values
        middle = torch.full((3,), 127.5)
        split = Split(whole.x[train], whole.y[train], whole.x[val], whole.y[val])
        self.split = split.to(run.device)
        self.normalize = standardize(middle, middle)

    @staticmethod
    def check(run: Run) -> None:
        """Raise ValueError for settings of labels."""
        rule = "own for masked images"
        require(run.normalization == "own", "normalization", rule, run.normalization)
        rule = "0 for masked images"
        require(run.label_smoothing == 0, "label_smoothing", rule, run.label_smoothing)

    def __len__(self) -> int:
        """How many batches a pass has."""
        return -(-len(self.split) // self.run.batch_size)

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Images and what is hidden of them; seed and epoch alone determine their bits."""
        generator = generator_of(self.run.seed, epoch)
        order = torch.randperm(len(self.split), generator=generator).to(self.device)
        return self._masked(self.split.x, order, self.run.seed, epoch, first)

    def _masked(
        self, x: Tensor, order: Tensor, seed: int, epoch: int, first: int = 0
    ) -> Iterator[Batch]:
        spec = self.spec
        side, cell = spec.image // spec.patch, spec.mask_patch // spec.patch
        parts = order.split(self.run.batch_size)[first:]
        for number, part in zip(count(first + 1), parts, strict=False):
            generator = generator_of(seed * MASKS + epoch, number)
            images = self._resized(x[part], generator)
            hidden = hidden_patches(len(part), side, cell, spec.mask_ratio, generator)
            yield self.normalize(images), hidden.to(self.device, non_blocking=True)

    def _resized(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Images in the network's size: random boxes, or the whole of each."""
        if self.run.augment:
            boxes = random_resized_crop(x, self.spec.image, generator, scale=SCALE)
            return random_flip(boxes, generator)
        whole = torch.tensor([0, 0, *x.shape[2:]]).expand(len(x), 4)
        return resize_boxes(x, whole, self.spec.image)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean absolute error on hidden pixels."""
        images, hidden = batch
        return model(images, bool_masked_pos=hidden).loss

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Validation loss, the mean over images."""
        model.eval()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        places = torch.arange(len(self.split.val_x), device=self.device)
        for batch in self._masked(self.split.val_x, places, 0, VALIDATION):
            total += self.loss(model, batch).double() * len(batch[0])
        return {"val_loss": total.item() / len(places)}
