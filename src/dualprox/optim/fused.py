"""Which parameters of a group a fused kernel steps, and why the others are left to eager torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..kernels import native, triton_steps
from ..subproblem import Exact

IMPLEMENTATIONS = ("auto", "eager", "native", "triton")


def why_unavailable(impl: str) -> str | None:
    """Why an implementation cannot run here; None if it can."""
    if impl == "native":
        reason = native.why_unavailable()
        return None if reason is None else f"the native kernels are {reason}"
    return triton_steps.unavailable() if impl == "triton" else None


class Kernel(Protocol):
    """The fused step of some parameters of a group."""

    def fits(self, params: list[Tensor], states: list[dict[str, Tensor]], /) -> bool:
        """Whether these are the tensors it was made for, where they were."""
        ...

    def step(self, grads: list[Tensor], settings: dict[str, Any], /) -> None:
        """One step, in place."""
        ...


@dataclass(frozen=True)
class Plan:
    """How the parameters of a group that have gradients are stepped.

    Args:
        key: the settings that it was made for.
        params: all of them.
        places: where they lay.
        fused: kernels, each with its parameters.
        eager: the other parameters.
    """

    key: tuple[Any, ...]
    params: list[Tensor]
    places: list[int]
    fused: list[tuple[Kernel, list[Tensor]]]
    eager: list[Tensor]

    def still_holds(self, params: list[Tensor], state: Mapping[Tensor, dict[str, Tensor]]) -> bool:
        """Whether these are the same parameters in the same places, and so are their states."""
        if len(params) != len(self.params) or self.places != [p.data_ptr() for p in params]:
            return False
        if any(a is not b for a, b in zip(params, self.params, strict=True)):
            return False
        return all(kernel.fits(own, [state[p] for p in own]) for kernel, own in self.fused)


def make_plan(
    method: Any,
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
    penalty, impl = group["penalty"], group["impl"]
    taken: dict[torch.device, list[tuple[Tensor, dict[str, Tensor], Any]]] = {}
    eager = []
    general = _refusal(method, group, certifies)
    for param, state, name in zip(params, states, names, strict=True):
        # A subclass may have overridden the prox, so it does not inherit the kernels.
        form = None
        if penalty is not None and "sparse_group_form" in type(penalty).__dict__:
            form = penalty.sparse_group_form(param)
        reason = general
        if reason is None and penalty is not None and form is None:
            reason = f"{type(penalty).__name__} has no fused step"
        if reason is None and impl == "triton":
            reason = triton_steps.unsupported(method, param, state, form)
        elif reason is None:
            reason = native.refusal(param, state, form)
        if reason is None:
            taken.setdefault(param.device, []).append((param, state, form))
        elif impl in ("native", "triton"):
            raise RuntimeError(f"impl={impl!r} cannot step parameter {name}: {reason}")
        else:
            eager.append(param)
    fused: list[tuple[Kernel, list[Tensor]]] = []
    for rows in taken.values():
        own, its_states, forms = (list(column) for column in zip(*rows, strict=True))
        if impl == "triton":
            kernel = triton_steps.TritonGroup(method, own, its_states, forms, group["capturable"])
        else:
            kernel = native.NativeGroup(method, own, its_states, forms)
        fused.append((kernel, own))
    return Plan(key, list(params), [p.data_ptr() for p in params], fused, eager)


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
