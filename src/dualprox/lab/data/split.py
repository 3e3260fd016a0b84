"""Data sets as tensors, and the order in which a run sees them."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Split:
    """A data set, split.

    Args:
        x, y: training inputs, float32 (examples, features), and int64 labels.
        val_x, val_y: the same for validation.
        classes: how many labels there are.
        image: height and width of an input seen as an image.
    """

    x: Tensor
    y: Tensor
    val_x: Tensor
    val_y: Tensor
    classes: int
    image: tuple[int, int]


def digits() -> Split:
    """scikit-learn's bundled handwritten digits: 1797 images of 8x8, a fixed 80/20 split.

    Pixels are scaled to [0, 1]. The split is stratified and the same for every seed of a run.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    x, val_x, y, val_y = train_test_split(
        images / 16.0, labels, test_size=0.2, stratify=labels, random_state=0
    )
    x, val_x = (torch.from_numpy(part).float() for part in (x, val_x))
    y, val_y = (torch.from_numpy(part).long() for part in (y, val_y))
    return Split(x, y, val_x, val_y, classes=10, image=(8, 8))


def batches(examples: int, batch_size: int, seed: int, epoch: int) -> tuple[Tensor, ...]:
    """Indices of the batches of an epoch: a permutation that seed and epoch alone determine."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(examples, generator=generator).split(batch_size)
