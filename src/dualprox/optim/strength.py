"""Changing penalties while training: how strong they are, and how far from convex."""

from ..checks import is_real, require
from ..kinds import check_kinds
from ..penalties import Penalty
from .base import ProximalOptimizer


def strengths(opt: ProximalOptimizer) -> list[float | None]:
    """The strength of each param group's penalty; None without penalty, and for constraints.

    Args:
        opt: a dualprox optimizer.

    Example:
        >>> import torch, dualprox as dp
        >>> first, second = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2))
        >>> groups = [{"params": [first], "penalty": dp.L1(0.5)}, {"params": [second]}]
        >>> dp.strengths(dp.RMDA(groups))
        [0.5, None]
    """
    check_kinds(strengths, {"opt": opt})
    penalties = [group["penalty"] for group in opt.param_groups]
    return [None if penalty is None else penalty.own_strength() for penalty in penalties]


def scale_strength(opt: ProximalOptimizer, factor: float) -> None:
    """Multiply the strength of every penalty: lambda <- factor * lambda in each param group.

    Penalties without a strength stay. The state, the ratios between groups and all other fields
    are kept (the knee of MCP and SCAD is gamma * lambda and moves along), and fused steps stay
    fused. The new strength holds at once: dual averaging solves its subproblem with it for the
    gradients of the whole stage, and the structured point is read with it, so the place for it is
    a restart. A captured CUDA graph goes on with what it has captured.

    A checkpoint names the strengths it was saved with: scale those of a new optimizer alike before
    it loads one.

    Args:
        opt: a dualprox optimizer, changed in place.
        factor: finite and > 0; zero would forget the ratios.

    Raises:
        ValueError: the factor breaks its rule, or no penalty has a strength.

    Example:
        >>> import torch, dualprox as dp
        >>> w = torch.nn.Parameter(torch.ones(2, 2))
        >>> opt = dp.RMDA([{"params": [w], "penalty": dp.GroupLasso(0.5)}])
        >>> dp.scale_strength(opt, 0.5); opt.param_groups[0]["penalty"].strength
        0.25
    """
    check_kinds(scale_strength, {"opt": opt})
    require(is_real(factor) and factor > 0, "factor", "a finite number > 0", factor)
    _require_any(opt)
    for group, strength in zip(opt.param_groups, strengths(opt), strict=True):
        if strength is not None:
            group["penalty"] = group["penalty"].with_strength(factor * strength)


def set_strength(opt: ProximalOptimizer, strength: float) -> None:
    """Give the strongest penalty this strength, and scale all others alike; see `scale_strength`.

    Where all penalties have one strength, as after ``param_groups(model, GroupLasso(...))``, that
    is the strength of all. Nothing is remembered of how they were built: after `shrink_training`,
    whose smaller groups get larger strengths to keep their weights, `scale_strength` is the one
    that means the same as before.

    Args:
        opt: a dualprox optimizer, changed in place.
        strength: the new largest strength, finite and > 0; zero would forget the ratios.

    Raises:
        ValueError: the strength breaks its rule, no penalty has a strength, or all are 0.

    Example:
        >>> import torch, dualprox as dp
        >>> first, second = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2))
        >>> penalties = {first: dp.GroupLasso(0.5), second: dp.GroupLasso(0.25, axis=0)}
        >>> opt = dp.RMDA([{"params": [p], "penalty": psi} for p, psi in penalties.items()])
        >>> dp.set_strength(opt, 2.0); dp.strengths(opt)
        [2.0, 1.0]
    """
    check_kinds(set_strength, {"opt": opt})
    require(is_real(strength) and strength > 0, "strength", "a finite number > 0", strength)
    largest = _require_any(opt)
    if largest == 0:
        raise ValueError("set_strength needs a penalty of strength > 0, got 0 for all of them")
    for group, old in zip(opt.param_groups, strengths(opt), strict=True):
        if old is not None:
            group["penalty"] = group["penalty"].with_strength(strength * (old / largest))


def set_concavity(opt: ProximalOptimizer, concavity: float) -> None:
    """Set the concavity of every `MCP`, `SCAD`, `GroupMCP` and `GroupSCAD` at the next step.

    At 0 they are `L1` and `GroupLasso`, whose problems are convex where the loss is; at 1 their
    gamma is the one they were built with. Going from 0 to 1 in stages starts the nonconvex problem
    from the solution of its convex kin. Other penalties stay as they are.

    The penalty of a param group changes when its next step begins, so that after a restart the
    structured point of the stage that ended can be read until then. Checkpoints carry both.

    Args:
        opt: a dualprox optimizer, changed in place.
        concavity: in [0, 1].

    Raises:
        ValueError: the concavity breaks its rule, or no penalty has one.

    Example:
        >>> import torch, dualprox as dp
        >>> w = torch.nn.Parameter(torch.ones(2, 2))
        >>> opt = dp.RMDA([{"params": [w], "penalty": dp.GroupMCP(0.5)}])
        >>> dp.set_concavity(opt, 0.25); w.grad = torch.ones(2, 2); opt.step()
        >>> opt.param_groups[0]["penalty"].concavity
        0.25
    """
    check_kinds(set_concavity, {"opt": opt})
    ok = is_real(concavity) and 0 <= concavity <= 1
    require(ok, "concavity", "in [0, 1]", concavity)
    bending = [group for group in opt.param_groups if _bends(group["penalty"])]
    if not bending:
        raise ValueError("concavity needs an MCP, SCAD, GroupMCP or GroupSCAD, got none of them")
    for group in bending:
        group["concavity"] = float(concavity)


def _bends(penalty: Penalty | None) -> bool:
    return penalty is not None and penalty.with_concavity(0.0) != penalty.with_concavity(1.0)


def _require_any(opt: ProximalOptimizer) -> float:
    """The largest strength."""
    known = [strength for strength in strengths(opt) if strength is not None]
    if not known:
        raise ValueError("opt must have a penalty with a strength, got none")
    return max(known)
