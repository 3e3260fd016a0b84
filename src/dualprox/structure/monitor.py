"""Watching the structure settle, epoch by epoch."""

from dataclasses import dataclass
from typing import Any

import torch

from ..kinds import check_kinds
from ..optim import ProximalOptimizer
from ..optim.frozen import residual as frozen_residual
from ..penalties import Structure
from ..sharding import whole
from .metrics import penalized_points


@dataclass(frozen=True)
class StructureRecord:
    """What `StructureMonitor.update` saw.

    Args:
        epoch: how many updates there have been, this one included.
        support_size: live groups or entries plus ranks, over all penalized parameters.
        support_total: how many there could be.
        jaccard: similarity with the structure of the update before, in [0, 1]: the mean over
            parameters and coupled groups weighted by their `support_total`; None at the first
            update.
        unchanged_since: the first epoch of the present unbroken run of equal structures.
        stationarity: the estimate of dist(0, dF) at the structured point, over all parameters,
            with the method's own estimate of the gradient in place of the full gradient. For
            RMDA and RAMDA that is V_t / alpha_t, whose error vanishes; for the others it stays
            as noisy as their momentum. Of a frozen structure, the norm of the estimate along it.
            None before the first step.
    """

    epoch: int
    support_size: int
    support_total: int
    jaccard: float | None
    unchanged_since: int
    stationarity: float | None


class StructureMonitor:
    """Support size, stability and stationarity of the structured point, from update to update.

    Call `update()` once per epoch, before the schedule's step (a restart forgets the sums that
    the stationarity is estimated from). Resumable by `state_dict` and `load_state_dict`.

    Args:
        opt: a dualprox optimizer.

    Source: the bound (28) of arXiv:2403.14398 for the stationarity.

    Example:
        >>> import torch, dualprox as dp
        >>> w = torch.nn.Parameter(torch.ones(2, 4))
        >>> opt = dp.RMDA([{"params": [w], "penalty": dp.GroupLasso(0.5)}], lr=1.0)
        >>> monitor = dp.StructureMonitor(opt)
        >>> (w * torch.tensor([1.0, 0.5, 0.0, 0.0])).sum().backward()
        >>> opt.step(); first = monitor.update(); opt.step(); second = monitor.update()
        >>> first.support_size, second.support_size, second.jaccard, second.unchanged_since
        (2, 2, 1.0, 1)
    """

    def __init__(self, opt: ProximalOptimizer) -> None:
        check_kinds(StructureMonitor.__init__, locals())
        self.opt = opt
        self._epoch = 0
        self._unchanged_since = 0
        self._last: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def update(self) -> StructureRecord:
        """Look at the structured point; synchronises once per penalized parameter."""
        self._epoch += 1
        size = total = 0
        overlap = 0.0
        now: dict[str, torch.Tensor] = {}
        found: dict[str, Structure] = {}
        for name, _, _, structure in penalized_points(self.opt):
            now[name], found[name] = structure.to_tensor(), structure
            size += structure.count()
            total += structure.total()
            # A layer that has shrunk since has another structure.
            if name in self._last and self._last[name].shape == now[name].shape:
                before = structure.from_tensor(self._last[name])
                overlap += structure.similarity(before) * structure.total()
        same = now.keys() == self._last.keys() and all(
            torch.equal(now[name], self._last[name]) for name in now
        )
        jaccard = overlap / total if self._last and total else None
        if not same:
            self._unchanged_since = self._epoch
        self._last = now
        return StructureRecord(
            self._epoch, size, total, jaccard, self._unchanged_since, self._stationarity()
        )

    def _stationarity(self) -> float | None:
        squares = []
        for unit in self.opt.units():
            estimates = [self.opt.gradient_estimate(param) for param in unit.params]
            gradients = [gradient for gradient in estimates if gradient is not None]
            if not gradients:
                continue
            if unit.group["penalty"] is None:
                residual = torch.linalg.vector_norm(gradients[0])
            elif unit.group["frozen"]:
                points = self.opt.structured_points(unit)
                residual = frozen_residual(unit, points, gradients, self.opt.state)
            else:
                point = unit.point(self.opt.structured_points(unit)).to(gradients[0].dtype)
                residual = unit.group["penalty"].residual(point, unit.point(gradients))
            squares.append(whole(residual).square().cpu())
        return float(torch.stack(squares).sum().sqrt()) if squares else None

    def state_dict(self) -> dict[str, Any]:
        """Counters and the last structure, as tensors and numbers."""
        return {
            "epoch": self._epoch,
            "unchanged_since": self._unchanged_since,
            "last": dict(self._last),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self._epoch = state_dict["epoch"]
        self._unchanged_since = state_dict["unchanged_since"]
        self._last = dict(state_dict["last"])
