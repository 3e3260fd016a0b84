"""Which network a run trains, and which inputs each kind of network can read."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from ..checks import require
from . import data, models
from .settings import Run
from .specs import Conv1dSpec, Lenet5Spec, MlpSpec, Resnet50Spec, ResnetSpec, Vgg19Spec

# Of one input, without the batch.
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """A kind of network.

    Args:
        make: the network for inputs of a shape; called with the shape, the number of classes and
            the fields of its spec.
        reads: whether it can be made for inputs of a shape.
    """

    make: Callable[..., nn.Module]
    reads: Callable[[Shape], bool]


def _lenet5(shape: Shape, classes: int) -> nn.Module:
    return models.lenet5(1, classes, flat=len(shape) == 1)


def _by_channels(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """A maker that asks for nothing of a shape but its first size."""
    return lambda shape, **settings: make(shape[0], **settings)


NETWORKS: dict[type, Network] = {
    MlpSpec: Network(_by_channels(models.mlp), lambda shape: len(shape) == 1),
    Conv1dSpec: Network(_by_channels(models.conv1d), lambda shape: len(shape) == 2),
    ResnetSpec: Network(_by_channels(models.resnet), lambda shape: len(shape) == 3),
    Lenet5Spec: Network(_lenet5, lambda shape: shape in ((784,), (1, 28, 28))),
    Vgg19Spec: Network(_by_channels(models.vgg19), lambda shape: shape[1:] == (32, 32)),
    Resnet50Spec: Network(_by_channels(models.resnet50), lambda shape: len(shape) == 3),
}


def make_model(run: Run) -> nn.Module:
    """The network of the run, for the inputs that its data set has.

    Raises:
        ValueError: it is none for such inputs.
    """
    known = data.CATALOGUE[run.data]
    network = NETWORKS[type(run.model)]
    fitting = [kind.__name__ for kind, each in NETWORKS.items() if each.reads(known.shape)]
    rule = f"{' or '.join(fitting)} for data={run.data}"
    require(network.reads(known.shape), "model", rule, run.model)
    model = network.make(known.shape, classes=known.classes, **asdict(run.model))
    if run.init == "origin":
        with torch.no_grad():
            for param in model.parameters():
                param.zero_()
    return model


def example_input(run: Run) -> Tensor:
    """Two inputs of the shape that the run's data set has."""
    shape = data.CATALOGUE[run.data].shape
    return torch.randn((2, *shape), generator=torch.Generator().manual_seed(0))
