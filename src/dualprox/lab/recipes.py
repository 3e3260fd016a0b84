"""The experiments, each a function that returns a `Run`."""

from collections.abc import Callable
from dataclasses import replace

import dualprox as dp

from .settings import AdamwSpec, ProxAdamwSpec, ProxSgdSpec, RamdaSpec, RmdaSpec, Run


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


RECIPES: dict[str, Callable[[], Run]] = {
    recipe.__name__: recipe
    for recipe in (
        digits_mlp_ramda,
        digits_mlp_rmda,
        digits_mlp_prox_sgd,
        digits_mlp_prox_adamw,
        digits_mlp_lowrank,
        digits_mlp_dense,
    )
}
