"""Parts of a run as frozen, typed values: its optimizer, its solver, its penalty, its network."""

from dataclasses import dataclass
from typing import Literal

import dualprox as dp

from ..checks import is_count, require

SolverSpec = dp.Exact | dp.ProximalGradient | dp.NewtonRaphson


@dataclass(frozen=True)
class RamdaSpec:
    """Settings of `dualprox.RAMDA`; no solver is the library's choice."""

    lr: float = 1e-2
    momentum: float = 0.9
    eps: float = 1e-6
    solver: SolverSpec | None = None


@dataclass(frozen=True)
class RmdaSpec:
    """Settings of `dualprox.RMDA`."""

    lr: float = 0.1
    momentum: float = 0.9


@dataclass(frozen=True)
class ProxSgdSpec:
    """Settings of `dualprox.ProxSGD`."""

    lr: float = 0.1
    momentum: float = 0.9


@dataclass(frozen=True)
class ProxAdamwSpec:
    """Settings of `dualprox.ProxAdamW`; no solver is the library's choice.

    With `ProximalGradient` it is ProxGen, with `NewtonRaphson` ProxSSI.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    solver: SolverSpec | None = None


@dataclass(frozen=True)
class AdamwSpec:
    """Settings of `torch.optim.AdamW`, the dense baseline's."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2


@dataclass(frozen=True)
class AdamSpec:
    """Settings of `torch.optim.Adam`, a dense baseline's, whose weight decay is in the gradient."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0


@dataclass(frozen=True)
class SgdSpec:
    """Settings of `torch.optim.SGD`, a dense baseline's."""

    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = True


@dataclass(frozen=True)
class RiglSpec:
    """Settings of `dualprox.RigL` around `torch.optim.SGD`; masks rest in the run's last quarter.

    Each of the two checks its own settings.
    """

    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = True
    sparsity: float = 0.9
    distribution: Literal["erk", "uniform"] = "erk"
    delta_t: int = 100
    drop_fraction: float = 0.3


def _require_counts(name: str, values: tuple[int, ...], *, some: bool = False) -> None:
    ok = all(map(is_count, values)) and (bool(values) or not some)
    require(ok, name, "ints >= 1, at least one" if some else "ints >= 1", values)


@dataclass(frozen=True)
class MlpSpec:
    """Settings of `models.mlp`; no `hidden` layers is logistic regression."""

    hidden: tuple[int, ...] = (256, 128)

    def __post_init__(self) -> None:
        _require_counts("hidden", self.hidden)


@dataclass(frozen=True)
class Conv1dSpec:
    """Settings of `models.conv1d`."""

    widths: tuple[int, ...] = (32, 64, 64, 128, 128)

    def __post_init__(self) -> None:
        _require_counts("widths", self.widths, some=True)


@dataclass(frozen=True)
class ResnetSpec:
    """Settings of `models.resnet`."""

    widths: tuple[int, ...] = (16, 32, 64)
    blocks: int = 3
    stride: int = 1

    def __post_init__(self) -> None:
        _require_counts("widths", self.widths, some=True)
        for name in ("blocks", "stride"):
            value = getattr(self, name)
            require(is_count(value), name, "an int >= 1", value)
            require(value <= 1000, name, "at most 1000", value)


@dataclass(frozen=True)
class Lenet5Spec:
    """`models.lenet5`, which has no settings."""


@dataclass(frozen=True)
class Vgg19Spec:
    """`models.vgg19`, which has no settings."""


@dataclass(frozen=True)
class Resnet50Spec:
    """Settings of `models.resnet50`."""

    images: Literal["small", "large"] = "small"

    def __post_init__(self) -> None:
        require(self.images in ("small", "large"), "images", "small or large", self.images)


@dataclass(frozen=True)
class TransformerXLSpec:
    """Settings of `models.TransformerXL`, for at most `tokens` words in segments of `length`."""

    tokens: int = 267_735
    width: int = 512
    layers: int = 16
    heads: int = 8
    inner: int = 2048
    cutoffs: tuple[int, ...] = (19_997, 39_997, 199_997)
    dropout: float = 0.1
    memory_length: int = 192
    length: int = 192

    def __post_init__(self) -> None:
        for name in ("tokens", "width", "layers", "heads", "inner", "length"):
            value = getattr(self, name)
            require(is_count(value), name, "an int >= 1", value)
        require(self.layers <= 1000, "layers", "at most 1000", self.layers)


@dataclass(frozen=True)
class Tacotron2Spec:
    """Settings of `models.Tacotron2`; of the symbols, published as 148, the letters come first."""

    symbols: int = 148
    width: int = 512
    prenet: int = 256
    decoder: int = 1024
    postnet: int = 512

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            require(is_count(value), name, "an int >= 1", value)


@dataclass(frozen=True)
class VitMimSpec:
    """Settings of `models.vit_mim`, and of what is hidden: cells of `mask_patch` pixels."""

    image: int = 224
    patch: int = 16
    width: int = 192
    layers: int = 4
    heads: int = 4
    inner: int = 768
    mask_patch: int = 32
    mask_ratio: float = 0.6

    def __post_init__(self) -> None:
        for name in ("image", "patch", "width", "layers", "heads", "inner", "mask_patch"):
            value = getattr(self, name)
            require(is_count(value), name, "an int >= 1", value)
        require(self.layers <= 1000, "layers", "at most 1000", self.layers)
        whole = self.mask_patch % self.patch == 0
        require(whole, "mask_patch", f"a multiple of patch = {self.patch}", self.mask_patch)
        whole = self.image % self.mask_patch == 0
        require(whole, "image", f"a multiple of mask_patch = {self.mask_patch}", self.image)
        require(0 < self.mask_ratio <= 1, "mask_ratio", "in (0, 1]", self.mask_ratio)


OptimizerSpec = (
    RamdaSpec | RmdaSpec | ProxSgdSpec | ProxAdamwSpec | AdamwSpec | AdamSpec | SgdSpec | RiglSpec
)
ModelSpec = (
    MlpSpec
    | Conv1dSpec
    | ResnetSpec
    | Lenet5Spec
    | Vgg19Spec
    | Resnet50Spec
    | TransformerXLSpec
    | Tacotron2Spec
    | VitMimSpec
)
PenaltySpec = (
    dp.GroupLasso
    | dp.SparseGroupLasso
    | dp.GroupMCP
    | dp.GroupSCAD
    | dp.GroupL0
    | dp.GroupHalf
    | dp.L1
    | dp.NuclearNorm
)
