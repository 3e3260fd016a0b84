"""A look at the loss and the gradients of each step before the optimizer moves."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..optim.finite import gradient_norm, name_nonfinite, nonfinite_kind, total_norm

# Steps left out one after the other, after which it is no accident any more.
IN_A_ROW = 30


class Finite:
    """Decides whether a step may be taken, and remembers losses and steps that were left out.

    Args:
        opt: whose gradients are looked at.
        skips: whether a step that is not finite is left out; else it ends the run.
        is_scaled: whether a `GradScaler`, which looks at them itself, has scaled the gradients:
            the loss alone is looked at then.
    """

    def __init__(self, opt: Optimizer, skips: bool, is_scaled: bool) -> None:
        self.opt, self.skips, self.is_scaled = opt, skips, is_scaled
        self.losses: list[float] = []
        self.skipped = self.overflowed = self.in_a_row = 0

    def allows(self, loss: Tensor, where: str) -> bool:
        """Whether to take the step; waits for the device once.

        Args:
            loss: of the step, a scalar, after the backward pass.
            where: for the error, "epoch 3, step 17".

        Raises:
            FloatingPointError: it is not finite and none may be left out, or too many were.
        """
        value, norm = loss.detach().float(), torch.zeros((), device=loss.device)
        if not self.is_scaled:
            norm = gradient_norm(self.opt).to(value)
        value, norm = torch.stack([value, norm]).tolist()
        is_fine = math.isfinite(value) and math.isfinite(norm)
        found = {} if is_fine or self.is_scaled else name_nonfinite(self.opt)
        if math.isfinite(value) and not found:
            self.losses.append(value)
            return True
        reason = _reason(value, found)
        if not self.skips:
            raise FloatingPointError(
                f"{reason} in {where}; this step was not taken: try a smaller lr, or "
                "nonfinite=skip to leave such steps out"
            )
        self.skipped += 1
        self._count(reason, where)
        return False

    def overflow(self, where: str) -> None:
        """Count a step that the scaler has left out.

        Raises:
            FloatingPointError: too many were, one after the other.
        """
        self.overflowed += 1
        self._count("a scaled gradient is not finite", where)

    def step_taken(self) -> None:
        """Say that a step was taken."""
        self.in_a_row = 0

    def _count(self, reason: str, where: str) -> None:
        self.in_a_row += 1
        if self.in_a_row >= IN_A_ROW:
            raise FloatingPointError(
                f"{reason} in {where}, and {IN_A_ROW} steps were left out one after the other: "
                "try a smaller lr"
            )

    def end_epoch(self, where: str) -> dict[str, float]:
        """The mean loss of the epoch's steps, and what was left out where that may happen.

        Raises:
            FloatingPointError: all of its steps were left out.
        """
        if not self.losses:
            raise FloatingPointError(f"all steps of {where} were left out: they were not finite")
        row: dict[str, float] = {"loss": sum(self.losses) / len(self.losses)}
        if self.skips:
            row["skipped_steps"] = self.skipped
        if self.is_scaled:
            row["overflowed_steps"] = self.overflowed
        self.losses, self.skipped, self.overflowed = [], 0, 0
        return row

    def state_dict(self) -> dict[str, Any]:
        """Numbers and a list of them."""
        return {
            "losses": list(self.losses),
            "counts": [self.skipped, self.overflowed, self.in_a_row],
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.losses = list(saved["losses"])
        self.skipped, self.overflowed, self.in_a_row = saved["counts"]


def require_finite(model: nn.Module, where: str) -> None:
    """Raise FloatingPointError, which names it, if a parameter or a buffer is not finite.

    A step from finite gradients can be too long, and a batch can spoil the running statistics of
    batch norms whether its step is taken or not.
    """
    tensors = {n: t.detach() for n, t in model.state_dict().items() if t.is_floating_point()}
    if not bool(total_norm(list(tensors.values())).isfinite()):
        for name, tensor in tensors.items():
            kind = nonfinite_kind(tensor)
            if kind is not None:
                raise FloatingPointError(f"{name} holds {kind} after {where}: try a smaller lr")


def _reason(loss: float, found: dict[str, str]) -> str:
    """What is not finite: the first gradient, or the loss as well."""
    first = ""
    if found:
        name, kind = next(iter(found.items()))
        first = f"the gradient of {name} holds {kind}"
        if len(found) > 1:
            first += f", as do {len(found) - 1} others"
    if math.isfinite(loss):
        return first
    return f"the loss is {loss}" + (f" and {first}" if first else "")
