"""MNIST and its drop-in replacements, from their four idx files."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .layout import Layout, open_unpacked
from .split import Data, Split

FILES = tuple(
    f"{part}-{kind}-ubyte.gz"
    for part in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
)
MD5 = (
    "6bbc9ace898e44ae57da46a324031adb",
    "a25bea736e30d166cdddb491f175f624",
    "2646ac647ad5339dbf082846283269ea",
    "27ae3e4e09519cfbb04c329615203637",
)
FASHION_MD5 = (
    "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "9018921c3c673c538a1fc5bad174d6f9",
    "8181f5470baa50b63fa0f6fddb340f0a",
    "15d484375f8d13e6eb1aabb0c3f46965",
)


def layouts(folders: tuple[str, ...], md5: tuple[str, ...]) -> tuple[Layout[Data], ...]:
    """The four files in any of some folders."""
    return tuple(
        Layout(tuple(f"{folder}/{name}" for name in FILES), mnist, md5) for folder in folders
    )


def read_idx(path: Path) -> Tensor:
    """The uint8 array of an idx file, gzipped or not.

    Raises:
        ValueError: it is no idx file of bytes, or not of the length that its header says.
    """
    with open_unpacked(path) as file:
        content = file.read()
    # Two zero bytes, the code of the type (8: unsigned bytes), the number of axes.
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an idx file of bytes")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise ValueError(f"{path} is cut off within its header")
    shape = tuple(np.frombuffer(content[4:start], ">u4").tolist())
    if len(content) != start + math.prod(shape):
        raise ValueError(f"{path} is cut off: its header says {shape}")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).copy()).view(shape)


def mnist(images: Path, labels: Path, val_images: Path, val_labels: Path) -> Split:
    """60000 training and 10000 test images of 28x28, one per row, scaled to [0, 1]."""
    x, y, val_x, val_y = map(read_idx, (images, labels, val_images, val_labels))
    height, width = x.shape[1:]
    return Split(
        x.flatten(1),
        y.long(),
        val_x.flatten(1),
        val_y.long(),
        image=(height, width),
        normalize=lambda kept: kept.float() / 255,
    )
