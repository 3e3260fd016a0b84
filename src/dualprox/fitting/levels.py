"""What lives at the structured point at a strength other than the one it was solved with."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..joint import Joint, Partition
from ..optim import DualAveraging
from ..optim.bundle import as_tensor, tensors_of
from ..optim.solve import solve
from ..optim.unit import Unit
from ..penalties import (
    L0,
    L1,
    Coupled,
    GroupL0,
    GroupLasso,
    GroupPenalty,
    NuclearNorm,
    Penalty,
    Rank,
    SeparablePenalty,
    Support,
)
from ..penalties.coupled import taken_by
from ..penalties.low_rank import SpectralPenalty, rounding_level
from ..sharding import whole
from ..subproblem import Subproblem

# Relative: below it, rounding in float32 decides whether a group at its critical strength lives.
MARGIN = 4e-6


class Level:
    """One penalized unit of an optimizer whose strength is to be found.

    Args:
        opt: the optimizer.
        unit: what is solved as one.
        number: of its param group.
    """

    def __init__(self, opt: DualAveraging, unit: Unit, number: int) -> None:
        self.opt, self.number, self._unit = opt, number, unit
        self.base: Penalty = unit.group["penalty"]
        self.problem: Subproblem | None = None
        self._critical: Tensor | None = None
        self._descending: list[float] | None = None

    @property
    def unit(self) -> Unit:
        """The unit, with the optimizer's present param group: loading a state makes new ones."""
        return replace(self._unit, group=self.opt.param_groups[self.number])

    @property
    def group_count(self) -> int:
        """How many groups there are, or the largest rank."""
        return self.everything.total()

    @cached_property
    def everything(self) -> Support | Rank:
        """The structure in which all lives."""
        point = self.unit.point([torch.zeros_like(param) for param in self.unit.params])
        found = self.base.structure(point)
        if isinstance(found, Rank):
            return replace(found, rank=found.full)
        assert isinstance(found, Support)
        return replace(found, live=torch.ones_like(found.live))

    def refresh(self) -> None:
        """Read the present subproblem, if there has been a step; before `live` and `within`."""
        moved = self.opt.has_moved(self.unit.params[0])
        self.problem = self.opt.last_subproblem(self.unit) if moved else None
        self._critical = _critical_strengths(self.problem, self.base) if self.problem else None
        self._descending = None

    def become(self, penalty: Penalty) -> None:
        """Have another penalty on the same groups from now on."""
        self.base = self.unit.group["penalty"] = penalty
        self.problem = self._critical = None

    def typical_strength(self, strength: float) -> float:
        """The mean critical strength of the groups that live at a strength.

        Where that is no formula, the strength that half of all groups survive.
        """
        if self._critical is not None:
            live = self._critical[self._critical > strength]
            return float((live if len(live) else self._critical).mean())
        half = self.group_count / 2
        below = above = max(strength, 1e-30)
        while self.live(above).count() > half and above < 1e30:
            above *= 4
        while self.live(below).count() <= half and below > 1e-30:
            below /= 4
        for _ in range(20):
            middle = math.sqrt(below * above)
            if self.live(middle).count() > half:
                below = middle
            else:
                above = middle
        return above

    def live(self, strength: float) -> Support | Rank:
        """What lives at a strength; before the first step everything."""
        if self.problem is None:
            return self.everything
        penalty = self.base.with_strength(strength)
        if self._critical is not None and isinstance(self.base, NuclearNorm):
            return Rank(int((self._critical > strength).sum()), self._critical.numel())
        if self._critical is not None:
            assert isinstance(self.everything, Support)
            return replace(self.everything, live=self._critical > strength)
        start = as_tensor([param.detach() for param in self.unit.params])
        problem = replace(self.problem, penalty=penalty)
        point = solve(problem, start.to(problem.linear.dtype), self.unit.group.get("solver")).point
        joint = self.unit.point(tensors_of(point))
        found = penalty.structure(joint)
        assert isinstance(found, Support | Rank)
        return replace(found, rank=_rank(point)) if isinstance(found, Rank) else found

    def within(self, strength: float, low: float, high: float) -> float:
        """The strength nearest to this one, up to `MARGIN`, with a live share in [low, high]."""
        count = self.group_count
        least, most = math.ceil(low * count - 1e-9), math.floor(high * count + 1e-9)
        if self._critical is not None:  # of equal ones all live or none
            if self._descending is None:
                self._descending = self._critical.flatten().sort(descending=True)[0].tolist()
            if least > 0:
                strength = min(strength, self._descending[least - 1] * (1 - MARGIN))
            if most < count:
                strength = max(strength, self._descending[most] * (1 + MARGIN))
            return strength
        alive = self.live(strength).count()
        if alive < least:
            return self._bisected(strength, least, downwards=True)
        return self._bisected(strength, most, downwards=False) if alive > most else strength

    def keeping_one(self, strength: float) -> float:
        """The strength, or the largest below it, up to `MARGIN`, at which a group lives."""
        if self._critical is None or isinstance(self.base, NuclearNorm):
            dies = self.problem is not None and self.live(strength).count() == 0
            return self._bisected(strength, 1, downwards=True) if dies else strength
        return min(strength, float(self._critical.max()) * (1 - MARGIN))

    def _bisected(self, strength: float, wanted: int, downwards: bool) -> float:
        """The largest strength with `wanted` alive, or the least with no more."""
        below = above = max(strength, 1e-30)
        while downwards and self.live(below).count() < wanted:
            below, above = below / 2, below
            if below < 1e-300:
                return 0.0
        while not downwards and self.live(above).count() > wanted:
            below, above = above, 2 * above
        for _ in range(40):
            middle = (below + above) / 2
            if self.live(middle).count() >= wanted + (not downwards):
                below = middle
            else:
                above = middle
        return below * (1 - MARGIN) if downwards else above * (1 + MARGIN)


def require_sizes(levels: Sequence[Level], names: Sequence[list[str]], measure: str) -> None:
    """Raise TypeError for a penalty whose structure says nothing of a measure of size."""
    for level, own in zip(levels, names, strict=True):
        if measure == "nonzeros":
            ok, rule = isinstance(level.base, SeparablePenalty), "penalties on entries, as L0 is"
        elif measure == "weighted_group_sparsity":
            ok, rule = not isinstance(level.base, SpectralPenalty), "penalties with groups"
        else:
            ok = isinstance(level.base, Coupled | GroupPenalty | SpectralPenalty)
            rule = "penalties with groups or of low rank"
        if not ok:
            raise TypeError(f"a target of {measure} needs {rule}, got {level.base} for {own[0]}")


def require_own_groups(
    levels: Sequence[Level], names: Sequence[list[str]], bounds: Sequence[tuple[float, float]]
) -> None:
    """Raise ValueError for bounds on a weight that has its strength with others."""
    numbers = Counter(level.number for level in levels)
    for level, own, bound in zip(levels, names, bounds, strict=True):
        if numbers[level.number] > 1 and bound != (0.0, 1.0):
            raise ValueError(
                f"at_least and at_most need {own[0]} in a param group of its own: weights that "
                "share a param group share a strength; param_groups(coupled=True) makes one each"
            )


def _critical_strengths(problem: Subproblem, penalty: Penalty) -> Tensor | None:
    """The least strength that kills each group or singular value, where that is a formula.

    A group of a minimizer of 1/2 <z, D z> - <a, z> + tau psi(z) is zero under every metric D iff

        ||a_g|| <= tau lambda_g                  for group LASSO,
        <a_g, D^-1 a_g> / 2 <= tau lambda_g      for group L0.

    For L1 and L0 each entry is a group. The i-th singular value with the nuclear norm is zero iff
    sigma_i(a) <= tau lambda, where D is a number.
    """
    if isinstance(penalty, NuclearNorm) and isinstance(problem.metric, int | float):
        values = torch.linalg.svdvals(whole(problem.pull()).flatten(1).double())
        return values / float(problem.threshold)
    if isinstance(penalty, L1 | L0):
        pull = whole(problem.pull())
        if isinstance(penalty, L0):
            metric = problem.metric
            pull = pull * pull / (2 * (whole(metric) if isinstance(metric, Tensor) else metric))
        return pull.abs().flatten() / float(problem.threshold)
    inner = penalty.penalty if isinstance(penalty, Coupled) else penalty
    if type(inner) not in (GroupLasso, GroupL0):
        return None
    assert isinstance(inner, GroupPenalty)

    def view(tensor: Tensor) -> Tensor:
        taken = taken_by(penalty, tensors_of(tensor))
        return taken if isinstance(taken, Joint) else inner.slices.view(taken)

    pull = view(problem.pull())
    partition = inner.partition(pull)
    if type(inner) is GroupLasso:
        sizes = partition.norm(pull)
    else:
        metric = problem.metric
        sizes = (
            partition.sum(
                pull * pull / (metric if isinstance(metric, int | float) else view(metric))
            )
            / 2
        )
    weights = torch.as_tensor(
        inner.group_weight(pull if isinstance(pull, Joint) else problem.pull()), dtype=sizes.dtype
    )
    weights = weights.clamp_min(torch.finfo(sizes.dtype).tiny)
    found = (sizes / float(problem.threshold) / weights).flatten()
    return found[: partition.count()] if isinstance(partition, Partition) else found


def _rank(point: Tensor) -> int:
    """The rank that `factorize` finds."""
    matrix = whole(point).flatten(1).double()
    return int((torch.linalg.svdvals(matrix) > rounding_level(matrix, point.dtype)).sum())


def slices_alive(
    level: Level, found: Support | Rank, names: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """For each weight of a unit its live slices, one by one, or its rank, by name."""
    if isinstance(found, Rank):
        return {}, {names[0]: found.rank}
    live = found.live.cpu().numpy()
    if isinstance(level.base, Coupled):
        alive = {}
        for name, member in zip(names, level.base.coupling.members, strict=True):
            groups = np.asarray(member.groups)
            slices = np.where(groups < 0, True, live[np.maximum(groups, 0)])
            alive[name] = np.repeat(slices, member.slices.block)
        return alive, {}
    if isinstance(level.base, GroupPenalty):
        return {names[0]: np.repeat(live, level.base.block)}, {}
    return {}, {}
