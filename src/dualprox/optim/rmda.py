"""RMDA: regularized modernized dual averaging."""

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from .dual_averaging import DualAveraging
from .options import Options


class RMDA(DualAveraging):
    """RMDA; `momentum` is the weight of the *old* iterate, the paper's 1 - c.

    With s_t = lr sqrt(t), beta_t = sqrt(t), alpha_t = sum s, V_t = sum s G and the anchor W0,

        Ŵ = argmin_W <V_t, W> + beta_t / 2 ||W - W0||^2 + alpha_t psi(W)
        W <- momentum * W + (1 - momentum) * Ŵ.

    Every penalty is solved exactly, by its prox. Without penalty it is MDA. Call `restart()`
    whenever lr changes, or let `StageSchedule` do it.

    Args:
        params: as in torch; a group's penalty sits under the key "penalty".
        lr: >= 0, a number or a tensor of one element; 0 makes a step an exact no-op.
        momentum: in [0, 1).
        options: see `dualprox.optim.Options`.

    Raises:
        ValueError: a setting is out of its range, or a penalty does not fit a parameter.
        TypeError: a penalty is not a `Penalty`, or a parameter not real floating point.

    Source: Huang & Lee, arXiv:2112.02612, Algorithm 1.

    Example:
        >>> import torch, dualprox as dp
        >>> w = torch.nn.Parameter(torch.ones(2, 3))
        >>> opt = dp.RMDA([{"params": [w], "penalty": dp.GroupLasso(0.5)}], lr=1.0)
        >>> (w * torch.tensor([1.0, 0.0, 0.0])).sum().backward(); opt.step()
        >>> with opt.structured():
        ...     w.data
        tensor([[0.0000, 0.5000, 0.5000], [0.0000, 0.5000, 0.5000]])
    """

    kernel = "rmda"
    takes_bundles = True
    buffers = ("anchor", "grad_sum")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.1,
        momentum: float = 0.9,
        **options: Unpack[Options],
    ) -> None:
        # `stage_lr` is there before the first step: loading a distributed checkpoint adds no key.
        defaults = {"lr": lr, "momentum": momentum, "ramp": False, "stage_lr": 0.0}
        super().__init__(params, defaults, **options)

    def accumulate(
        self, state: dict[str, Tensor], grad: Tensor, scale: float, group: dict[str, Any]
    ) -> None:
        """V += s G."""
        del group
        state["grad_sum"].add_(grad, alpha=scale)  # V_t

    def metric(self, state: dict[str, Tensor]) -> float:
        """beta_t = sqrt(t)."""
        return state["step"].item() ** 0.5
