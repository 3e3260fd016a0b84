"""Refit: the structure that was found is held, and its penalty acts no more."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..joint import Joint
from ..penalties import Penalty, RankAtMost
from ..penalties.low_rank import SpectralPenalty, numerical_rank
from ..sharding import local, sharded_like, whole
from .unit import Unit

# What a frozen group's state holds besides the method's: the one or the other.
MARKS = ("live", "rank")

State = Mapping[Tensor, Mapping[str, Tensor]]
# Public, whatever its functions' names say: torch.optim's own foreach=True is written in them.
_torch: Any = torch


def can_freeze(penalty: Penalty | None) -> bool:
    """Whether there is a structure to hold: constraints keep acting instead."""
    return penalty is not None and not penalty.is_constraint


def has_rank(penalty: Penalty) -> bool:
    """Whether its structure is a rank, and no support."""
    return isinstance(penalty, SpectralPenalty)


def marks_of(group: Mapping[str, Any]) -> tuple[str, ...]:
    """The names in the state of a group's parameters that hold its structure."""
    if not group.get("frozen", False):
        return ()
    return ("rank",) if has_rank(group["penalty"]) else ("live",)


def holds_support(group: Mapping[str, Any]) -> bool:
    """Whether the group is frozen to a coordinate subspace."""
    return marks_of(group) == ("live",)


def live_entries(unit: Unit, points: Sequence[Tensor]) -> list[Tensor]:
    """Which entries of a unit's parameters may move, as bool tensors laid out like them.

    Raises:
        TypeError: the penalty's manifold is no coordinate subspace.
    """
    penalty = unit.group["penalty"]
    point = unit.point([point.detach() for point in points])
    found: Any = penalty.live_entries(point if isinstance(point, Joint) else whole(point))
    if found is None:
        raise TypeError(
            f"penalty of {unit.name} must tell its live entries, of which a frozen structure "
            f"consists; live_entries of {penalty} returns None"
        )
    parts = found.tensors() if isinstance(found, Joint) else [sharded_like(found, unit.params[0])]
    return [
        torch.empty_like(param, dtype=torch.bool, requires_grad=False).copy_(live)
        for param, live in zip(unit.params, parts, strict=True)
    ]


def found_marks(unit: Unit, points: Sequence[Tensor], state: State) -> list[dict[str, Tensor]]:
    """The structure that the parameters of a unit have at these points, to be kept in their state.

    What has been frozen before can only get less. Nothing is changed.
    """
    before = [state.get(param, {}) for param in unit.params]
    if has_rank(unit.group["penalty"]):
        ranks = [
            torch.tensor(float(numerical_rank(point)), dtype=torch.float64) for point in points
        ]
        return [
            {"rank": torch.minimum(rank, known.get("rank", rank))}
            for rank, known in zip(ranks, before, strict=True)
        ]
    return [
        {"live": live.logical_and_(known["live"]) if "live" in known else live}
        for live, known in zip(live_entries(unit, points), before, strict=True)
    ]


def acting_groups(
    params: Sequence[Tensor], group: dict[str, Any], state: State
) -> Iterator[tuple[list[Tensor], dict[str, Any]]]:
    """Parameters of a group, and the group with the penalty that their subproblem has.

    That is none where a support is held, since `hold` solves the problem on the subspace from its
    solution on the whole space; and the constraint on the rank where one is held.
    """
    marks = marks_of(group)
    if marks == ("rank",):
        for param in params:
            rank = int(state[param]["rank"].item())
            yield [param], {**group, "penalty": RankAtMost(rank)}
    else:
        yield list(params), {**group, "penalty": None} if marks else group


def hold(tensors: Sequence[Tensor], live: Sequence[Tensor]) -> None:
    """Set the entries that are not live to zero, in place, without synchronising; NaN stays."""
    if tensors:
        _torch._foreach_mul_([local(tensor) for tensor in tensors], [local(mask) for mask in live])


def masked(tensors: Sequence[Tensor], live: Sequence[Tensor]) -> Sequence[Tensor]:
    """New tensors, zero in the entries that are not live, without synchronising; NaN stays."""
    return _torch._foreach_mul(list(tensors), list(live)) if tensors else []


def residual(
    unit: Unit, points: Sequence[Tensor], gradients: Sequence[Tensor], state: State
) -> Tensor:
    """The norm of what gradients of a frozen unit have along its manifold, a 0-dim tensor."""
    norms = []
    for param, point, gradient in zip(unit.params, points, gradients, strict=True):
        if holds_support(unit.group):
            norm = torch.linalg.vector_norm(gradient * state[param]["live"])
        else:
            constraint = RankAtMost(int(state[param]["rank"].item()))
            # A point rounded to half precision has no low rank.
            near = constraint.prox(point.to(gradient.dtype), 1.0)
            norm = constraint.residual(near, gradient)
        norms.append(whole(norm))
    return torch.linalg.vector_norm(torch.stack(norms))
