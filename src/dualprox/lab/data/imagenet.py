"""ImageNet, or any images in one folder per class, decoded as training goes."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .crops import random_boxes
from .layout import DataError, Layout
from .pixels import standardize_as
from .split import Augmentation, Data, generator_of
from .workers import default_workers, read_batches

if TYPE_CHECKING:
    from PIL.Image import Image

SIZE, RESIZED = 224, 256
SHAPE = (3, SIZE, SIZE)
SUFFIXES = (".jpeg", ".jpg", ".png")


def centre_crop(image: "Image", index: int) -> "Image":
    """The middle of an image whose shorter side is made 256 pixels, 224x224."""
    from PIL.Image import Resampling

    short = min(image.size)
    width, height = (RESIZED * side // short for side in image.size)
    left, top = round((width - SIZE) / 2), round((height - SIZE) / 2)
    resized = image.resize((width, height), Resampling.BILINEAR)
    return resized.crop((left, top, left + SIZE, top + SIZE))


def random_crop(image: "Image", index: int, *, seed: int, epoch: int) -> "Image":
    """A random box of an image, resized to 224x224; seed, epoch and index decide which."""
    from PIL.Image import Resampling

    generator = generator_of(seed * 1_000_003 + epoch, index)
    width, height = image.size
    top, left, tall, wide = random_boxes(1, height, width, generator)[0].tolist()
    box = image.crop((left, top, left + wide, top + tall))
    return box.resize((SIZE, SIZE), Resampling.BILINEAR)


class Decoded(Dataset[Tensor]):
    """Images of a folder as uint8 (3, 224, 224), decoded when asked for.

    Args:
        folder: of the classes' folders.
        names: of the images' files, relative to it, as bytes.
        crop: an image and its index to an image of 224x224.
    """

    def __init__(
        self, folder: Path, names: np.ndarray, crop: Callable[["Image", int], "Image"]
    ) -> None:
        self.folder, self.names, self.crop = folder, names, crop

    def __getitem__(self, index: int) -> Tensor:
        """Decode one image.

        Raises:
            DataError: its file is damaged.
        """
        from PIL import Image

        path = self.folder / os.fsdecode(self.names[index])
        try:
            with Image.open(path) as image:
                pixels = np.array(self.crop(image.convert("RGB"), index))
        except Exception as error:  # of a damaged file, PIL raises whatever comes
            raise DataError(f"{path} is no image: {error}") from None
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


@dataclass(frozen=True, eq=False)
class ImageFolders:
    """Images in one folder per class, for training and for validation.

    Args:
        train, val: the folders.
        names, val_names: of the images' files, relative to them, as bytes.
        labels, val_labels: int64, (images,).
        workers: processes that decode; how many makes no difference to the batches.
        device: where batches are changed and normalized.
    """

    train: Path
    val: Path
    names: np.ndarray
    val_names: np.ndarray
    labels: Tensor
    val_labels: Tensor
    workers: int = field(default_factory=default_workers)
    device: str = "cpu"

    def __len__(self) -> int:
        """How many training images there are."""
        return len(self.names)

    def batches(
        self,
        batch_size: int,
        seed: int,
        epoch: int,
        augment: Augmentation | None = None,
        first: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels of an epoch's batches; seed and epoch alone determine their bits.

        Args:
            batch_size: images per batch; the last batch may have fewer.
            seed: of the run.
            epoch: which epoch.
            augment: with it, every image is cut to a random box, and what comes of a batch,
                uint8 (images, 3, 224, 224), is changed by it. None cuts as for validation.
            first: how many batches to leave out, without reading them.

        Returns:
            An iterator over (float32 (images, 3, 224, 224), int64 labels).

        Raises:
            DataError: from the iterator, if an image's file is damaged.
        """
        generator = generator_of(seed, epoch)
        order = torch.randperm(len(self), generator=generator).split(batch_size)
        crop = partial(random_crop, seed=seed, epoch=epoch) if augment else centre_crop
        normalize = standardize_as("imagenet")
        if augment is not None:
            for batch in order[:first]:  # the random numbers of these, whatever the images
                augment(torch.zeros((), dtype=torch.uint8).expand(len(batch), *SHAPE), generator)
        order = order[first:]
        kept = read_batches(Decoded(self.train, self.names, crop), order, self.workers)
        for batch, images in zip(order, kept, strict=True):
            here = images.to(self.device, non_blocking=True)
            changed = here if augment is None else augment(here, generator)
            yield normalize(changed), self.labels[batch].to(self.device, non_blocking=True)

    def validation(self, batch_size: int = 100) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels of the validation set, in order."""
        order = torch.arange(len(self.val_names)).split(batch_size)
        normalize = standardize_as("imagenet")
        kept = read_batches(Decoded(self.val, self.val_names, centre_crop), order, self.workers)
        for batch, images in zip(order, kept, strict=True):
            here = images.to(self.device, non_blocking=True)
            yield normalize(here), self.val_labels[batch].to(self.device, non_blocking=True)

    def to(self, device: str) -> "ImageFolders":
        """The same, its batches on a device."""
        return replace(self, device=device)


def classes_of(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted: the class of an image is its folder's place."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())


def images_of(folder: Path, classes: list[str]) -> tuple[np.ndarray, Tensor]:
    """Names, relative to the folder and as bytes, and int64 labels of all images, in order.

    Raises:
        DataError: a class has no image.
    """
    names: list[bytes] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = sorted(file for file in os.listdir(folder / name) if _is_image(file))
        if not files:
            raise DataError(f"{folder / name} holds no image ({', '.join(SUFFIXES)})")
        # Bytes of one length each: a million Python strings would be copied to every worker.
        names += [os.fsencode(f"{name}/{file}") for file in files]
        labels += [label] * len(files)
    return np.array(names), torch.tensor(labels)


def _is_image(file: str) -> bool:
    return file.lower().endswith(SUFFIXES)


def image_folders(train: Path, val: Path) -> ImageFolders:
    """The images below two folders, `train` and `val`, which hold a folder for each class.

    Raises:
        DataError: they have other classes, or a class without images.
    """
    classes = classes_of(train)
    if not classes or classes_of(val) != classes:
        raise DataError(
            f"{train} and {val} must hold the same folders, one for each class, got "
            f"{len(classes)} and {len(classes_of(val))}"
        )
    (names, labels), (val_names, val_labels) = images_of(train, classes), images_of(val, classes)
    return ImageFolders(train, val, names, val_names, labels, val_labels)


IMAGENET: tuple[Layout[Data], ...] = (Layout(("imagenet/train/", "imagenet/val/"), image_folders),)
