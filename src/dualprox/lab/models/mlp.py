"""Multilayer perceptrons."""

from collections import OrderedDict
from itertools import pairwise

from torch import nn


def mlp(features: int, hidden: tuple[int, ...], classes: int) -> nn.Sequential:
    """A multilayer perceptron with ReLU; its Linear layers are called fc1, fc2, ..."""
    widths = [features, *hidden, classes]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (width_in, width_out) in enumerate(pairwise(widths), start=1):
        if number > 1:
            layers[f"relu{number - 1}"] = nn.ReLU()
        layers[f"fc{number}"] = nn.Linear(width_in, width_out)
    return nn.Sequential(layers)
