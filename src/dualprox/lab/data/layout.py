"""How the files of a data set may lie in the user's data folder, and how they are found there."""

import gzip
import hashlib
import io
import lzma
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar, cast

T = TypeVar("T")

_OPENERS = {".gz": gzip.open, ".xz": lzma.open}
# Of one file, unpacked: a gigabyte more than the largest of those that are known.
MOST_BYTES = 1 << 31


class DataError(ValueError):
    """Files of a data set that are missing or damaged."""


@dataclass(frozen=True)
class Layout(Generic[T]):
    """One way in which the files of a data set may lie.

    Args:
        files: their paths below the data folder, a folder of files for one with a "/" at its end.
            Packed with gzip or xz, or unpacked, a file is found all the same.
        read: the paths of these files, in this order, to the data.
        md5: of the published files, unpacked, in the same order; empty for none that is known.
        caveat: what must be said wherever a figure from these files is shown; "" for nothing.
    """

    files: tuple[str, ...]
    read: Callable[..., T]
    md5: tuple[str, ...] = ()
    caveat: str = ""

    def find(self, folder: Path) -> tuple[Path, ...] | None:
        """The paths of all files, or None if one is missing."""
        paths = [_find(folder, file) for file in self.files]
        found = tuple(path for path in paths if path is not None)
        return found if len(found) == len(paths) else None

    def __str__(self) -> str:
        return " and ".join(self.files)


def _find(folder: Path, file: str) -> Path | None:
    """A file of a layout, as it is or packed; None if there is none."""
    if file.endswith("/"):
        return folder / file if os.path.isdir(folder / file) else None
    plain = folder / file
    plain = plain.with_suffix("") if plain.suffix in _OPENERS else plain
    choices = [plain, *(plain.with_name(plain.name + suffix) for suffix in _OPENERS)]
    return next((path for path in choices if os.path.isfile(path)), None)


class _Unpacked(io.RawIOBase):
    """A packed file, read as far as `MOST_BYTES`."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file, self.count = path, file, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """See io.RawIOBase.

        Raises:
            ValueError: it is larger.
        """
        part = self.file.read(len(buffer))
        buffer[: len(part)] = part
        self.count += len(part)
        if self.count > MOST_BYTES:
            raise ValueError(f"{self.path} unpacks to more than {MOST_BYTES} bytes")
        return len(part)

    def close(self) -> None:
        """Close the packed file, too."""
        self.file.close()
        super().close()


def open_unpacked(path: Path) -> BinaryIO:
    """Open a file for reading, unpacking it if its name ends in .gz or .xz."""
    if path.suffix not in _OPENERS:
        return open(path, "rb")
    packed = cast(BinaryIO, _OPENERS[path.suffix](path, "rb"))
    return io.BufferedReader(_Unpacked(path, packed), 1 << 16)


def md5(path: Path) -> str:
    """The MD5 sum of a file, unpacked."""
    digest = hashlib.md5(usedforsecurity=False)
    with open_unpacked(path) as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def find(
    layouts: tuple[Layout[T], ...], data_dir: str | None
) -> tuple[Layout[T], tuple[Path, ...]]:
    """The first layout whose files are all there, and their paths.

    Raises:
        DataError: there is none, or no data folder; says what must lie where, and what lies there.

    Example:
        >>> find((Layout(("fsdd/fsdd.npz",), str), Layout(("fsdd/recordings/",), str)), None)
        Traceback (most recent call last):
            ...
        dualprox.lab.data.layout.DataError: data_dir must be a folder that holds fsdd/fsdd.npz, or
        fsdd/recordings/ (its formats: docs/data.md), got None
    """
    for layout in layouts:
        if not layout.files:
            return layout, ()
        paths = None if data_dir is None else layout.find(Path(data_dir))
        if paths is not None:
            return layout, paths
    wanted = ", or ".join(map(str, layouts))
    raise DataError(
        f"data_dir must be a folder that holds {wanted} (its formats: docs/data.md), "
        f"got {data_dir!r}{_contents(data_dir)}"
    )


def _contents(data_dir: str | None, most: int = 12) -> str:
    """What lies in a folder, as the end of a sentence about it."""
    if data_dir is None:
        return ""
    if not os.path.isdir(data_dir):
        return ", which is no folder"
    names = sorted(path.name + "/" * path.is_dir() for path in Path(data_dir).iterdir())
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f", which holds {', '.join(names[:most])}{more}" if names else ", which is empty"


def read(name: str, layouts: tuple[Layout[T], ...], data_dir: str | None) -> T:
    """The data set called `name`, read from the first layout whose files are all there.

    Raises:
        DataError: its files are missing or damaged.
    """
    layout, paths = find(layouts, data_dir)
    try:
        return layout.read(*paths)
    except Exception as error:  # readers of damaged files raise whatever they like
        raise _damaged(name, paths, error) from error


def _damaged(name: str, paths: tuple[Path, ...], error: Exception) -> DataError:
    folder = paths[0].parent if paths else "the installation"
    reason = str(error).partition("\n")[0] or type(error).__name__
    return DataError(f"{folder} does not hold {name}: {reason}")


def caveat(name: str, layouts: tuple[Layout[T], ...], data_dir: str | None) -> str:
    """What must be said of figures from the files that are there; "" for nothing.

    That is the layout's own caveat, or that files are not those which were published.

    Raises:
        DataError: files are missing, or cannot be read.
    """
    layout, paths = find(layouts, data_dir)
    try:
        same = all(md5(path) == known for path, known in zip(paths, layout.md5, strict=False))
    except Exception as error:
        raise _damaged(name, paths, error) from error
    return layout.caveat if same else f"these are not the published files of {name}"
