"""The Python batches of CIFAR, read without running what a pickle may hold."""

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .layout import open_unpacked


class _Bytes:
    """Stands in for numpy's dtype: unsigned bytes and nothing else."""

    def __init__(self, code: object, *flags: object) -> None:
        if code not in (b"u1", "u1", b"|u1", "|u1"):
            raise pickle.UnpicklingError(f"an array must be of unsigned bytes, got {code!r}")

    def __setstate__(self, state: object) -> None:
        """The rest of a dtype says nothing more of bytes."""


class _Array:
    """Stands in for numpy's array: keeps the shape and the bytes."""

    def __init__(self, *parts: object) -> None:
        self.content = np.empty((0,), np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, is_fortran, content = state
        whole = isinstance(kind, _Bytes) and not is_fortran and isinstance(content, bytes)
        if not whole or len(content) != math.prod(shape):
            raise pickle.UnpicklingError(f"an array of shape {shape} is not whole")
        self.content = np.frombuffer(content, np.uint8).reshape(shape)


class _Subtype:
    """Stands in for the class of numpy's arrays, which pickles name and nobody here calls."""


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Subtype,
    ("numpy", "dtype"): _Bytes,
}


# The one written in Python: C's makes room for as many objects as a few bytes may claim.
class _Unpickler(pickle._Unpickler):
    """Unpickles strings, numbers, lists, dicts and arrays of bytes; refuses every other name."""

    def find_class(self, module: str, name: str) -> type:
        """The stand-in for a name of numpy's.

        Raises:
            UnpicklingError: the pickle asks for anything else.
        """
        found = _STAND_INS.get((module, name))
        if found is None:
            raise pickle.UnpicklingError(f"a CIFAR batch has no use for {module}.{name}")
        return found


def read_batch(path: Path) -> tuple[Tensor, Tensor]:
    """Images, uint8 (images, 3, 32, 32), and int64 labels of a Python batch of CIFAR.

    Raises:
        UnpicklingError: the file holds anything else, code to run included.
    """
    try:
        with open_unpacked(path) as file:
            batch = _Unpickler(file, encoding="bytes").load()
        labels = batch[b"fine_labels" if b"fine_labels" in batch else b"labels"]
        if not all(type(label) is int for label in labels):
            raise pickle.UnpicklingError("labels must be whole numbers")
        pixels = batch[b"data"].content.reshape(-1, 3, 32, 32)
        batch = torch.from_numpy(pixels.copy()), torch.tensor(labels, dtype=torch.int64)
    except Exception as error:  # damaged pickles raise many kinds
        raise pickle.UnpicklingError(f"{path} is no CIFAR batch: {error}") from error
    if batch[1].shape != batch[0].shape[:1]:
        raise pickle.UnpicklingError(f"{path} has not one label for each of {len(pixels)} images")
    return batch
