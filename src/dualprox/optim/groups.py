"""What an optimizer is given to train: parameters in groups, checked before anything is made."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ..checks import require, shown
from ..kinds import fits
from ..penalties import Coupled, Penalty
from ..sharding import require_held
from ..subproblem import Solver
from .fused import IMPLEMENTATIONS, why_unavailable


def listed(params: Any) -> list[Any]:
    """What torch takes for parameters, as a list.

    Raises:
        TypeError: it is no iterable, or what it yields is neither a tensor, a pair nor a dict.
        ValueError: there is nothing in it.
    """
    rule = "an iterable of Tensors, of pairs (name, Tensor) or of dicts"
    if not fits(params, Iterable) or isinstance(params, Tensor | str | bytes):
        raise TypeError(f"params must be {rule}, got {shown(params)}")
    found = list(params)
    for each in found:
        if not isinstance(each, Tensor | tuple | dict):
            raise TypeError(f"params must be {rule}, got {shown(each)}")
    require(bool(found), "params", "one Tensor or dict at least", found)
    return found


def check_new_group(group: dict[str, Any], names: list[str], owner: str, takes_decay: bool) -> None:
    """Raise where a new group's penalty, solver and implementation do not fit its parameters.

    Args:
        group: with all defaults filled in.
        names: of its parameters, or their places.
        owner: the optimizer's class, for messages.
        takes_decay: whether that class has a weight decay.
    """
    rule = "False in a new group; freeze_structure_() freezes"
    require(group["frozen"] is False, "frozen", rule, group["frozen"])
    impl = group["impl"]
    known = isinstance(impl, str) and impl in IMPLEMENTATIONS
    require(known, "impl", f"one of {IMPLEMENTATIONS}", impl)
    if why_unavailable(impl) is not None:
        raise ValueError(f"impl={impl!r}: {why_unavailable(impl)}")
    if group["capturable"] and impl != "triton":
        raise ValueError(f"capturable needs impl='triton', got {impl!r}")
    decay = group.get("weight_decay", 0)
    if decay and not takes_decay:
        raise ValueError(
            f"weight_decay must be 0 for {owner}, got {decay!r}; "
            "the penalty ElasticNet adds a ridge"
        )
    penalty, solver = group["penalty"], group.get("solver")
    if not (penalty is None or isinstance(penalty, Penalty)):
        raise TypeError(f"penalty must be a dualprox Penalty or None, got {shown(penalty)}")
    if not (solver is None or isinstance(solver, Solver)):
        raise TypeError(f"solver must be a dualprox Solver or None, got {shown(solver)}")
    if penalty is not None and solver is not None:
        solver.check(penalty)
    for name, param in zip(names, group["params"], strict=True):
        require_held(param, name)
    named = "param_names" in group
    for name, param in zip(names, group["params"], strict=True):
        if not param.is_floating_point():
            told = name if named else ""
            raise TypeError(f"parameter {told} must be real floating, got {param.dtype}")
        if not (penalty is None or isinstance(penalty, Coupled)):
            try:
                penalty.check(param.shape)
            except ValueError as error:
                raise ValueError(f"{error}{f' (parameter {name})' if named else ''}") from None
