"""CIFAR-10 packed as JPEG images."""

import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .split import Split, random_crop, random_flip

FILES = ("cifar10_train_jpeg.npz", "cifar10_test_jpeg.npz")
CAVEAT = "CIFAR-10 from lossy JPEG: accuracies are not comparable with published ones"


def read_pack(path: Path) -> tuple[Tensor, Tensor]:
    """Images, uint8 (images, 3, height, width), and int64 labels of a pack of JPEG images.

    A pack holds `jpg`, the bytes of all images; `off`, where each begins and the last ends; and
    `label`.
    """
    from PIL import Image

    # numpy forgets to close the file of a damaged archive, so it gets none.
    with np.load(io.BytesIO(path.read_bytes())) as pack:
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


def cifar10(folder: Path) -> Split:
    """50000 training and 10000 test images of 3x32x32.

    Every channel has mean 0 and variance 1 over the training images. Inputs are channels_last in
    memory, which CPUs convolve faster.
    """
    (x, y), (val_x, val_y) = (read_pack(folder / name) for name in FILES)
    # In parts: all pixels in float64 would take a gigabyte.
    moments = torch.stack(
        [
            torch.stack((part.sum((0, 2, 3)), part.square().sum((0, 2, 3))))
            for part in (images.double() for images in x.split(1000))
        ]
    ).sum(0) / (x.numel() / x.shape[1])
    mean = moments[0].view(-1, 1, 1)
    std = (moments[1].view(-1, 1, 1) - mean.square()).sqrt()

    def normalize(kept: Tensor) -> Tensor:
        scaled = (kept.float() - mean.float()) / std.float()
        return scaled.contiguous(memory_format=torch.channels_last)

    return Split(x, y, val_x, val_y, normalize=normalize)
