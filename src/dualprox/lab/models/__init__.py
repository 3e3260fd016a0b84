"""Networks of the recipes."""

from .conv1d import conv1d
from .lenet5 import lenet5
from .mlp import mlp
from .resnet import resnet, resnet50
from .tacotron2 import Tacotron2, tacotron2_loss
from .transformer_xl import TransformerXL
from .vgg import vgg19
from .vit_mim import vit_mim

__all__ = [
    "Tacotron2",
    "TransformerXL",
    "conv1d",
    "lenet5",
    "mlp",
    "resnet",
    "resnet50",
    "tacotron2_loss",
    "vgg19",
    "vit_mim",
]
