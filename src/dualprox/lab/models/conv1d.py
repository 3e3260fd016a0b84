"""Convolutional networks on waveforms."""

from collections import OrderedDict

from torch import nn


def conv1d(channels: int, widths: tuple[int, ...], classes: int) -> nn.Sequential:
    """A convolutional network on waveforms; its convolutions are called conv1, conv2, ...

    Each is followed by a batch norm and ReLU. The first reads 80 samples in steps of 8, the others
    9 positions in steps of 2. The mean over time goes into one Linear layer, called fc.

    Args:
        channels: of a waveform.
        widths: output channels of each convolution, at least one.
        classes: outputs.

    Returns:
        The network; inputs are (examples, channels, samples), of at least 64 samples.

    Example:
        >>> import torch
        >>> conv1d(1, (8, 16), 10)(torch.zeros(2, 1, 800)).shape
        torch.Size([2, 10])
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, width in enumerate(widths, start=1):
        kernel, stride = (80, 8) if number == 1 else (9, 2)
        layers[f"conv{number}"] = nn.Conv1d(
            channels, width, kernel, stride, padding=(kernel - 1) // 2, bias=False
        )
        layers[f"norm{number}"] = nn.BatchNorm1d(width)
        layers[f"relu{number}"] = nn.ReLU()
        channels = width
    layers["mean"] = nn.AdaptiveAvgPool1d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(channels, classes)
    return nn.Sequential(layers)
