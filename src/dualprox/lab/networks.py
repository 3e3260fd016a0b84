"""Which network a run trains, and which inputs each kind of network can read."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import require
from . import data, models
from .settings import Run
from .specs import (
    Conv1dSpec,
    Lenet5Spec,
    MlpSpec,
    Resnet50Spec,
    ResnetSpec,
    Tacotron2Spec,
    TransformerXLSpec,
    Vgg19Spec,
    VitMimSpec,
)

# Of one input, without the batch.
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """A kind of network that tells classes apart.

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


@dataclass(frozen=True)
class Special:
    """A kind of network that learns something else, from data sets of its own.

    Args:
        make: the network; called with the fields of its spec.
        data: the names of the data sets.
        free: kinds of layers whose weights the papers do not penalize.
    """

    make: Callable[..., nn.Module]
    data: tuple[str, ...]
    free: tuple[type[nn.Module], ...] = ()


def _transformer_xl(length: int, **settings: Any) -> nn.Module:
    del length  # of a segment, which the network need not know
    return models.TransformerXL(**settings)


def _vit_mim(mask_patch: int, mask_ratio: float, **settings: Any) -> nn.Module:
    del mask_patch, mask_ratio  # what is hidden comes with every batch
    return models.vit_mim(**settings)


SPECIAL: dict[type, Special] = {
    TransformerXLSpec: Special(_transformer_xl, ("wikitext-2", "wikitext-103")),
    Tacotron2Spec: Special(models.Tacotron2, ("ljspeech",)),
    VitMimSpec: Special(_vit_mim, ("cifar10", "cifar10_first4000", "cifar100"), (nn.Conv2d,)),
}


def _reads(kind: type, name: str) -> bool:
    """Whether a kind of network can learn from the data set of that name."""
    if kind in SPECIAL:
        return name in SPECIAL[kind].data
    return name in data.CATALOGUE and NETWORKS[kind].reads(data.CATALOGUE[name].shape)


def make_model(run: Run) -> nn.Module:
    """The network of the run, for the inputs that its data set has.

    Raises:
        ValueError: it is none for such inputs.
    """
    kind = type(run.model)
    fitting = [each.__name__ for each in (*NETWORKS, *SPECIAL) if _reads(each, run.data)]
    rule = f"{' or '.join(fitting)} for data={run.data}"
    require(_reads(kind, run.data), "model", rule, run.model)
    if kind in SPECIAL:
        return SPECIAL[kind].make(**asdict(run.model))
    known = data.CATALOGUE[run.data]
    model = NETWORKS[kind].make(known.shape, classes=known.classes, **asdict(run.model))
    if run.init == "origin":
        with torch.no_grad():
            for param in model.parameters():
                param.zero_()
    return model


def can_shrink(run: Run) -> bool:
    """Whether the run's network can be traced from one tensor, and so be made smaller."""
    return type(run.model) not in SPECIAL


def example_input(run: Run) -> Tensor:
    """Two inputs of the shape that the run's data set has.

    Raises:
        ValueError: the network cannot be traced from one tensor.
    """
    require(can_shrink(run), "model", "a network that classifies, which can shrink", run.model)
    shape = data.CATALOGUE[run.data].shape
    return torch.randn((2, *shape), generator=torch.Generator().manual_seed(0))
