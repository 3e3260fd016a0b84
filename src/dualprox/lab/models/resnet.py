"""Residual networks on images."""

from collections import OrderedDict
from typing import Literal

from torch import Tensor, nn

from ...checks import require
from .initial import init_he_


def _shortcut(width_in: int, width: int, stride: int) -> nn.Module:
    """The identity where it fits, else a 1x1 convolution with a batch norm."""
    if stride == 1 and width_in == width:
        return nn.Identity()
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(width_in, width, 1, stride, bias=False),
            norm=nn.BatchNorm2d(width),
        )
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut.

    The shortcut is the identity where it fits, else a 1x1 convolution with a batch norm.

    Args:
        width_in: channels read.
        width: channels written.
        stride: of the first convolution and of the shortcut.
    """

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.shortcut = _shortcut(width_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut to what the convolutions make of `x`."""
        inner = self.relu(self.norm1(self.conv1(x)))
        return self.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """A 3x3 convolution between two of 1x1, a quarter as wide, beside a shortcut.

    The shortcut is the identity where it fits, else a 1x1 convolution with a batch norm.

    Args:
        width_in: channels read.
        width: channels written, a multiple of 4.
        stride: of the 3x3 convolution and of the shortcut.
    """

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        inner = width // 4
        self.conv1 = nn.Conv2d(width_in, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, width, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.shortcut = _shortcut(width_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut to what the convolutions make of `x`."""
        inner = self.relu(self.norm1(self.conv1(x)))
        inner = self.relu(self.norm2(self.conv2(inner)))
        return self.relu(self.norm3(self.conv3(inner)) + self.shortcut(x))


def _assembled(
    stem: OrderedDict[str, nn.Module],
    width_in: int,
    block: type[BasicBlock] | type[Bottleneck],
    stages: list[tuple[int, int]],
    classes: int,
) -> nn.Sequential:
    """A stem, stages of (channels, blocks), the mean over positions, and one Linear layer."""
    layers = OrderedDict(stem)
    for stage, (width, blocks) in enumerate(stages, start=1):
        for number in range(1, blocks + 1):
            halve = stage > 1 and number == 1
            layers[f"stage{stage}block{number}"] = block(width_in, width, 2 if halve else 1)
            width_in = width
    layers["mean"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(width_in, classes)
    return nn.Sequential(layers)


def resnet(
    channels: int, widths: tuple[int, ...], classes: int, *, blocks: int = 3, stride: int = 1
) -> nn.Sequential:
    """A residual network; `widths` (16, 32, 64) with 3 blocks a stage is ResNet-20.

    A 3x3 convolution, then a stage of basic blocks for each width, the later ones at half the
    resolution of the one before. The mean over positions goes into one Linear layer, called fc.

    Args:
        channels: of an image.
        widths: channels of each stage, at least one.
        classes: outputs.
        blocks: basic blocks in each stage, >= 1.
        stride: of the first convolution; 2 computes a quarter as much.

    Returns:
        The network; inputs are (examples, channels, height, width).

    Source: He et al., arXiv:1512.03385, section 4.2, with 1x1 convolutions as shortcuts (B).

    Example:
        >>> import torch
        >>> resnet(3, (8, 16), 10, blocks=1)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    stem: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(channels, widths[0], 3, stride, padding=1, bias=False),
        norm=nn.BatchNorm2d(widths[0]),
        relu=nn.ReLU(),
    )
    stages = [(width, blocks) for width in widths]
    return _assembled(stem, widths[0], BasicBlock, stages, classes)


def resnet50(
    channels: int, classes: int, *, images: Literal["small", "large"] = "small"
) -> nn.Sequential:
    """ResNet-50: bottleneck blocks, 3, 4, 6 and 3 in a stage; its Linear layer is called fc.

    Args:
        channels: of an image.
        classes: outputs.
        images: "small", such as CIFAR's 32x32, are read by a 3x3 convolution at full resolution,
            and all weights start from torch's defaults; "large", such as ImageNet's 224x224, by a
            7x7 convolution and a pool, each in steps of 2, and all convolutions start from He's
            normal distribution.

    Returns:
        The network; inputs are (examples, channels, height, width).

    Raises:
        ValueError: `images` is neither.

    Source: He et al., arXiv:1512.03385, table 1, with the step of 2 in the 3x3 convolution of a
        block; as trained in arXiv:2403.14398, tables 2 and 3.

    Example:
        >>> import torch
        >>> resnet50(3, 10).eval()(torch.zeros(1, 3, 8, 8)).shape
        torch.Size([1, 10])
    """
    require(images in ("small", "large"), "images", "'small' or 'large'", images)
    large = images == "large"
    kernel, stride = (7, 2) if large else (3, 1)
    stem: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(channels, 64, kernel, stride, padding=kernel // 2, bias=False),
        norm=nn.BatchNorm2d(64),
        relu=nn.ReLU(),
    )
    if large:
        stem["pool"] = nn.MaxPool2d(3, 2, padding=1)
    model = _assembled(stem, 64, Bottleneck, [(256, 3), (512, 4), (1024, 6), (2048, 3)], classes)
    if large:
        init_he_(model)
    return model
