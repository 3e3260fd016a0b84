"""The experiments, each a function that returns a `Run`."""

from collections.abc import Callable
from dataclasses import replace

import dualprox as dp

from .settings import Run
from .specs import (
    AdamwSpec,
    Conv1dSpec,
    ProxAdamwSpec,
    ProxSgdSpec,
    RamdaSpec,
    ResnetSpec,
    RmdaSpec,
    SgdSpec,
)


def digits_mlp_ramda() -> Run:
    """Sparse MLP on handwritten digits: RAMDA with group LASSO."""
    return Run(
        recipe="digits_mlp_ramda",
        optimizer=RamdaSpec(lr=2e-2, momentum=0.5),
        penalty=dp.GroupLasso(2e-4),
        epochs=30,
        milestones=(10, 20),
        baseline="digits_mlp_dense",
    )


def digits_mlp_ramda_refit() -> Run:
    """The same with a refit: the last stage holds the structure and drops the penalty."""
    return replace(digits_mlp_ramda(), recipe="digits_mlp_ramda_refit", refit=True)


def digits_mlp_rmda() -> Run:
    """The same with RMDA."""
    return replace(
        digits_mlp_ramda(),
        recipe="digits_mlp_rmda",
        optimizer=RmdaSpec(lr=0.5),
        penalty=dp.GroupLasso(5e-4),
    )


def digits_mlp_prox_sgd() -> Run:
    """The same with ProxSGD, a baseline without identification."""
    return replace(
        digits_mlp_ramda(),
        recipe="digits_mlp_prox_sgd",
        optimizer=ProxSgdSpec(lr=0.5),
        penalty=dp.GroupLasso(5e-4),
    )


def digits_mlp_prox_adamw() -> Run:
    """The same with ProxAdamW, a baseline without identification."""
    return replace(
        digits_mlp_ramda(),
        recipe="digits_mlp_prox_adamw",
        optimizer=ProxAdamwSpec(lr=3e-3),
    )


def digits_mlp_lowrank() -> Run:
    """Low-rank MLP on handwritten digits: RAMDA with the nuclear norm."""
    return replace(
        digits_mlp_ramda(),
        recipe="digits_mlp_lowrank",
        penalty=dp.NuclearNorm(3e-3),
    )


def digits_mlp_dense() -> Run:
    """Dense MLP on handwritten digits: AdamW, the baseline of the others."""
    return Run(
        recipe="digits_mlp_dense",
        optimizer=AdamwSpec(lr=3e-3),
        epochs=30,
        milestones=(20,),
    )


def fsdd_conv1d_ramda() -> Run:
    """Channel-sparse convolutions on raw spoken digits: RAMDA; needs data_dir."""
    return replace(
        fsdd_conv1d_dense(),
        recipe="fsdd_conv1d_ramda",
        optimizer=RamdaSpec(lr=5e-3, momentum=0.8),
        penalty=dp.GroupLasso(3e-4),
        coupled=True,
        shrink_at_restart=True,
        epochs=20,
        milestones=(7, 11, 14),
        baseline="fsdd_conv1d_dense",
    )


def fsdd_conv1d_dense() -> Run:
    """Dense convolutions on raw spoken digits: AdamW; needs data_dir."""
    return Run(
        recipe="fsdd_conv1d_dense",
        data="fsdd",
        augment=True,
        model=Conv1dSpec(),
        optimizer=AdamwSpec(lr=3e-3),
        epochs=15,
        milestones=(8, 12),
        threads=2,
    )


def cifar_resnet_ramda() -> Run:
    """Channel-sparse ResNet on CIFAR-10 (lossy JPEG): RAMDA; needs data_dir."""
    return replace(
        cifar_resnet_dense(),
        recipe="cifar_resnet_ramda",
        optimizer=RamdaSpec(lr=1e-2, momentum=0.9),
        penalty=dp.GroupLasso(2e-4),
        coupled=True,
        shrink_at_restart=True,
        epochs=14,
        milestones=(5, 8, 10),
        baseline="cifar_resnet_dense",
    )


def cifar_resnet_dense() -> Run:
    """Dense ResNet on CIFAR-10 (lossy JPEG): SGD; needs data_dir."""
    return Run(
        recipe="cifar_resnet_dense",
        data="cifar10",
        augment=True,
        model=ResnetSpec(widths=(32, 64, 128), blocks=1, stride=2),
        optimizer=SgdSpec(lr=0.1),
        epochs=12,
        batch_size=128,
        milestones=(6, 10),
        threads=2,
    )


RECIPES: dict[str, Callable[[], Run]] = {
    recipe.__name__: recipe
    for recipe in (
        digits_mlp_ramda,
        digits_mlp_ramda_refit,
        digits_mlp_rmda,
        digits_mlp_prox_sgd,
        digits_mlp_prox_adamw,
        digits_mlp_lowrank,
        digits_mlp_dense,
        fsdd_conv1d_ramda,
        fsdd_conv1d_dense,
        cifar_resnet_ramda,
        cifar_resnet_dense,
    )
}
