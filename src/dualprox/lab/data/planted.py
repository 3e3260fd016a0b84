"""Made-up data whose labels a sparse network decided, so that the right support is known."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...checks import is_count, require
from ...geometry import Slices
from ..models import mlp
from .split import Split

# Groups are the slices of a weight that read one input each, as in `param_groups`.
_INPUTS = Slices(axis=1)
# Standard deviation of the planted network's scores: few examples lie near a border.
_CONTRAST = 3.0


@dataclass(frozen=True, eq=False)
class Planted:
    """Data, and the network that decided their labels.

    Args:
        split: a quarter as many examples again are for validation; labels are without noise.
        model: the network, right about every example.
        truth: for each weight with dead inputs, by name, which of them it reads: bool, (inputs,).
            Penalize these alone, by ``param_groups(model, penalty, include=truth)``.
    """

    split: Split
    model: nn.Sequential
    truth: Mapping[str, Tensor]

    def start(self, seed: int = 0) -> nn.Sequential:
        """Where training begins: the network with weights of the usual size for dead inputs too.

        The others stay, so that a hidden channel is the same one that the truth speaks of; from
        random weights a network may find the same channels in another order.

        Args:
            seed: of the weights for dead inputs.

        Returns:
            A new network with no dead input.
        """
        generator = torch.Generator().manual_seed(seed)
        model = copy.deepcopy(self.model)
        with torch.no_grad():
            for name, live in self.truth.items():
                weight = model.get_parameter(name)
                scale = weight[:, live].std()
                weight[:, ~live] = scale * torch.randn(weight[:, ~live].shape, generator=generator)
        return model


def planted_logistic(
    seed: int = 0, *, examples: int = 2000, features: int = 100, live: int = 20, classes: int = 10
) -> Planted:
    """Logistic regression of which a few features decide.

        y = argmax_k <w_k, x>,   x ~ N(0, I),   w ~ N(0, 1) for `live` features, 0 for the others.

    Args:
        seed: determines every bit.
        examples: for training.
        features: groups of the one weight, fc1.weight.
        live: how many of them the labels depend on.
        classes: labels.

    Source: Huang & Lee, arXiv:2112.02612, its study on synthetic data.

    Example:
        >>> made = planted_logistic(features=50, live=5)
        >>> made.split.x.shape, int(made.truth["fc1.weight"].sum())
        (torch.Size([2000, 50]), 5)
    """
    _check(examples, features, live, classes)
    generator = torch.Generator().manual_seed(seed)
    model = _zeros(lambda: mlp(features, (), classes))
    truth = {"fc1.weight": _choose(features, live, generator)}
    _draw(model, truth, generator)
    x = torch.randn(examples + examples // 4, features, generator=generator)
    return _labelled(x, examples, model, truth)


def planted_convolutions(
    seed: int = 0,
    *,
    examples: int = 4000,
    channels: int = 12,
    live: int = 4,
    classes: int = 5,
    size: int = 8,
) -> Planted:
    """A network of two convolutions, each of which reads a few of its input channels.

    Convolutions of 3x3, the second in steps of 2, with ReLU, the mean over positions, and one
    Linear layer that reads everything. That one is not to be trained (`requires_grad` is False):
    it would grow while the convolutions before it, and the penalty, went to zero. Channels of an
    image differ in mean and contrast:

        x_c = a_c / 2 + b_c e,   a_c ~ N(0, 1), b_c ~ U(0, 1) per image,   e ~ N(0, 1) per pixel.

    Args:
        seed: determines every bit.
        examples: for training.
        channels: of an image, and outputs of each convolution.
        live: how many of its channels each convolution reads.
        classes: labels.
        size: height and width of an image.

    Source: as for `planted_logistic`.

    Example:
        >>> made = planted_convolutions(examples=40)
        >>> {name: int(live.sum()) for name, live in made.truth.items()}
        {'conv1.weight': 4, 'conv2.weight': 4}
    """
    _check(examples, channels, live, classes)
    require(is_count(size), "size", "a whole number >= 1", size)
    generator = torch.Generator().manual_seed(seed)
    model = _zeros(lambda: _convolutions(channels, classes))
    names = ("conv1.weight", "conv2.weight")
    truth = {name: _choose(channels, live, generator) for name in names}
    _draw(model, truth, generator)
    shape = (examples + examples // 4, channels)
    pixels = torch.randn(*shape, size, size, generator=generator)
    contrast = torch.rand(*shape, 1, 1, generator=generator)
    mean = torch.randn(*shape, 1, 1, generator=generator)
    model.get_submodule("fc").requires_grad_(False)
    return _labelled(mean / 2 + contrast * pixels, examples, model, truth)


@torch.no_grad()
def support_correctness(model: nn.Module, truth: Mapping[str, Tensor]) -> float:
    """Share of the groups that are zero where those of the truth are, and nonzero elsewhere.

    The iterate of RMDA and RAMDA is not sparse: ask within ``opt.structured()``.

    Args:
        model: with the weights that the truth names.
        truth: by name, which inputs the weight should read: bool, (inputs,).

    Returns:
        In [0, 1]; groups of all weights count alike. Zero means exactly zero.

    Raises:
        ValueError: a weight is not there, or has other inputs.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> model.weight.data[:, 0] = 0.0
        >>> support_correctness(model, {"weight": torch.tensor([False, False, True, True])})
        0.75
    """
    params = dict(model.named_parameters())
    right = total = 0
    for name, live in truth.items():
        require(name in params, "truth", f"of weights among {', '.join(params)}", name)
        found = _INPUTS.amax(params[name].abs()).flatten() != 0
        if found.shape != live.shape or live.dtype != torch.bool:
            raise ValueError(
                f"truth of {name} must be bool of shape {tuple(found.shape)}, "
                f"got {live.dtype} of shape {tuple(live.shape)}"
            )
        right += int((found.cpu() == live.cpu()).sum())
        total += live.numel()
    return right / total


def _check(examples: int, inputs: int, live: int, classes: int) -> None:
    require(is_count(examples), "examples", "a whole number >= 1", examples)
    require(is_count(live) and live <= inputs, "live", f"a whole number in [1, {inputs}]", live)
    require(is_count(classes) and classes > 1, "classes", "a whole number >= 2", classes)


def _convolutions(channels: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, channels, 3, padding=1),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(channels, channels, 3, stride=2, padding=1),
            relu2=nn.ReLU(),
            mean=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(channels, classes),
        )
    )


def _zeros(make: Callable[[], nn.Sequential]) -> nn.Sequential:
    """A network with zeros for its parameters, made without drawing random numbers."""
    with torch.device("meta"):
        model = make()
    model.to_empty(device="cpu")
    for param in model.parameters():
        nn.init.zeros_(param)
    return model


def _choose(count: int, live: int, generator: torch.Generator) -> Tensor:
    """Which of the inputs live, at random."""
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[torch.randperm(count, generator=generator)[:live]] = True
    return chosen


@torch.no_grad()
def _draw(model: nn.Sequential, truth: Mapping[str, Tensor], generator: torch.Generator) -> None:
    """Random weights for live inputs, such that ReLU keeps the scale of what it is given."""
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            live = truth.get(name, torch.ones(weight.shape[1], dtype=torch.bool))
            drawn = torch.randn(weight[:, live].shape, generator=generator)
            weight[:, live] = drawn * (2 / drawn[0].numel()) ** 0.5


@torch.no_grad()
def _labelled(
    x: Tensor, examples: int, model: nn.Sequential, truth: Mapping[str, Tensor]
) -> Planted:
    """The data with the model's labels, after its scores were made comparable between classes."""
    last = model[-1]
    assert isinstance(last, nn.Linear)
    scores = model(x)
    scale = _CONTRAST / scores.std(0)
    last.weight.mul_(scale[:, None])
    last.bias.copy_(-scale * scores.mean(0))
    y = model(x).argmax(1)
    split = Split(x[:examples], y[:examples], x[examples:], y[examples:])
    return Planted(split, model, truth)
