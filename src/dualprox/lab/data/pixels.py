"""The scale of pixels."""

from collections.abc import Callable

import torch
from torch import Tensor

# What experiments divide CIFAR by is the mean deviation within an image; see docs/data.md.
SCALES = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of uint8 images, both (channels,)."""
    # In parts: all pixels in float64 would take a gigabyte.
    sums = torch.stack(
        [
            torch.stack((part.sum((0, 2, 3)), part.square().sum((0, 2, 3))))
            for part in (images.double() for images in x.split(1000))
        ]
    ).sum(0) / (x.numel() / x.shape[1])
    return sums[0], (sums[1] - sums[0].square()).sqrt()


def standardize(mean: Tensor, std: Tensor) -> Callable[[Tensor], Tensor]:
    """uint8 images to (image - mean) / std, in float32 and channels_last in memory.

    CPUs convolve such inputs faster. `mean` and `std` are of a channel, on the scale 0 to 255.
    """
    mean, std = (value.float().view(-1, 1, 1) for value in (mean, std))

    def normalize(kept: Tensor) -> Tensor:
        # Workers do not do this step for decoded images, so it saves what copies it can.
        scaled = kept.to(torch.float32, copy=True)
        shift, scale = (part.to(kept.device, non_blocking=True) for part in (mean, std))
        scaled.sub_(shift).div_(scale)
        return scaled.contiguous(memory_format=torch.channels_last)

    return normalize


def standardize_as(name: str) -> Callable[[Tensor], Tensor]:
    """The same by the constants with which experiments on a data set are published."""
    return standardize(*(torch.tensor(value) * 255 for value in SCALES[name]))
