"""RAMDA: regularized adaptive momentum dual averaging."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from ..checks import is_real, require
from ..subproblem import Solver
from .dual_averaging import DualAveraging
from .options import Options


class RAMDA(DualAveraging):
    """RAMDA; `momentum` is the weight of the *old* iterate, the paper's 1 - c.

    With s_t = lr sqrt(t), alpha_t = sum s, V_t = sum s G, U_t = sum s G∘G and the anchor W0,

        Ŵ ≈ argmin_W <V_t, W> + 1/2 <W - W0, P_t (W - W0)> + alpha_t psi(W)
        P_t = diag(cbrt(U_t) + eps)
        W <- momentum * W + (1 - momentum) * Ŵ.

    Without penalty it is MADGRAD (whose lr is this lr minus its eps). Call `restart()` whenever
    lr changes, or let `StageSchedule` do it.

    Args:
        params: as in torch; a group's penalty sits under the key "penalty".
        lr: >= 0, a number or a tensor of one element; 0 makes a step an exact no-op.
        momentum: in [0, 1).
        eps: > 0, keeps the metric positive; `StageSchedule` lowers it with lr.
        solver: None for `Exact` where the penalty offers it and `ProximalGradient` elsewhere.
        options: see `dualprox.optim.Options`.

    Raises:
        ValueError: a setting is out of its range, or a penalty does not fit a parameter.
        TypeError: a penalty, a solver or the two together are of the wrong kind, or a parameter
            is not real floating point.

    Source: Huang & Lee, arXiv:2403.14398, Algorithm 1, eqs. (2)-(5).

    Example:
        >>> import torch, dualprox as dp
        >>> model = torch.nn.Linear(4, 2)
        >>> opt = dp.RAMDA(dp.param_groups(model, dp.GroupLasso(1e-3)), lr=1e-2)
        >>> model(torch.ones(1, 4)).sum().backward(); opt.step()
        >>> [report.name for report in opt.solver_report()]
        ['weight']
    """

    kernel = "ramda"
    takes_bundles = True
    counters = (*DualAveraging.counters, "eps")
    buffers = ("anchor", "grad_sum", "grad_sq_sum")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        momentum: float = 0.9,
        eps: float = 1e-6,
        solver: Solver | None = None,
        **options: Unpack[Options],
    ) -> None:
        # `stage_lr` is there before the first step: loading a distributed checkpoint adds no key.
        defaults = {"lr": lr, "momentum": momentum, "ramp": False, "stage_lr": 0.0}
        defaults |= {"eps": eps, "solver": solver}
        super().__init__(params, defaults, **options)

    def _check_settings(self, group: dict[str, Any]) -> None:
        eps = group["eps"]
        require(is_real(eps) and eps > 0, "eps", "a finite number > 0", eps)
        super()._check_settings(group)

    def accumulate(
        self, state: dict[str, Tensor], grad: Tensor, scale: float, group: dict[str, Any]
    ) -> None:
        """V += s G, U += s G∘G."""
        # A milestone lowers the group's eps before the stage that uses it begins.
        state["eps"].fill_(group["eps"])
        state["grad_sum"].add_(grad, alpha=scale)  # V_t
        wide = grad.to(state["grad_sq_sum"].dtype)  # G∘G of a half-precision G would overflow
        square = state["grad_sq_sum"]
        # An infinite metric, times 0, would be NaN.
        square.addcmul_(wide, wide, value=scale).clamp_max_(torch.finfo(square.dtype).max)  # U_t

    def metric(self, state: dict[str, Tensor]) -> Tensor:
        """P_t = cbrt(U_t) + eps."""
        return state["grad_sq_sum"].pow(1 / 3).add_(state["eps"].item())
