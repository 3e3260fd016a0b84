"""Which data sets there are, what their examples look like, and where their files lie."""

import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import cifar, mnist, speech
from .digits import digits
from .split import Augmentation, Split


class DataError(ValueError):
    """Files of a data set that are missing or damaged."""


@dataclass(frozen=True)
class DataSet:
    """What is known of a data set before it is read.

    Args:
        shape: of one input of a network, without the batch.
        classes: how many labels there are.
        read: the folder of its files to the data.
        folder: where its files lie in the user's data folder; "" for data that need none.
        files: the names of its files.
        augment: the random changes that suit its examples; None where there is no such habit.
        caveat: what must be said wherever a figure from it is shown; "" for nothing.
    """

    shape: tuple[int, ...]
    classes: int
    read: Callable[[Path], Split]
    folder: str = ""
    files: tuple[str, ...] = ()
    augment: Augmentation | None = None
    caveat: str = ""


CATALOGUE: dict[str, DataSet] = {
    "digits": DataSet((64,), 10, lambda folder: digits()),
    "mnist": DataSet((784,), 10, mnist.mnist, "mnist", mnist.FILES),
    "fashion_mnist": DataSet((784,), 10, mnist.mnist, "fashion-mnist", mnist.FILES),
    "cifar10": DataSet(
        (3, 32, 32), 10, cifar.cifar10, "cifar10", cifar.FILES, cifar.augment, cifar.CAVEAT
    ),
    "fsdd": DataSet((1, speech.SAMPLES), 10, speech.fsdd, "fsdd", speech.FILES, speech.augment),
}


def require_files(name: str, data_dir: str | None) -> Path:
    """The folder of a data set's files.

    Raises:
        DataError: no data folder is given, or files are missing there; says what must lie where.

    Example:
        >>> require_files("fsdd", None)
        Traceback (most recent call last):
            ...
        dualprox.lab.data.catalogue.DataError: data_dir must be a folder that holds fsdd/fsdd.npz
        (its formats: docs/data.md), got None
    """
    known = CATALOGUE[name]
    folder = Path(data_dir or "") / known.folder
    there = data_dir is not None and all((folder / file).is_file() for file in known.files)
    layout = " and ".join(f"{known.folder}/{file}" for file in known.files)
    if known.files and not there:
        raise DataError(
            f"data_dir must be a folder that holds {layout} (its formats: docs/data.md), "
            f"got {data_dir!r}"
        )
    return folder


def load(name: str, data_dir: str | None) -> Split:
    """The data set called `name`, read from the user's data folder if it comes in files.

    Raises:
        DataError: its files are missing or damaged.
    """
    folder = require_files(name, data_dir)
    try:
        return CATALOGUE[name].read(folder)
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{folder} does not hold {name}: {error}") from error
