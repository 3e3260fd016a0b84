"""Stages: learning-rate milestones with restarts, and the final ramp."""

import warnings
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from ..checks import is_count, is_real, plain, require
from ..kinds import check_kinds
from .base import ProximalOptimizer
from .frozen import can_freeze
from .strength import set_concavity


class StageSchedule(LRScheduler):
    """Multiply lr by `gamma` at each milestone and restart dual averaging there.

    A torch scheduler: call `step()` once per epoch (or per whatever the milestones count). At a
    milestone lr <- gamma * lr, for RAMDA eps <- gamma * eps, and `optimizer.restart()`. In the
    final stage, from the last milestone on, the weight c = 1 - momentum of the structured point
    grows to c_i = min(c * sqrt(i), 1), i = 1, 2, ... the optimizer steps taken in the stage, so
    that the iterate meets the structured point. Steps that a gradient scaler skips do not count.

    Optimizers without dual averaging get the same learning rates; they have nothing to restart
    and nothing to ramp.

    Args:
        optimizer: a dualprox optimizer.
        milestones: epochs at which stages begin, whole numbers >= 1 in increasing order; empty
            makes the whole run the final stage.
        gamma: > 0, the factor on lr and eps.
        ramp: whether the final stage ramps.
        refit: whether the last milestone begins a refit, `optimizer.freeze_structure_()`: the
            structure is held and its penalty dropped.
        refit_gamma: > 0, the factor on lr and eps at that milestone, None for gamma.
        concavity: of the penalties that have one, a value in [0, 1] for each stage, so one more
            than milestones: see `set_concavity`. None leaves them as they are.

    Raises:
        TypeError: the optimizer is not from dualprox.
        ValueError: milestones, gamma, refit_gamma or concavity break their rule, there is nothing
            to refit (no milestone, or no penalty but constraints), or no penalty has a concavity.

    Warns:
        UserWarning: something else changed lr since the last call.

    It can be made before or after `optimizer.load_state_dict`; its own `load_state_dict` puts the
    ramp where it was.

    Source: arXiv:2403.14398, appendix A.1.

    Example:
        >>> import torch, dualprox as dp
        >>> opt = dp.RMDA([torch.nn.Parameter(torch.ones(2))], lr=1.0)
        >>> stages = dp.StageSchedule(opt, milestones=[2], gamma=0.1)
        >>> rates = []
        >>> for epoch in range(3):
        ...     opt.param_groups[0]["params"][0].grad = torch.ones(2)
        ...     opt.step(); rates.append(opt.param_groups[0]["lr"]); stages.step()
        >>> rates
        [1.0, 1.0, 0.1]
    """

    def __init__(
        self,
        optimizer: ProximalOptimizer,
        milestones: Iterable[int],
        gamma: float = 0.1,
        ramp: bool = True,
        refit: bool = False,
        refit_gamma: float | None = None,
        concavity: Sequence[float] | None = None,
    ) -> None:
        if not isinstance(optimizer, ProximalOptimizer):
            raise TypeError(
                f"StageSchedule needs a dualprox optimizer, got {type(optimizer).__name__}"
            )
        listed = {"milestones": milestones, "concavity": concavity}
        check_kinds(StageSchedule.__init__, listed)
        self.milestones = list(map(plain, milestones))
        counts = all(is_count(milestone) for milestone in self.milestones)
        ok = counts and all(a < b for a, b in pairwise(self.milestones))
        require(ok, "milestones", "increasing ints >= 1", self.milestones)
        require(is_real(gamma) and gamma > 0, "gamma", "a finite number > 0", gamma)
        require(isinstance(ramp, bool), "ramp", "a bool", ramp)
        require(isinstance(refit, bool), "refit", "a bool", refit)
        rule = "False without a milestone to begin at"
        require(bool(self.milestones) or not refit, "refit", rule, refit)
        freezable = any(can_freeze(group["penalty"]) for group in optimizer.param_groups)
        require(freezable or not refit, "refit", "False without a penalty to drop", refit)
        ok = refit_gamma is None or (is_real(refit_gamma) and refit_gamma > 0)
        require(ok, "refit_gamma", "None or a finite number > 0", refit_gamma)
        require(refit or refit_gamma is None, "refit_gamma", "None without refit", refit_gamma)
        self.concavity = None if concavity is None else [float(value) for value in concavity]
        if self.concavity is not None:
            stages = len(self.milestones) + 1
            ok = len(self.concavity) == stages and all(0 <= value <= 1 for value in self.concavity)
            rule = f"a number in [0, 1] for each of the {stages} stages"
            require(ok, "concavity", rule, self.concavity)
        self.gamma = plain(gamma)
        self.ramp = ramp
        self.refit = refit
        self.refit_gamma = plain(refit_gamma)
        super().__init__(optimizer)
        self._set_ramp()
        self._set_concavity()

    def _is_final_stage(self) -> bool:
        return not self.milestones or self.last_epoch >= self.milestones[-1]

    def _set_ramp(self) -> None:
        for group in self.optimizer.param_groups:
            if "ramp" in group:
                group["ramp"] = self.ramp and self._is_final_stage()

    def _set_concavity(self) -> None:
        if self.concavity is not None:
            assert isinstance(self.optimizer, ProximalOptimizer)
            stage = bisect_right(self.milestones, self.last_epoch)
            set_concavity(self.optimizer, self.concavity[stage])

    def _begins_stage(self) -> bool:
        return self.last_epoch in self.milestones and self._step_count > 1

    def _begins_refit(self) -> bool:
        return self.refit and self._begins_stage() and self.last_epoch == self.milestones[-1]

    def _factor(self) -> float:
        """What a stage that begins multiplies lr and eps by."""
        if self._begins_refit() and self.refit_gamma is not None:
            return self.refit_gamma
        return self.gamma

    def get_lr(self) -> list[float | Tensor]:
        """The groups' learning rates, times gamma when a stage begins."""
        factor = self._factor() if self._begins_stage() else 1
        return [group["lr"] * factor for group in self.optimizer.param_groups]

    def step(self, epoch: int | None = None) -> None:
        """End an epoch; at a milestone, begin a stage."""
        last = getattr(self, "_last_lr", None)
        now = [float(group["lr"]) for group in self.optimizer.param_groups]
        if last is not None and [float(lr) for lr in last] != now:
            warnings.warn(
                f"lr is {now}, StageSchedule left it at {[float(lr) for lr in last]}: something "
                "else changes it, without the restarts that dual averaging needs.",
                stacklevel=2,
            )
        super().step(epoch)
        if self._begins_stage():
            for group in self.optimizer.param_groups:
                if "ramp" in group and "eps" in group:  # RAMDA's; ProxAdamW keeps its own
                    group["eps"] *= self._factor()
            assert isinstance(self.optimizer, ProximalOptimizer)
            if self._begins_refit():
                self.optimizer.freeze_structure_()
            else:
                self.optimizer.restart()
            self._set_ramp()
            self._set_concavity()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ValueError: it is the state of a schedule with other milestones, gamma, ramp, refit or
                concavity.
        """
        for name in ("milestones", "gamma", "ramp", "refit", "refit_gamma", "concavity"):
            saved = state_dict.get(name)
            if saved != getattr(self, name):
                raise ValueError(
                    f"{name} was saved as {saved}, this schedule has {getattr(self, name)}"
                )
        super().load_state_dict(state_dict)
        self._set_ramp()
        self._set_concavity()
