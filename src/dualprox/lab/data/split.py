"""Data sets, in memory or not, and the batches that a run makes of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


class Data(Protocol):
    """A data set, split, as a run sees it: in memory (`Split`) or read as it goes."""

    def __len__(self) -> int:
        """How many training examples there are."""
        ...

    def batches(
        self,
        batch_size: int,
        seed: int,
        epoch: int,
        augment: Augmentation | None = None,
        first: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels of an epoch's batches; seed and epoch alone determine their bits."""
        ...

    def validation(self, batch_size: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels of the validation set, in order."""
        ...

    def to(self, device: str) -> "Data":
        """The same, its batches on a device."""
        ...


def generator_of(seed: int, epoch: int) -> torch.Generator:
    """The random numbers of an epoch, on the CPU."""
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)


@dataclass(frozen=True, eq=False)
class Split:
    """A data set in memory, split.

    Args:
        x, y: training examples as they are kept, whole numbers or float32, and int64 labels.
        val_x, val_y: the same for validation.
        image: height and width of an example seen as one grey image; None for other examples.
        normalize: kept examples to the float32 inputs of a network.
    """

    x: Tensor
    y: Tensor
    val_x: Tensor
    val_y: Tensor
    image: tuple[int, int] | None = None
    normalize: Callable[[Tensor], Tensor] = Tensor.float

    def __len__(self) -> int:
        """How many training examples there are."""
        return len(self.x)

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
            batch_size: examples per batch; the last batch may have fewer.
            seed: of the run.
            epoch: which epoch.
            augment: kept examples to randomly changed ones; None leaves them as they are.
            first: how many batches to leave out.

        Returns:
            An iterator over (float32 inputs, int64 labels), made batch by batch.

        Example:
            >>> split = Split(torch.arange(5), torch.arange(5), torch.ones(0), torch.ones(0))
            >>> [labels.tolist() for _, labels in split.batches(2, seed=0, epoch=1)]
            [[0, 4], [2, 3], [1]]
        """
        generator = generator_of(seed, epoch)
        order = torch.randperm(len(self.x), generator=generator).to(self.x.device)
        for number, batch in enumerate(order.split(batch_size)):
            if number < first and augment is None:
                continue
            kept = self.x[batch]
            if augment is not None:  # takes its random numbers whether the batch is left out or not
                kept = augment(kept, generator)
            if number >= first:
                yield self.normalize(kept), self.y[batch]

    def validation(self, batch_size: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels of the validation set, in order."""
        for kept, labels in zip(
            self.val_x.split(batch_size), self.val_y.split(batch_size), strict=True
        ):
            yield self.normalize(kept), labels

    def to(self, device: str) -> "Split":
        """The same, all examples on a device, where they are changed and normalized, too."""
        names = ("x", "y", "val_x", "val_y")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def random_crop(x: Tensor, margin: int, generator: torch.Generator) -> Tensor:
    """Shift each example by up to `margin` along every axis, with zeros from outside.

    Args:
        x: (examples, channels, length) or (examples, channels, height, width), any dtype.
        margin: >= 0, in samples or pixels.
        generator: on the CPU, so that every device sees the same shifts.

    Returns:
        New tensor of the same shape, dtype and device.

    Example:
        >>> x = torch.arange(1, 5).view(1, 1, 4)
        >>> random_crop(x, 2, torch.Generator().manual_seed(0)).tolist()
        [[[3, 4, 0, 0]]]
    """
    axes = x.dim() - 2
    windows = nn.functional.pad(x, [margin] * (2 * axes))
    shape = (axes, len(x))
    offsets = torch.randint(2 * margin + 1, shape, generator=generator).to(
        x.device, non_blocking=True
    )
    for axis, size in enumerate(x.shape[2:], start=2):
        windows = windows.unfold(axis, size, 1)
    examples = torch.arange(len(x), device=x.device)
    # Advanced indices with a slice between them go first in the result: (examples, channels, ...).
    return windows[(examples, slice(None), *offsets)]


def random_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Reverse the last axis of each example with probability one half.

    Args:
        x: (examples, ...), any dtype.
        generator: on the CPU, so that every device sees the same flips.

    Returns:
        New tensor of the same shape, dtype and device.

    Example:
        >>> x = torch.tensor([[1, 2]]).expand(4, 2)
        >>> random_flip(x, torch.Generator().manual_seed(0)).tolist()
        [[1, 2], [2, 1], [2, 1], [1, 2]]
    """
    flips = torch.randint(2, (len(x),), generator=generator).bool().to(x.device, non_blocking=True)
    return torch.where(flips.view(-1, *[1] * (x.dim() - 1)), x.flip(-1), x)
