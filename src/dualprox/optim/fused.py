"""Which parameters of a group a fused kernel steps, and why the others are left to eager torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..kernels import native
from ..subproblem import Exact

IMPLEMENTATIONS = ("auto", "eager", "native")


@dataclass(frozen=True)
class Plan:
    """How the parameters of a group that have gradients are stepped.

    Args:
        key: the settings that it was made for.
        params: all of them.
        places: where they lay.
        kernel: the fused step of some, or None.
        fused: those.
        eager: the others.
    """

    key: tuple[Any, ...]
    params: list[Tensor]
    places: list[int]
    kernel: native.NativeGroup | None
    fused: list[Tensor]
    eager: list[Tensor]

    def still_holds(self, params: list[Tensor], state: Mapping[Tensor, dict[str, Tensor]]) -> bool:
        """Whether these are the same parameters in the same places, and so are their states."""
        if len(params) != len(self.params) or self.places != [p.data_ptr() for p in params]:
            return False
        if any(a is not b for a, b in zip(params, self.params, strict=True)):
            return False
        return self.kernel is None or self.kernel.fits([state[param] for param in self.fused])


def make_plan(
    method: str | None,
    params: Sequence[Tensor],
    states: Sequence[dict[str, Tensor]],
    names: Sequence[str],
    group: dict[str, Any],
    certifies: bool,
    key: tuple[Any, ...],
) -> Plan:
    """Give each parameter to the fastest implementation that the group's `impl` allows.

    Args:
        method: the kernel of the optimizer, or None if it has none.
        params: of the group, with gradients.
        states: theirs.
        names: theirs, for errors.
        group: the param group.
        certifies: whether the optimizer computes certificates.
        key: the settings that the plan is good for.

    Raises:
        RuntimeError: `impl` demands a kernel that cannot step a parameter.
    """
    fused, forms, eager = [], [], []
    general = _refusal(method, group, certifies)
    for param, state, name in zip(params, states, names, strict=True):
        penalty = group["penalty"]
        form = None if penalty is None else penalty.sparse_group_form(param)
        reason = general
        if reason is None and penalty is not None and form is None:
            reason = f"{type(penalty).__name__} has no fused step"
        if reason is None:
            reason = native.refusal(param, state, form)
        if reason is None:
            fused.append((param, state))
            forms.append(form)
        elif group["impl"] == "native":
            raise RuntimeError(f"impl='native' cannot step parameter {name}: {reason}")
        else:
            eager.append(param)
    chosen, kernel = [param for param, _ in fused], None
    if fused:
        assert method is not None
        kernel = native.NativeGroup(method, chosen, [state for _, state in fused], forms)
    return Plan(key, list(params), [p.data_ptr() for p in params], kernel, chosen, eager)


def _refusal(method: str | None, group: dict[str, Any], certifies: bool) -> str | None:
    """Why no parameter of the group has a fused step; None if they may have."""
    if group["impl"] == "eager":
        return "impl='eager' asks for none"
    if method is None:
        return "the optimizer's class has no fused step of its own"
    if certifies:
        return "certify=True needs the subproblem as a whole"
    if group.get("amsgrad"):
        return "amsgrad has no fused step"
    solver = group.get("solver")
    if not (solver is None or isinstance(solver, Exact)):
        return f"{solver!r} has no fused step"
    return None
