"""CIFAR-10 and CIFAR-100: Python batches, JPEG packs, and the first exact training images."""

import io
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .arrays import read_array, read_arrays
from .cifar_pickle import read_batch
from .layout import Layout
from .pixels import moments, standardize, standardize_as
from .split import Data, Split, random_crop, random_flip

LOSSY = "CIFAR-10 from lossy JPEG: accuracies are not comparable with published ones"
# The images are in random order, so the last ones serve for validation.
HELD_OUT = 500


def read_pack(path: Path) -> tuple[Tensor, Tensor]:
    """Images, uint8 (images, 3, height, width), and int64 labels of a pack of JPEG images.

    A pack holds `jpg`, the bytes of all images; `off`, where each begins and the last ends; and
    `label`.
    """
    from PIL import Image

    pack = read_arrays(path)
    bounds, content, labels = pack["off"], pack["jpg"].tobytes(), pack["label"]
    images = np.stack(
        [
            np.asarray(Image.open(io.BytesIO(content[start:end])).convert("RGB"))
            for start, end in pairwise(bounds)
        ]
    )
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return pixels, torch.from_numpy(labels).long()


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """A random crop with a margin of 4 pixels and a random flip."""
    return random_flip(random_crop(x, 4, generator), generator)


def from_batches(name: str) -> Callable[..., Split]:
    """The reader of Python batches, those of the test set in the last file.

    Pixels are scaled as in the papers' experiments, by `pixels.SCALES`.
    """

    def read(*paths: Path) -> Split:
        batches = [read_batch(path) for path in paths]
        x, y = (torch.cat(parts) for parts in zip(*batches[:-1], strict=True))
        return Split(x, y, *batches[-1], normalize=standardize_as(name))

    return read


def from_packs(train: Path, test: Path) -> Split:
    """50000 training and 10000 test images of 3x32x32, from packs of JPEG images.

    Every channel has mean 0 and variance 1 over the training images.
    """
    (x, y), (val_x, val_y) = map(read_pack, (train, test))
    return Split(x, y, val_x, val_y, normalize=standardize(*moments(x)))


def first_4000(labels: Path, *pictures: Path) -> Split:
    """The first training images of CIFAR-10, exact; the last 500 of them for validation.

    Every row of a picture holds one image of 32x32x3, flattened. Every channel has mean 0 and
    variance 1 over the training images.
    """
    from PIL import Image

    rows = [np.asarray(Image.open(path)).reshape(-1, 32, 32, 3) for path in pictures]
    x = torch.from_numpy(np.concatenate(rows)).permute(0, 3, 1, 2).contiguous()
    y = torch.from_numpy(read_array(labels)).long()
    if len(x) != len(y):
        raise ValueError(f"{labels} has {len(y)} labels for {len(x)} images")
    cut = len(x) - HELD_OUT
    return Split(x[:cut], y[:cut], x[cut:], y[cut:], normalize=standardize(*moments(x[:cut])))


_BATCHES = [f"data_batch_{number}" for number in range(1, 6)]
CIFAR10: tuple[Layout[Data], ...] = (
    Layout(
        tuple(f"cifar-10-batches-py/{name}" for name in (*_BATCHES, "test_batch")),
        from_batches("cifar10"),
        md5=(
            "c99cafc152244af753f735de768cd75f",
            "d4bba439e000b95fd0a9bffe97cbabec",
            "54ebc095f3ab1f0389bbae665268c751",
            "634d18415352ddfa80567beed471001a",
            "482c414d41f54cd18b22e5b47cb7c3cb",
            "40351d587109b95175f43aff81a1287e",
        ),
    ),
    Layout(
        ("cifar10/cifar10_train_jpeg.npz", "cifar10/cifar10_test_jpeg.npz"),
        from_packs,
        caveat=LOSSY,
    ),
)
CIFAR100: tuple[Layout[Data], ...] = (
    Layout(
        ("cifar-100-python/train", "cifar-100-python/test"),
        from_batches("cifar100"),
        md5=("16019d7e3df5f24257cddd939b257f8d", "f0ef6b0ae62326f3e7ffdfab6717acfc"),
    ),
)
FIRST_4000: tuple[Layout[Data], ...] = (
    Layout(
        (
            "cifar10/lossless4000_labels.npy",
            *(f"cifar10/cifar10_batch_{k}.png" for k in range(4)),
        ),
        first_4000,
        caveat="4000 images of CIFAR-10: accuracies are not comparable with published ones",
    ),
)
