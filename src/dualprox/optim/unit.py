"""What is solved as one: a parameter, or all parameters of a coupled group."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..penalties import Coupled
from ..penalties.coupled import taken_by
from .bundle import as_tensor


@dataclass(frozen=True, eq=False)
class Unit:
    """Parameters whose subproblem is one.

    Args:
        name: the parameter's, or "first.weight + 3 more".
        params: one, or all of a coupled group.
        group: theirs.
    """

    name: str
    params: list[Tensor]
    group: dict[str, Any]

    def point(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors like the parameters as the penalty takes them: the one, or a joint."""
        return taken_by(self.group["penalty"], tensors)


def units_of(group: dict[str, Any], names: Sequence[str]) -> Iterator[Unit]:
    """The units of a param group whose parameters have these names."""
    params = group["params"]
    if isinstance(group["penalty"], Coupled):
        more = f" + {len(params) - 1} more" if len(params) > 1 else ""
        yield Unit(names[0] + more, list(params), group)
        return
    for name, param in zip(names, params, strict=True):
        yield Unit(name, [param], group)


def check_coupled(group: dict[str, Any], names: Sequence[str], takes_bundles: bool) -> None:
    """Raise unless the parameters of a coupled group are the members of its coupling."""
    penalty, params = group["penalty"], group["params"]
    assert isinstance(penalty, Coupled)
    if not takes_bundles:
        raise TypeError(
            "a coupled penalty needs an optimizer whose update takes all parameters of the group "
            "as one bundle: a subclass whose update does must say takes_bundles = True"
        )
    penalty.coupling.check([param.shape for param in params], names)
    for name, param in zip(names, params, strict=True):
        kind, first = (param.dtype, param.device), (params[0].dtype, params[0].device)
        if kind != first:
            raise ValueError(
                f"parameters of a coupled group must share dtype and device, got {kind} for {name} "
                f"and {first} for {names[0]}"
            )


def require_dense_gradients(params: Sequence[Tensor], names: Sequence[str], owner: str) -> None:
    """Raise RuntimeError for the first parameter with a gradient that is not dense."""
    for name, param in zip(names, params, strict=True):
        if param.grad is not None and param.grad.layout != torch.strided:
            raise RuntimeError(
                f"{owner} needs dense gradients, parameter {name} has {param.grad.layout}"
            )


def require_all_gradients(params: Sequence[Tensor], names: Sequence[str]) -> None:
    """Raise RuntimeError if some parameters of a coupled group have no gradient."""
    lacking = [name for name, param in zip(names, params, strict=True) if param.grad is None]
    if lacking:
        raise RuntimeError(
            "parameters of a coupled group move together, but these have no gradient: "
            + ", ".join(lacking)
        )


def require_same_counters(states: Sequence[dict[str, Tensor]], counters: Sequence[str]) -> None:
    """Raise RuntimeError if the parameters of a coupled group have taken different steps."""
    values = torch.stack([state[key] for state in states for key in counters]).view(len(states), -1)
    if not bool((values == values[0]).all()):
        raise RuntimeError(
            f"parameters of a coupled group move together, but their {', '.join(counters)} differ: "
            f"{values.tolist()}"
        )


def joint_state(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The state of a unit: every entry that of its parameter, or a bundle of theirs."""
    return {key: as_tensor([state[key] for state in states]) for key in states[0]}
