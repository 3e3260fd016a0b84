"""Residual networks on small images."""

from collections import OrderedDict

from torch import Tensor, nn


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
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width_in != width:
            self.shortcut = nn.Sequential(
                OrderedDict(
                    conv=nn.Conv2d(width_in, width, 1, stride, bias=False),
                    norm=nn.BatchNorm2d(width),
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut to what the convolutions make of `x`."""
        inner = self.relu(self.norm1(self.conv1(x)))
        return self.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


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
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = nn.Conv2d(channels, widths[0], 3, stride, padding=1, bias=False)
    layers["norm"] = nn.BatchNorm2d(widths[0])
    layers["relu"] = nn.ReLU()
    width_in = widths[0]
    for stage, width in enumerate(widths, start=1):
        for block in range(1, blocks + 1):
            halve = stage > 1 and block == 1
            layers[f"stage{stage}block{block}"] = BasicBlock(width_in, width, 2 if halve else 1)
            width_in = width
    layers["mean"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(width_in, classes)
    return nn.Sequential(layers)
