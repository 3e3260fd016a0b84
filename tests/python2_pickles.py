"""CIFAR batches as Python 2 wrote them: protocol 2, its strings, its numpy."""

import io
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np

_Pickler: Any = vars(pickle)["_Pickler"]  # the one in Python, whose output can be changed


def _save_bytes(pickler: Any, content: bytes) -> None:
    """Write bytes as a string of Python 2."""
    pickler.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
    pickler.memoize(content)


def python2_pickle(content: Any) -> bytes:
    """A pickle of strings (given as bytes), numbers, lists, dicts and arrays."""
    file = io.BytesIO()
    pickler = _Pickler(file, 2)
    pickler.dispatch = {**_Pickler.dispatch, bytes: _save_bytes}
    pickler.dump(content)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def write_batch(path: Path, images: np.ndarray, labels: list[int], fine: bool = False) -> None:
    """A CIFAR batch of images (count, 32, 32, 3), rows of all red, then green, then blue."""
    path.parent.mkdir(parents=True, exist_ok=True)
    planes = [image[:, :, channel].ravel() for image in images for channel in range(3)]
    batch = {
        b"batch_label": b"testing batch 1 of 1",
        b"data": np.concatenate(planes).reshape(len(images), 3072),
        b"filenames": [b"leptodactylus_pentadactylus_s_000004.png"] * len(images),
        b"fine_labels" if fine else b"labels": labels,
    }
    if fine:
        batch[b"coarse_labels"] = [0] * len(labels)
    path.write_bytes(python2_pickle(batch))
