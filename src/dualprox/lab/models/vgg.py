"""VGG networks on small images."""

from collections import OrderedDict

from torch import nn

from .initial import init_he_

# Output channels of the convolutions between one pool and the next.
STAGES = ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4)


def vgg19(channels: int, classes: int) -> nn.Sequential:
    """VGG-19 for images of 32x32: 16 convolutions of 3x3, called conv1, ... conv16.

    Each is followed by a batch norm and ReLU, each of the five stages by a pool that halves the
    resolution. The one position that is left goes into one Linear layer, called fc, in place of
    the three of the network for large images. Convolutions start from He's normal distribution
    with biases 0, the Linear layer as torch's does, which is how the papers' runs start.

    Args:
        channels: of an image.
        classes: outputs.

    Returns:
        The network; inputs are (examples, channels, 32, 32).

    Source: Simonyan & Zisserman, arXiv:1409.1556, table 1 (E), with batch norm; as trained on CIFAR
        in arXiv:2403.14398, table 2.

    Example:
        >>> import torch
        >>> vgg19(3, 10).eval()(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    number = 0
    for stage, widths in enumerate(STAGES, start=1):
        for width in widths:
            number += 1
            layers[f"conv{number}"] = nn.Conv2d(channels, width, 3, padding=1)
            layers[f"norm{number}"] = nn.BatchNorm2d(width)
            layers[f"relu{number}"] = nn.ReLU()
            channels = width
        layers[f"pool{stage}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(channels, classes)
    model = nn.Sequential(layers)
    init_he_(model)
    return model
