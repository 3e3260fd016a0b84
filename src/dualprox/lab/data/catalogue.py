"""Which data sets of examples with labels there are, and what their examples look like."""

from dataclasses import dataclass
from typing import Any

from . import cifar, imagenet, layout, mnist, speech
from .digits import digits
from .layout import DataError, Layout
from .ljspeech import LJSPEECH
from .split import Augmentation, Data, Split, random_flip
from .wikitext import CORPORA


@dataclass(frozen=True)
class DataSet:
    """What is known of a data set before it is read.

    Args:
        shape: of one input of a network, without the batch.
        classes: how many labels there are.
        layouts: the ways in which its files may lie in the data folder, the best first.
        augment: the random changes that suit its examples; None where there is no such habit.
    """

    shape: tuple[int, ...]
    classes: int
    layouts: tuple[Layout[Data], ...]
    augment: Augmentation | None = None

    @property
    def needs_files(self) -> bool:
        """Whether it comes in files of the user's."""
        return any(way.files for way in self.layouts)


CATALOGUE: dict[str, DataSet] = {
    "digits": DataSet((64,), 10, (Layout((), digits),)),
    "mnist": DataSet((784,), 10, mnist.layouts(("mnist", "MNIST/raw"), mnist.MD5)),
    "fashion_mnist": DataSet(
        (784,), 10, mnist.layouts(("fashion-mnist", "FashionMNIST/raw"), mnist.FASHION_MD5)
    ),
    "cifar10": DataSet((3, 32, 32), 10, cifar.CIFAR10, cifar.augment),
    "cifar10_first4000": DataSet((3, 32, 32), 10, cifar.FIRST_4000, cifar.augment),
    "cifar100": DataSet((3, 32, 32), 100, cifar.CIFAR100, cifar.augment),
    "imagenet": DataSet((3, 224, 224), 1000, imagenet.IMAGENET, random_flip),
    "fsdd": DataSet(
        (1, speech.SAMPLES), 10, (Layout(("fsdd/fsdd.npz",), speech.fsdd),), speech.augment
    ),
}


def layouts_of(name: str) -> tuple[Layout[Any], ...]:
    """The layouts of a data set, of examples with labels, of text or of recordings."""
    others = {**CORPORA, "ljspeech": LJSPEECH}
    return others[name] if name in others else CATALOGUE[name].layouts


def require_files(name: str, data_dir: str | None) -> None:
    """Raise DataError, saying what must lie where, unless a data set's files are there."""
    layout.find(layouts_of(name), data_dir)


def load(name: str, data_dir: str | None) -> Data:
    """The data set called `name`, read from the user's data folder if it comes in files.

    Raises:
        DataError: its files are missing or damaged.
    """
    known = CATALOGUE[name]
    data = layout.read(name, known.layouts, data_dir)
    if isinstance(data, Split):
        for x, y, part in ((data.x, data.y, "training"), (data.val_x, data.val_y, "validation")):
            fits = x.shape[1:] == known.shape and y.shape == x.shape[:1] and len(x) > 0
            if not (fits and 0 <= int(y.min()) and int(y.max()) < known.classes):
                raise DataError(
                    f"{data_dir} does not hold {name}: its {part} set must be examples of shape "
                    f"{known.shape} and labels below {known.classes}, got {tuple(x.shape)} and "
                    f"{tuple(y.shape)}"
                )
    return data


def load_split(name: str, data_dir: str | None) -> Split:
    """The same, for a data set that is read into memory.

    Raises:
        TypeError: it is not.
        DataError: its files are missing or damaged.
    """
    data = load(name, data_dir)
    if not isinstance(data, Split):
        raise TypeError(f"{name} does not fit in memory")
    return data


def caveat(name: str, data_dir: str | None) -> str:
    """What must be said wherever a figure from a data set is shown; "" for nothing.

    That depends on the files that are there: packed as JPEG, or not those that were published.

    Raises:
        DataError: its files are missing, or cannot be read.
    """
    return layout.caveat(name, layouts_of(name), data_dir)
