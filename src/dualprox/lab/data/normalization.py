"""The constants that published experiments normalize pixels with."""

from collections.abc import Callable

import torch
from torch import Tensor

# Of pixels in [0, 1]: the mean of each channel, and what it is divided by.
PUBLISHED: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.1307,), (0.3081,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def published(name: str) -> Callable[[Tensor], Tensor]:
    """Kept pixels to inputs, (x / 255 - mean) / scale with the constants of `PUBLISHED`.

    MNIST's serve Fashion-MNIST too, and CIFAR's scales are not the standard deviations of the
    pixels: that is how the experiments were run.

    Args:
        name: of a data set of pixels, uint8 in memory.

    Returns:
        A function of (images, pixels) or (images, channels, height, width); images with channels
        come out channels_last in memory.

    Source: the experiments of arXiv:2403.14398.

    Example:
        >>> published("mnist")(torch.tensor([[0, 255]], dtype=torch.uint8))
        tensor([[-0.4242,  2.8215]])
    """
    means, scales = (torch.tensor(values) for values in PUBLISHED[name])

    def normalize(kept: Tensor) -> Tensor:
        shape = (-1, *[1] * (kept.dim() - 2))
        there = (part.to(kept.device, non_blocking=True) for part in (means, scales))
        mean, scale = (part.view(shape) for part in there)
        inputs = (kept.float() / 255 - mean) / scale
        if inputs.dim() < 4:
            return inputs
        return inputs.contiguous(memory_format=torch.channels_last)

    return normalize
