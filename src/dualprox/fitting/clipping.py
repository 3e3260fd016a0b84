"""Shortening gradients that are far longer than usual."""

from typing import Any

import torch
from torch import Tensor, nn

# The weight of a step's norm in the running mean.
_SHARE = 0.03


class Clipping:
    """Scales the gradient of a network to at most `most` times its usual norm.

    With g_t the gradient of step t and m_t the usual norm, at first that of the first gradient
    that is not zero,

        g_t <- g_t min(1, most m_t / ||g_t||),    m_t+1 = m_t + 0.03 (min(||g_t||, most m_t) - m_t),

    Dual averaging keeps every gradient of a stage in its sum, and the more the later it comes: one
    that is tens of times as long as the others outweighs them all. Nothing is read back from the
    device.

    Args:
        most: above 1; None leaves gradients as they are.
    """

    def __init__(self, most: float | None) -> None:
        self.most = most
        self.usual: Tensor | None = None

    @torch.no_grad()
    def clip_(self, model: nn.Module) -> None:
        """Scale the gradients of a model's parameters, in place."""
        if self.most is None:
            return
        grads = [param.grad for param in model.parameters() if param.grad is not None]
        norm = nn.utils.get_total_norm(grads).float()
        usual = norm if self.usual is None else torch.where(self.usual > 0, self.usual, norm)
        limit = self.most * usual
        if norm.device.type != "cpu" or not norm <= limit:  # elsewhere to look is to wait
            # Torch's own makes of a norm of 0 over a limit of 0 a NaN.
            over = norm / limit.clamp_min(torch.finfo(limit.dtype).tiny)
            torch._foreach_mul_(grads, over.clamp_min(1.0).reciprocal())  # pyright: ignore
        self.usual = usual.lerp(torch.minimum(norm, limit), _SHARE)

    def state_dict(self) -> dict[str, Any]:
        """The usual norm."""
        return {"usual": self.usual}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.usual = state["usual"]
