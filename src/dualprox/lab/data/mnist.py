"""MNIST and its drop-in replacements, from their four idx files."""

import gzip
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .split import Split

FILES = tuple(
    f"{part}-{kind}-ubyte.gz"
    for part in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
)


def read_idx(path: Path) -> Tensor:
    """The uint8 array of a gzipped idx file.

    Raises:
        ValueError: it is no idx file of bytes, or not of the length that its header says.
    """
    content = gzip.decompress(path.read_bytes())
    # Two zero bytes, the code of the type (8: unsigned bytes), the number of axes.
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an idx file of bytes")
    start = 4 + 4 * content[3]
    shape = tuple(np.frombuffer(content[4:start], ">u4").tolist())
    if len(content) != start + math.prod(shape):
        raise ValueError(f"{path} is cut off: its header says {shape}")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).copy()).view(shape)


def mnist(folder: Path) -> Split:
    """60000 training and 10000 test images of 28x28, one per row, scaled to [0, 1]."""
    x, y, val_x, val_y = (read_idx(folder / name) for name in FILES)
    height, width = x.shape[1:]
    return Split(
        x.flatten(1),
        y.long(),
        val_x.flatten(1),
        val_y.long(),
        image=(height, width),
        normalize=lambda kept: kept.float() / 255,
    )
