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
class SgdSpec:
    """Settings of `torch.optim.SGD`, a dense baseline's."""

    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = True


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


OptimizerSpec = RamdaSpec | RmdaSpec | ProxSgdSpec | ProxAdamwSpec | AdamwSpec | SgdSpec
ModelSpec = MlpSpec | Conv1dSpec | ResnetSpec | Lenet5Spec | Vgg19Spec | Resnet50Spec
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
