"""Small networks over one, two and three axes of space, up and down in resolution."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn import Conv2d, Linear

from zoo import Net, conv_bn, conv_bn_count, relu


class UNet(Net):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([Conv2d(2, 4, 3, padding=1), Conv2d(4, 6, 3, padding=1)])
        self.bottom = conv_bn(6, 7, 3)
        self.up = nn.ModuleList(
            [nn.ConvTranspose2d(7, 5, 2, 2), nn.ConvTranspose2d(8, 4, 2, 2, groups=2)]
        )
        self.join = nn.ModuleList([Conv2d(11, 8, 3, padding=1), Conv2d(8, 5, 1, bias=False)])
        self.head = Conv2d(5, 2, 1)

    def forward(self, x):
        first = F.leaky_relu(self.down[0](x))
        second = F.leaky_relu(self.down[1](F.max_pool2d(first, 2)))
        x = F.elu(self.bottom(F.max_pool2d(second, 2)))
        x = F.relu(self.join[0](torch.cat([self.up[0](x), second], 1)))
        x = F.relu(self.join[1](torch.cat([self.up[1](x), first], 1)))
        return self.head(x)

    def example(self):
        return torch.randn(2, 2, 8, 8)

    def count(self, c):
        first = c.each(c.conv(c.input(2), self.down[0]), F.leaky_relu)
        second = c.each(c.conv(first, self.down[1]), F.leaky_relu)
        x = c.each(conv_bn_count(c, second, self.bottom), F.elu)
        x = c.each(c.conv(c.conv(x, self.up[0]) + second, self.join[0]), relu)
        x = c.each(c.conv(c.conv(x, self.up[1]) + first, self.join[1]), relu)
        c.pin(c.conv(x, self.head))


class Conv1dNet(Net):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [nn.Conv1d(2, 5, 5, 2), nn.Conv1d(5, 4, 3, padding=1), nn.Conv1d(4, 6, 1)]
        )
        self.norm = nn.BatchNorm1d(4)
        self.head = Linear(6 * 2, 3)

    def forward(self, x):
        x = F.relu(self.convs[0](x))
        x = F.softplus(self.norm(self.convs[1](x)))
        x = F.adaptive_max_pool1d(self.convs[2](x), 2)
        return self.head(x.reshape(x.size(0), -1))

    def example(self):
        return torch.randn(2, 2, 16)

    def count(self, c):
        x = c.each(c.conv(c.input(2), self.convs[0]), relu)
        x = c.each(c.batch_norm(c.conv(x, self.convs[1]), self.norm), F.softplus)
        c.pin(c.linear(c.flatten(c.conv(x, self.convs[2]), 2), self.head))


class Conv3dNet(Net):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4)
        self.second, self.up = nn.Conv3d(4, 5, 2), nn.ConvTranspose3d(5, 4, 2)
        self.head = nn.Conv3d(4, 2, 1)

    def forward(self, x):
        x = F.max_pool3d(F.relu(self.norm(self.first(x))), 2)
        return self.head(F.relu(self.up(F.relu(self.second(x)))))

    def example(self):
        return torch.randn(2, 1, 4, 4, 4)

    def count(self, c):
        x = c.each(c.batch_norm(c.conv(c.input(1), self.first), self.norm), relu)
        x = c.each(c.conv(c.each(c.conv(x, self.second), relu), self.up), relu)
        c.pin(c.conv(x, self.head))


class NormNet(Net):
    """GroupNorm and InstanceNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([Conv2d(2, 6, 3, padding=1), Conv2d(6, 5, 1), Conv2d(5, 2, 1)])
        self.groups = nn.GroupNorm(3, 6)
        self.instance = nn.InstanceNorm2d(5, affine=True)

    def forward(self, x):
        x = F.relu(self.groups(self.convs[0](x)))
        return self.convs[2](F.relu(self.instance(self.convs[1](x))))

    def example(self):
        return torch.randn(2, 2, 5, 5)

    def count(self, c):
        x = c.each(c.group_norm(c.conv(c.input(2), self.convs[0]), self.groups), relu)
        x = c.each(c.instance_norm(c.conv(x, self.convs[1]), self.instance), relu)
        c.pin(c.conv(x, self.convs[2]))


SPATIAL: dict[str, Callable[[], Net]] = {
    "unet": UNet,
    "conv1d": Conv1dNet,
    "conv3d": Conv3dNet,
    "group_and_instance_norm": NormNet,
}
