"""LeNet-5 as the literature on pruning uses it."""

from collections import OrderedDict

from torch import nn


def lenet5(channels: int, classes: int, *, flat: bool = False) -> nn.Sequential:
    """LeNet-5 in the larger of its two sizes: 20 and 50 filters of 5x5, 500 hidden units.

    A convolution, ReLU and a pool that halves the resolution, twice; then two Linear layers.

    Args:
        channels: of an image.
        classes: outputs.
        flat: whether images come as rows of channels * 784 pixels, as MNIST's are kept.

    Returns:
        The network; inputs are (examples, channels, 28, 28), or (examples, channels * 784).

    Source: LeCun et al., Proc. IEEE 86 (1998), in the sizes of Caffe's example for MNIST.

    Example:
        >>> import torch
        >>> lenet5(1, 10)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
        >>> lenet5(1, 10, flat=True)(torch.zeros(2, 784)).shape
        torch.Size([2, 10])
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if flat:
        layers["image"] = nn.Unflatten(1, (channels, 28, 28))
    layers.update(
        conv1=nn.Conv2d(channels, 20, 5),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(20, 50, 5),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        fc1=nn.Linear(800, 500),
        relu3=nn.ReLU(),
        fc2=nn.Linear(500, classes),
    )
    return nn.Sequential(layers)
