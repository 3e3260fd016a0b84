"""The penalty under which a structure that was found with a nonconvex one is held."""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from torch import Tensor

from ..coupling import Coupling
from ..joint import Member
from ..optim.bundle import tensors_of
from ..penalties import Coupled, GroupLasso, GroupPenalty, Penalty, Support
from ..sharding import is_sharded
from .levels import Level

# How much stronger than the dead groups need at the moment.
_SAFETY = 2.0


def holding_penalty(level: Level, strength: float) -> Coupled | None:
    """A group LASSO with weights: 0 for what lives at a strength, 1 for what is dead there.

    One step of local linear approximation of a penalty that is flat where groups live: they are
    free, so nothing shrinks or kills them, and a dead one stays dead while its mean gradient is
    less than lambda_g. Being convex and constant, it is one whose structure dual averaging
    identifies. lambda_g / sqrt(size_g) is twice the largest that a dead group needs at present.

    Args:
        level: refreshed.
        strength: at which to look.

    Returns:
        None where it is not needed, the penalty being convex, or has no place: the weight shares
        its param group with others, is sharded, or has not moved yet.

    Source: Zou & Li, One-step sparse estimates in nonconcave penalized likelihood models (2008).
    """
    params, problem = level.unit.params, level.problem
    inner = _inner(level.base)
    shares = len(level.unit.group["params"]) > len(params) or any(map(is_sharded, params))
    if inner is None or level.base.is_convex or shares or problem is None:
        return None
    found = level.live(strength)
    assert isinstance(found, Support)
    coupling = _coupling(level)
    joint = cast(Tensor, coupling.joint(tensors_of(problem.pull())))
    needed = (
        coupling.norm(joint)
        / coupling.weight(joint, inner.size_weighted)
        / float(problem.threshold)
    )
    dead = ~found.live.to(joint.device)
    most = float(needed[: coupling.count()][dead].max()) if bool(dead.any()) else 0.0
    return held(level, _SAFETY * most or 1.0, dead.double().tolist())


def held(level: Level, strength: float, weights: Sequence[float]) -> Coupled:
    """Group LASSO with these weights on the groups that a level's penalty has."""
    inner = _inner(level.base)
    assert inner is not None
    lasso = GroupLasso(strength, size_weighted=inner.size_weighted)
    return Coupled(lasso, replace(_coupling(level), weights=tuple(weights)))


def _inner(penalty: Penalty) -> GroupPenalty | None:
    penalty = penalty.penalty if isinstance(penalty, Coupled) else penalty
    return penalty if isinstance(penalty, GroupPenalty) else None


def _coupling(level: Level) -> Coupling:
    """The groups; those of one tensor as a coupling of one member."""
    if isinstance(level.base, Coupled):
        return level.base.coupling
    inner, shape = _inner(level.base), tuple(level.unit.params[0].shape)
    assert inner is not None
    return Coupling((Member(shape, inner.slices, range(inner.slices.count(shape))),))
