"""What is timed: the weights of networks by shape, and gradients for them.

No network runs here. The numbers resemble the middle of training: a part of the groups is dead
and stays dead, entries of a gradient are spread over orders of magnitude, and gradients have a
part that repeats and a part that does not.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# lambda of the group LASSO in every benchmark; gradients are scaled to it.
STRENGTH = 1e-3
_DEAD_SHARE = 0.4
_QUICK_SIDE = 12


@dataclass(frozen=True)
class Weight:
    """One parameter tensor.

    Args:
        name: within its workload.
        shape: of the tensor.
        axis: whose slices are its groups; None leaves it unpenalized.
    """

    name: str
    shape: tuple[int, ...]
    axis: int | None = None

    @property
    def parameters(self) -> int:
        """Entries."""
        return math.prod(self.shape)

    @property
    def groups(self) -> int:
        """Groups, 0 without a penalty."""
        return 0 if self.axis is None else self.shape[self.axis]


@dataclass(frozen=True)
class Workload:
    """The weights that one optimizer step updates.

    Args:
        name: what `--models` calls it.
        title: what tables call it.
        weights: in the order of the model.
    """

    name: str
    title: str
    weights: tuple[Weight, ...]

    @property
    def parameters(self) -> int:
        """Entries of all weights."""
        return sum(weight.parameters for weight in self.weights)

    @property
    def groups(self) -> int:
        """Groups of all weights."""
        return sum(weight.groups for weight in self.weights)

    def distinct(self) -> "Workload":
        """One weight of each shape and axis: enough to compare implementations."""
        kinds = {(weight.shape, weight.axis): weight for weight in reversed(self.weights)}
        return replace(self, weights=tuple(reversed(kinds.values())))

    def shrunk(self) -> "Workload":
        """The distinct weights with every side cut to a dozen: for `--quick`."""
        cut = [
            replace(weight, shape=tuple(min(side, _QUICK_SIDE) for side in weight.shape))
            for weight in self.weights
        ]
        return replace(self, weights=tuple(cut)).distinct()


def _linear(name: str, inputs: int, outputs: int) -> list[Weight]:
    return [Weight(f"{name}.weight", (outputs, inputs), 1), Weight(f"{name}.bias", (outputs,))]


def _norm(name: str, width: int) -> list[Weight]:
    return [Weight(f"{name}.weight", (width,)), Weight(f"{name}.bias", (width,))]


def resnet50() -> Workload:
    """ResNet-50 for 1000 classes, 25,557,032 parameters. Source: He et al. (2016), table 1."""
    weights: list[Weight] = []

    def conv(name: str, inputs: int, outputs: int, side: int) -> None:
        weights.append(Weight(f"{name}.weight", (outputs, inputs, side, side), 1))
        weights.extend(_norm(f"{name}.norm", outputs))

    conv("stem", 3, 64, 7)
    inputs = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=1):
        for block in range(blocks):
            name = f"stage{stage}.{block}"
            conv(f"{name}.reduce", inputs, width, 1)
            conv(f"{name}.middle", width, width, 3)
            conv(f"{name}.expand", width, 4 * width, 1)
            if block == 0:
                conv(f"{name}.shortcut", inputs, 4 * width, 1)
            inputs = 4 * width
    weights += _linear("fc", inputs, 1000)
    return Workload("resnet50", "ResNet-50", tuple(weights))


def transformer() -> Workload:
    """The 12 layers of BERT-base, 85,054,464 parameters, without embeddings and heads."""
    weights: list[Weight] = []
    for layer in range(12):
        for part in ("query", "key", "value", "out"):
            weights += _linear(f"{layer}.{part}", 768, 768)
        weights += _norm(f"{layer}.norm1", 768)
        weights += _linear(f"{layer}.up", 768, 3072)
        weights += _linear(f"{layer}.down", 3072, 768)
        weights += _norm(f"{layer}.norm2", 768)
    return Workload("transformer", "12-layer transformer", tuple(weights))


def _single(name: str, title: str, shape: tuple[int, ...], axis: int | None) -> Workload:
    return Workload(name, title, (Weight("weight", shape, axis),))


def tiny() -> Workload:
    """Logistic regression on MNIST: what a step costs besides its arithmetic."""
    return Workload("tiny", "Linear 784 to 10", tuple(_linear("fc", 784, 10)))


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "resnet50": resnet50,
    "transformer": transformer,
    "linear": lambda: _single("linear", "Linear 4096×4096", (4096, 4096), 1),
    "conv": lambda: _single("conv", "conv 512×512×3×3", (512, 512, 3, 3), 1),
    "lenet_conv": lambda: _single("lenet_conv", "conv 20×1×5×5, by filter", (20, 1, 5, 5), 0),
    "embedding": lambda: _single(
        "embedding", "embedding 30522×768, unpenalized", (30522, 768), None
    ),
    "tiny": tiny,
}


def _along(weight: Weight, values: Tensor, axis: int) -> Tensor:
    """One value per slice along `axis`, shaped to broadcast."""
    shape = [1] * len(weight.shape)
    shape[axis] = weight.shape[axis]
    return values.view(shape)


class Training:
    """Starting weights and gradients of a workload, the same for every method.

    Four groups of ten start dead. Their gradients are lognormal below lambda_g, so that most stay
    dead, some come to life, and all distances to the threshold occur; those of the others stay
    above it. Along the other axis the size of entries is lognormal, so that a metric is spread
    out.

    Args:
        workload: the shapes.
        device: where the tensors live.
        sets: how many gradients to draw; step k gets number k modulo `sets`.
        seed: of the draws, which are made on the CPU and so are the same everywhere.
    """

    def __init__(
        self, workload: Workload, device: torch.device, *, sets: int = 2, seed: int = 0
    ) -> None:
        self.workload = workload
        generator = torch.Generator().manual_seed(seed)
        self.start: list[Tensor] = []
        self.gradients: list[list[Tensor]] = [[] for _ in range(sets)]
        for weight in workload.weights:
            start, gradients = _draw(weight, sets, generator)
            self.start.append(start.to(device))
            for kept, gradient in zip(self.gradients, gradients, strict=True):
                kept.append(gradient.to(device))

    def parameters(self) -> list[torch.nn.Parameter]:
        """Fresh parameters at the starting weights."""
        return [torch.nn.Parameter(start.clone()) for start in self.start]

    def give(self, params: list[torch.nn.Parameter], step: int) -> None:
        """Hand the gradients of a step to the parameters; they are shared, so read them only."""
        gradients = self.gradients[step % len(self.gradients)]
        for param, gradient in zip(params, gradients, strict=True):
            param.grad = gradient


def _draw(weight: Weight, sets: int, generator: torch.Generator) -> tuple[Tensor, list[Tensor]]:
    """The starting weight and `sets` gradients."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    start = normal(*weight.shape).mul_(0.02)
    scale: Tensor = torch.tensor(STRENGTH)
    if weight.axis is not None:
        dead = torch.rand(weight.groups, generator=generator) < _DEAD_SHARE
        start.mul_(_along(weight, ~dead, weight.axis))
        strength = normal(weight.groups).abs_().mul_(0.4).exp_()
        strength = torch.where(dead, 1 / strength, 1.3 * strength)
        scale = scale * _along(weight, strength, weight.axis)
        other = 1 if weight.axis == 0 else 0
        spread = normal(weight.shape[other]).mul_(1.5).exp_()
        scale = scale * _along(weight, spread / spread.square().mean().sqrt(), other)
    drift = normal(*weight.shape).mul_(0.8)
    gradients = [normal(*weight.shape).mul_(0.6).add_(drift).mul_(scale) for _ in range(sets)]
    return start, gradients
