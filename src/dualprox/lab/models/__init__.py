"""Networks of the recipes."""

from .conv1d import conv1d
from .lenet5 import lenet5
from .mlp import mlp
from .resnet import resnet, resnet50
from .transformer_xl import TransformerXL
from .vgg import vgg19

__all__ = ["TransformerXL", "conv1d", "lenet5", "mlp", "resnet", "resnet50", "vgg19"]
