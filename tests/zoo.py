"""Small networks of every kind, with their channels written out by hand beside them.

Each class has an `example()` and a `count(channels)`, which describes the same network to the
oracle of `oracles/channels.py`, layer after layer; so that a mistake in how the library reads a
network shows as another count.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import BatchNorm2d, Conv2d, Linear, ReLU, Sequential

from oracles.channels import Channels, Wire, Wires

relu = torch.relu


class Net(nn.Module, ABC):
    """A network of the zoo."""

    @abstractmethod
    def example(self) -> Tensor:
        """An input with a batch of two."""

    @abstractmethod
    def count(self, c: Channels) -> None:
        """Describe the network to the oracle."""


class Mlp(Net):
    def __init__(self) -> None:
        super().__init__()
        self.net = Sequential(
            Linear(5, 7), ReLU(), Linear(7, 6, bias=False), nn.Tanh(), Linear(6, 8), nn.GELU(),
            Linear(8, 3),
        )  # fmt: skip

    def forward(self, x):
        return self.net(x)

    def example(self):
        return torch.randn(2, 5)

    def count(self, c):
        x = c.each(c.linear(c.input(5), self.net[0]), relu)
        x = c.each(c.linear(x, self.net[2]), torch.tanh)
        x = c.each(c.linear(x, self.net[4]), F.gelu)
        c.pin(c.linear(x, self.net[6]))


class LeNet(Net):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Conv2d(1, 4, 3, padding=1), Conv2d(4, 5, 3)
        self.third, self.last = Linear(5 * 2 * 2, 6), Linear(6, 3)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        x = F.avg_pool2d(F.relu(self.second(x)), 2)
        return self.last(F.relu(self.third(torch.flatten(x, 1))))

    def example(self):
        return torch.randn(2, 1, 12, 12)

    def count(self, c):
        x = c.each(c.conv(c.input(1), self.first), relu)
        x = c.each(c.conv(x, self.second), relu)
        x = c.each(c.linear(c.flatten(x, 4), self.third), relu)
        c.pin(c.linear(x, self.last))


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> Sequential:
    """A convolution without bias, and a batch norm."""
    pad = kernel // 2
    conv = Conv2d(inputs, outputs, kernel, stride, pad, groups=groups, bias=False)
    return Sequential(conv, BatchNorm2d(outputs))


def conv_bn_count(c: Channels, x: Wires, layer: nn.Module) -> Wires:
    assert isinstance(layer, Sequential)
    return c.batch_norm(c.conv(x, layer[0]), layer[1])


class Vgg(Net):
    def __init__(self) -> None:
        super().__init__()
        self.blocks: Any = nn.ModuleList([conv_bn(3, 4, 3), conv_bn(4, 6, 3), conv_bn(6, 5, 1)])
        self.head = Sequential(nn.Dropout(), Linear(5 * 4, 6), ReLU(True), Linear(6, 3))

    def forward(self, x):
        for block in self.blocks:
            x = F.relu(block(x))
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))

    def example(self):
        return torch.randn(2, 3, 6, 6)

    def count(self, c):
        x = c.input(3)
        for block in self.blocks:
            x = c.each(conv_bn_count(c, x, block), relu)
        x = c.each(c.linear(c.flatten(x, 4), self.head[1]), relu)
        c.pin(c.linear(x, self.head[3]))


class Residual(nn.Module):
    """Convolutions beside a shortcut, which has a 1x1 convolution where the width changes."""

    def __init__(self, layers: list[Sequential], shortcut: Sequential | None) -> None:
        super().__init__()
        self.layers, self.shortcut = nn.ModuleList(layers), shortcut

    def forward(self, x):
        y = x
        for place, layer in enumerate(self.layers):
            y = layer(y if place == 0 else F.relu(y))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))

    def count(self, c: Channels, x: Wires) -> Wires:
        y = x
        for place, layer in enumerate(self.layers):
            y = conv_bn_count(c, y if place == 0 else c.each(y, relu), layer)
        short = x if self.shortcut is None else conv_bn_count(c, x, self.shortcut)
        return c.each(c.add(y, short), relu)


class ResNet(Net):
    def __init__(self, blocks: list[Residual]) -> None:
        super().__init__()
        self.stem = conv_bn(3, 4, 3)
        self.blocks: Any = nn.ModuleList(blocks)
        self.head = Linear(6, 3)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2, 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))

    def example(self):
        return torch.randn(2, 3, 8, 8)

    def count(self, c):
        x = c.each(conv_bn_count(c, c.input(3), self.stem), relu)
        for block in self.blocks:
            x = block.count(c, x)
        c.pin(c.linear(x, self.head))


def resnet_basic() -> ResNet:
    return ResNet(
        [
            Residual([conv_bn(4, 5, 3), conv_bn(5, 4, 3)], None),
            Residual([conv_bn(4, 5, 3, 2), conv_bn(5, 6, 3)], conv_bn(4, 6, 1, 2)),
        ]
    )


def resnet_bottleneck() -> ResNet:
    return ResNet(
        [
            Residual([conv_bn(4, 3, 1), conv_bn(3, 3, 3), conv_bn(3, 6, 1)], conv_bn(4, 6, 1)),
            Residual([conv_bn(6, 3, 1), conv_bn(3, 3, 3), conv_bn(3, 6, 1)], None),
        ]
    )


def resnext() -> ResNet:
    """Bottlenecks with grouped convolutions in the middle."""
    return ResNet(
        [
            Residual(
                [conv_bn(4, 6, 1), conv_bn(6, 6, 3, groups=3), conv_bn(6, 6, 1)], conv_bn(4, 6, 1)
            ),
            Residual([conv_bn(6, 8, 1), conv_bn(8, 4, 3, groups=2), conv_bn(4, 6, 1)], None),
        ]
    )


class DenseNet(Net):
    def __init__(self) -> None:
        super().__init__()
        self.stem = Conv2d(3, 4, 3, padding=1)
        self.norms = nn.ModuleList([BatchNorm2d(4), BatchNorm2d(7), BatchNorm2d(10)])
        self.convs = nn.ModuleList([Conv2d(4, 3, 1), Conv2d(7, 3, 3, padding=1), Conv2d(10, 5, 1)])
        self.head = Linear(5, 3)

    def forward(self, x):
        x = self.stem(x)
        for norm, conv in zip(self.norms[:2], self.convs[:2], strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        x = F.avg_pool2d(self.convs[2](F.relu(self.norms[2](x))), 2)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))

    def example(self):
        return torch.randn(2, 3, 6, 6)

    def count(self, c):
        x = c.conv(c.input(3), self.stem)
        for norm, conv in zip(self.norms[:2], self.convs[:2], strict=True):
            x = x + c.conv(c.each(c.batch_norm(x, norm), relu), conv)
        x = c.conv(c.each(c.batch_norm(x, self.norms[2]), relu), self.convs[2])
        c.pin(c.linear(x, self.head))


class InvertedResidual(nn.Module):
    """1x1 up, depthwise, squeeze and excite, 1x1 down, and a shortcut."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up, self.deep = conv_bn(width, inner, 1), conv_bn(inner, inner, 3, groups=inner)
        self.squeeze, self.excite = Conv2d(inner, 3, 1), Conv2d(3, inner, 1)
        self.down = conv_bn(inner, width, 1)

    def forward(self, x):
        y = F.hardswish(self.deep(F.relu6(self.up(x))))
        scale = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1))))
        return x + self.down(y * torch.sigmoid(scale))

    def count(self, c: Channels, x: Wires) -> Wires:
        y = c.each(conv_bn_count(c, x, self.up), F.relu6)
        y = c.each(conv_bn_count(c, y, self.deep), F.hardswish)
        scale = c.conv(c.each(c.conv(y, self.squeeze), relu), self.excite)
        return c.add(x, conv_bn_count(c, c.mul(y, c.each(scale, torch.sigmoid)), self.down))


class MobileNet(Net):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 4, 3, 2)
        self.blocks: Any = nn.ModuleList([InvertedResidual(4, 6), InvertedResidual(4, 8)])
        self.head = Conv2d(4, 3, 1)

    def forward(self, x):
        x = F.silu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(F.adaptive_avg_pool2d(x, 1)).flatten(1)

    def example(self):
        return torch.randn(2, 3, 8, 8)

    def count(self, c):
        x = c.each(conv_bn_count(c, c.input(3), self.stem), F.silu)
        for block in self.blocks:
            x = block.count(c, x)
        c.pin(c.conv(x, self.head))


class Shuffle(nn.Module):
    """Half of the channels through convolutions, and the halves interleaved."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.up, self.deep = conv_bn(half, half, 1), conv_bn(half, half, 3, groups=half)

    def forward(self, x):
        still, moved = x.chunk(2, 1)
        x = torch.cat([still, F.relu(self.deep(F.relu(self.up(moved))))], 1)
        batch, width, height, length = x.shape
        x = x.view(batch, 2, width // 2, height, length).transpose(1, 2)
        return x.reshape(batch, width, height, length)

    def count(self, c: Channels, x: Wires) -> Wires:
        half = len(x) // 2
        still, moved = x[:half], x[half:]
        c.balance([still, moved])
        y = c.each(conv_bn_count(c, moved, self.up), relu)
        y = c.each(conv_bn_count(c, y, self.deep), relu)
        both, places = c.units(2), c.units(half)
        c.written(both)
        c.grid([w.unit for w in still + y], both, places)
        return [Wire(w.unit, w.value) for pair in zip(still, y, strict=True) for w in pair]


class ShuffleNet(Net):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, 3)
        self.blocks: Any = nn.ModuleList([Shuffle(8), Shuffle(8)])
        self.head = Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean([2, 3]))

    def example(self):
        return torch.randn(2, 3, 6, 6)

    def count(self, c):
        x = c.each(conv_bn_count(c, c.input(3), self.stem), relu)
        for block in self.blocks:
            x = block.count(c, x)
        c.pin(c.linear(x, self.head))


CONVOLUTIONAL: dict[str, Callable[[], Net]] = {
    "mlp": Mlp,
    "lenet": LeNet,
    "vgg_bn": Vgg,
    "resnet_basic": resnet_basic,
    "resnet_bottleneck": resnet_bottleneck,
    "resnext": resnext,
    "densenet": DenseNet,
    "mobilenet": MobileNet,
    "shufflenet": ShuffleNet,
}
