"""Networks of the recipes."""

from .conv1d import conv1d
from .mlp import mlp
from .resnet import resnet

__all__ = ["conv1d", "mlp", "resnet"]
