"""Arrays of numpy's files, which hold no objects and no more than the files have bytes for."""

import io
import math
import sys
import zipfile
from pathlib import Path

import numpy as np

from .layout import MOST_BYTES


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, by name.

    Raises:
        ValueError: they take too many bytes, or an array is damaged or of objects.
    """
    # numpy forgets to close the file of a damaged archive, so it gets none.
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > MOST_BYTES:
            raise ValueError(f"{path} would unpack to {unpacked} bytes, more than {MOST_BYTES}")
        return {
            name.removesuffix(".npy"): array_of(archive.read(name)) for name in archive.namelist()
        }


def read_array(path: Path) -> np.ndarray:
    """The array of an .npy file.

    Raises:
        ValueError: it is damaged, or of objects.
    """
    return array_of(path.read_bytes())


def array_of(content: bytes) -> np.ndarray:
    """The array that the content of an .npy file holds.

    Raises:
        ValueError: it is damaged, or of objects.
    """
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    headers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in headers:
        raise ValueError(f"an array must be of format 1.0 or 2.0, got {version}")
    shape, _, dtype = headers[version](file)
    size = math.prod(shape) * dtype.itemsize
    # Asked before numpy makes room for it.
    if min(shape, default=0) < 0 or size != len(content) - file.tell():
        raise ValueError(
            f"an array of shape {shape} takes {size} bytes, got {len(content) - file.tell()}"
        )
    file.seek(0)
    array = np.load(file, allow_pickle=False)
    if dtype.kind == "U":
        letters = np.frombuffer(array.tobytes(), np.dtype("u4").newbyteorder(dtype.byteorder))
        if letters.max(initial=0) > sys.maxunicode:  # numpy makes texts of them that Python denies
            raise ValueError(f"letters must be at most {sys.maxunicode:#x}, got {letters.max():#x}")
    return array
