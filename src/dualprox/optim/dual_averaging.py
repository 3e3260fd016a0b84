"""Dual averaging: stages, anchors, and an iterate that averages structured points."""

import math
import warnings
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from ..subproblem import Subproblem
from .base import ProximalOptimizer
from .bundle import as_tensor, tensors_of
from .frozen import acting_groups, hold, holds_support
from .rounding import REMAINDER, iterate, set_iterate_, settle_
from .solve import solve
from .unit import Unit, joint_state


class DualAveraging(ProximalOptimizer):
    """The part that RMDA and RAMDA share; docs/math.md has the formulas.

    State of a parameter: `step` t, `penalty_sum` alpha_t, `restart` (1 when the next step begins
    a stage), `anchor` W0, and the sums of the subclass.
    """

    counters = ("step", "penalty_sum", "restart")
    _warned_of_lr = False

    def new_state(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """Zeros, and a stage that is about to begin."""
        state = super().new_state(param, group)
        state["restart"].fill_(1)
        return state

    @abstractmethod
    def accumulate(
        self, state: dict[str, Tensor], grad: Tensor, scale: float, group: dict[str, Any]
    ) -> None:
        """Add `scale` times the new gradient's terms to the sums, in place."""

    @abstractmethod
    def metric(self, state: dict[str, Tensor]) -> float | Tensor:
        """D of the subproblem, from the state alone."""

    def update(
        self,
        param: Tensor,
        grad: Tensor,
        state: dict[str, Tensor],
        group: dict[str, Any],
        lr: float,
    ) -> None:
        """One step: V += s G, Ŵ = argmin Q_t, W <- (1 - c) W + c Ŵ."""
        if state["restart"]:
            self._begin_stage(param, state)
        state["step"] += 1
        step = state["step"].item()
        scale = lr * math.sqrt(step)  # s_t
        state["penalty_sum"] += scale  # alpha_t
        self.accumulate(state, grad, scale, group)
        point = self._solve(self._subproblem(state, group), param, group)
        weight = 1 - group["momentum"]  # c
        if group["ramp"]:
            weight = min(weight * math.sqrt(step), 1.0)
        now = iterate(param, state, point.dtype)
        set_iterate_(param, state, now.lerp_(point, weight))
        settle_(param, state, *(name for name in self._buffers(group) if name != "anchor"))

    def _begin_step(self, group: dict[str, Any], params: list[Tensor], lr: float) -> None:
        """Remember the lr of the stage; warn when it changes within one."""
        if lr == group["stage_lr"]:
            return
        if group["stage_lr"] == 0 or all(self.ready_state(p, group)["restart"] for p in params):
            group["stage_lr"] = lr
        elif not self._warned_of_lr:
            self._warned_of_lr = True
            warnings.warn(
                f"lr went from {group['stage_lr']:g} to {lr:g} without a restart: the gradients "
                "summed at the old lr now outweigh the new ones. Use dualprox.StageSchedule, or "
                "call restart() when lr changes.",
                stacklevel=5,
            )

    def _begin_stage(self, param: Tensor, state: dict[str, Tensor]) -> None:
        """Take the iterate for the anchor and forget the sums."""
        for name, value in state.items():
            if name != REMAINDER:
                value.zero_()
        settle_(param, state)  # so that the anchor has no subnormal numbers either
        anchor = state["anchor"]
        anchor.copy_(iterate(param, state, anchor.dtype))

    def _subproblem(self, state: dict[str, Tensor], group: dict[str, Any]) -> Subproblem:
        return Subproblem(
            linear=state["grad_sum"],
            center=state["anchor"],
            metric=self.metric(state),
            threshold=state["penalty_sum"].item(),
            penalty=group["penalty"],
        )

    def last_subproblem(self, unit: Unit) -> Subproblem:
        """The last step's subproblem of a unit, from its state and the group's present penalty.

        Its tensors, where the unit has several parameters, are bundles of theirs.
        """
        return self._subproblem(
            joint_state([self.state[param] for param in unit.params]), unit.group
        )

    def has_moved(self, param: Tensor) -> bool:
        """Whether a parameter has taken a step, so that there is a subproblem to read."""
        return bool(self.state.get(param)) and bool(self.state[param]["step"] > 0)

    @torch.no_grad()
    def structured_points(self, unit: Unit) -> list[Tensor]:
        """The solution of the last subproblem, from its state and the group's penalty.

        Solvers that iterate start from the present iterate, the step itself from the one before:
        the two agree to the solver's precision.
        """
        params, group = unit.params, unit.group
        if self._structured_depth or not self.has_moved(params[0]):
            return [param.detach().clone() for param in params]
        points: list[Tensor] = []
        for some, acting in acting_groups(params, group, self.state):
            problem = self._subproblem(joint_state([self.state[param] for param in some]), acting)
            start = as_tensor(some).to(problem.linear.dtype)
            point = solve(problem, start, group.get("solver")).point
            points += tensors_of(point.to(params[0].dtype))
        if holds_support(group):
            hold(points, [self.state[param]["live"] for param in params])
        return points

    @torch.no_grad()
    def gradient_estimate(self, param: Tensor) -> Tensor | None:
        """V_t / alpha_t, whose variance vanishes. Source: arXiv:2112.02612, Lemma 1."""
        if not self.has_moved(param):
            return None
        state = self.state[param]
        return state["grad_sum"] / state["penalty_sum"].item()

    def _forget(self, state: dict[str, Tensor]) -> None:
        # No step since: the iterate is the structured point.
        for name in self.counters:
            state[name].fill_(1 if name == "restart" else 0)

    def restart(self) -> None:
        """Begin a stage at the next step: anchor <- iterate, sums <- 0, counter <- 0.

        Until that step the structured point of the stage that ended can still be read.
        """
        for state in self.state.values():
            state["restart"].fill_(1)
