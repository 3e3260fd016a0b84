"""The proximal baselines without dual averaging: ProxSGD and ProxAdamW."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from ..checks import is_real, plain, require
from ..subproblem import Solver, Subproblem
from .base import ProximalOptimizer
from .options import Options
from .rounding import iterate, set_iterate_, settle_
from .unit import Unit


class MomentumMethod(ProximalOptimizer):
    """A method whose iterate solves the subproblem, so that the structured point is the iterate."""

    def structured_points(self, unit: Unit) -> list[Tensor]:
        """The parameters: the last step's subproblem put them there."""
        return [param.detach().clone() for param in unit.params]


class ProxSGD(MomentumMethod):
    """Proximal SGD; `momentum` is the weight of the *old* gradient average.

        m <- momentum * m + (1 - momentum) * G,  m = 0 at the start
        W <- prox_{lr psi}(W - lr m).

    Every penalty is solved exactly, by its prox. The gradient's variance does not vanish, so the
    structure it shows need not be that of the point it tends to.

    Args:
        params: as in torch; a group's penalty sits under the key "penalty".
        lr: >= 0, a number or a tensor of one element; 0 makes a step an exact no-op.
        momentum: in [0, 1).
        options: see `dualprox.optim.Options`.

    Raises:
        ValueError: a setting is out of its range, or a penalty does not fit a parameter.
        TypeError: a penalty is not a `Penalty`, or a parameter not real floating point.

    Source: Yang et al., ProxSGD: training structured neural networks under regularization and
    constraints (ICLR 2020).

    Example:
        >>> import torch, dualprox as dp
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -0.01]))
        >>> opt = dp.ProxSGD([{"params": [w], "penalty": dp.L1(1.0)}], lr=0.1)
        >>> (w * 0).sum().backward(); opt.step(); w.data
        tensor([0.9000, 0.0000])
    """

    kernel = "prox_sgd"
    takes_bundles = True
    buffers = ("momentum_buffer",)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.1,
        momentum: float = 0.9,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum}, **options)

    def update(
        self,
        param: Tensor,
        grad: Tensor,
        state: dict[str, Tensor],
        group: dict[str, Any],
        lr: float,
    ) -> None:
        """One step; see the class."""
        state["step"] += 1
        average = state["momentum_buffer"]
        average.lerp_(grad.to(average.dtype), 1 - group["momentum"])  # m_t
        center = iterate(param, state, average.dtype)
        problem = Subproblem(average, center, 1 / lr, 1.0, group["penalty"])
        set_iterate_(param, state, self._solve(problem, param, group))
        settle_(param, state, "momentum_buffer")

    @torch.no_grad()
    def gradient_estimate(self, param: Tensor) -> Tensor | None:
        """m_t, an average over the last 1 / (1 - momentum) gradients."""
        state = self.state.get(param)
        return state["momentum_buffer"].clone() if state and state["step"] > 0 else None


class ProxAdamW(MomentumMethod):
    """AdamW with a penalty, solved in Adam's own metric (ProxGen); without penalty it is AdamW.

        m <- b1 m + (1 - b1) G,  v <- b2 v + (1 - b2) G∘G,  m̂ = m / (1 - b1^t), v̂ = v / (1 - b2^t)
        W <- argmin_Z <lr m̂, Z> + 1/2 <Z - W', D (Z - W')> + lr psi(Z)
        D = diag(sqrt(v̂) + eps),  W' = (1 - lr * weight_decay) W.

    Args:
        params: as in torch; a group's penalty sits under the key "penalty".
        lr: >= 0, a number or a tensor of one element; 0 makes a step an exact no-op.
        betas: (b1, b2), each in [0, 1).
        eps: > 0, keeps the metric positive.
        weight_decay: >= 0, decoupled, as in AdamW.
        amsgrad: use the largest v̂ so far.
        solver: None for `Exact` where the penalty offers it and `ProximalGradient` elsewhere.
        options: see `dualprox.optim.Options`.

    Raises:
        ValueError: a setting is out of its range, or a penalty does not fit a parameter.
        TypeError: a penalty, a solver or the two together are of the wrong kind, or a parameter
            is not real floating point.

    Source: Yun, Lozano & Yang, Adaptive proximal gradient methods for structured neural networks
    (NeurIPS 2021); arXiv:2403.14398, eq. (6) and Algorithm 3.

    Example:
        >>> import torch, dualprox as dp
        >>> model = torch.nn.Linear(4, 2)
        >>> opt = dp.ProxAdamW(dp.param_groups(model, dp.NuclearNorm(1e-3)), lr=1e-3)
        >>> model(torch.ones(1, 4)).sum().backward(); opt.step()
        >>> opt.solver_report()[0].iterations >= 2
        True
    """

    kernel = "prox_adamw"
    takes_bundles = True
    buffers = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        solver: Solver | None = None,
        **options: Unpack[Options],
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "solver": solver,
        }
        super().__init__(params, defaults, **options)

    def _check_settings(self, group: dict[str, Any]) -> None:
        pair = isinstance(group["betas"], tuple | list) and len(group["betas"]) == 2
        require(pair, "betas", "a pair", group["betas"])
        for index, beta in enumerate(group["betas"]):
            require(is_real(beta) and 0 <= beta < 1, f"betas[{index}]", "in [0, 1)", beta)
        group["betas"] = tuple(map(plain, group["betas"]))
        eps, decay = group["eps"], group["weight_decay"]
        require(is_real(eps) and eps > 0, "eps", "a finite number > 0", eps)
        ok = is_real(decay) and decay >= 0
        require(ok, "weight_decay", "a finite number >= 0", decay)
        require(isinstance(group["amsgrad"], bool), "amsgrad", "a bool", group["amsgrad"])
        super()._check_settings(group)

    def _buffers(self, group: dict[str, Any]) -> tuple[str, ...]:
        return (*self.buffers, "max_exp_avg_sq") if group["amsgrad"] else self.buffers

    def update(
        self,
        param: Tensor,
        grad: Tensor,
        state: dict[str, Tensor],
        group: dict[str, Any],
        lr: float,
    ) -> None:
        """One step; see the class."""
        beta1, beta2 = group["betas"]
        state["step"] += 1
        step = state["step"].item()
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        grad = grad.to(mean.dtype)
        mean.lerp_(grad, 1 - beta1)  # m_t
        square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)  # v_t
        square.clamp_max_(torch.finfo(square.dtype).max)  # an infinite metric would stay so
        if group["amsgrad"]:
            square = state["max_exp_avg_sq"].clamp_min_(square)
        metric = square.sqrt().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
        problem = Subproblem(
            linear=mean * (lr / (1 - beta1**step)),
            center=iterate(param, state, mean.dtype) * (1 - lr * group["weight_decay"]),
            metric=metric,
            threshold=lr,
            penalty=group["penalty"],
        )
        set_iterate_(param, state, self._solve(problem, param, group))
        settle_(param, state, "exp_avg", "exp_avg_sq")

    @torch.no_grad()
    def gradient_estimate(self, param: Tensor) -> Tensor | None:
        """m̂_t, the bias-corrected average over the last 1 / (1 - b1) gradients."""
        state = self.state.get(param)
        if not state or state["step"] == 0:
            return None
        beta1 = self.group_of(param)["betas"][0]
        return state["exp_avg"] / (1 - beta1 ** state["step"].item())
