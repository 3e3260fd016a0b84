"""Steering the strength until the structured point has the size that is asked for."""

import fnmatch
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from ..checks import is_count, require
from ..kinds import check_kinds
from ..optim import DualAveraging
from ..sharding import is_sharded
from ..shrinking.factorize import factorize
from ..shrinking.inputs import ExampleInput
from ..shrinking.slim import shrink
from .aims import LatencyAim, least_strength
from .hold import held, holding_penalty
from .levels import MARGIN, Level, require_own_groups, require_sizes
from .room import filling
from .sizes import Sizes
from .target import TargetSize

_LANDINGS = 5  # bisections, each with a network cut, until one has the nonzeros asked for


@dataclass(frozen=True)
class SizeRecord:
    """What the control did at one moment.

    Args:
        step: optimizer steps taken.
        goal: the share of the dense size aimed at then.
        size: the share that the structured point had with the strength chosen.
        strength: that, before the weights of the param groups.
    """

    step: int
    goal: float
    size: float
    strength: float


class SizeControl:
    """Finds the strength at which the structured point has the size asked for, while training.

    Call `step()` after every optimizer step. Until the first look nothing is charged. Every `every`
    steps, up to the step `steer_until`, the strength becomes the least at which the structured
    point of the present sums is no larger than the goal; at `hold_from` it does so for the last
    time, and then it stays, so that what it leads to can be identified. The goal falls from the
    dense size to the target in the first `ramp_steps`:

        goal(t) = target + (1 - target) (1 - t / ramp_steps)^3.

    A nonconvex penalty that is flat where groups live holds nothing at constant strength: the mean
    gradient of a live group vanishes, and with it what outweighs the price of living. So at
    `hold_from` each is replaced by its linear approximation, the group LASSO with weight 0 for live
    groups and 1 for dead ones, twice as strong as these need, where its weight has a param group of
    its own. Under that, convex and constant, the structure found stays unless a dead group's mean
    gradient grows beyond its strength.

    Of each weight, or set of coupled ones, a group stays alive: a network through which nothing
    passes learns nothing more. With an `at_least` of 0, whole layers may die.

    No gain has to be tuned: the sums are known, and so is what lives at every strength. Of group
    LASSO and group L0 each group's critical strength is a formula,

        ||a_g|| / (tau weight_g)    and    <a_g, D^-1 a_g> / (2 tau weight_g),

    with a, D and tau of the subproblem; for other penalties the subproblem is solved again.

    With `balance`, strengths are in units of the layer's own: at every look each param group is
    given a factor in proportion to the mean critical strength of its live groups (where that is no
    formula, to the strength that half of its groups survive). Gradients and weights of layers
    differ by orders of magnitude; one strength for all empties some layers and spares others.

    Args:
        opt: RMDA or RAMDA with group penalties or nuclear norms, best made by
            ``param_groups(..., coupled=True, example_input=x)``.
        model: that it trains; of a sharded one, an ordinary model of the same architecture, whose
            weights do not matter.
        target: what is asked for.
        example_input: as in `shrink`.
        ramp_steps: >= 1.
        hold_from: the optimizer step of the last restart, after which the strength is constant.
        steer_until: the optimizer step after which it is left alone until `hold_from`, best that of
            a restart: fresh sums say little; None for `hold_from`.
        every: optimizer steps between two looks, best a small part of `ramp_steps`: at constant
            strength the structured point goes on losing groups.
        balance: see above.
        select_inputs: as in `shrink`.
        round_to: as in `shrink`.
        narrow_norms: as in `shrink`.

    Raises:
        TypeError: the optimizer is no dual averaging, or a penalty has no size.
        ValueError: a setting is out of its range, or a pattern of the target matches nothing.

    Source: the ramp, Zhu & Gupta, To prune, or not to prune (2017), eq. (1).

    Example:
        >>> import torch, dualprox as dp
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> x, y = torch.randn(64, 4), torch.randint(2, (64,))
        >>> groups = dp.param_groups(model, dp.GroupLasso(1.0), coupled=True, example_input=x)
        >>> opt = dp.RMDA(groups, lr=0.1)
        >>> control = dp.SizeControl(
        ...     opt, model, dp.TargetSize(params=0.5), x, ramp_steps=20, hold_from=40, every=5)
        >>> for _ in range(40):
        ...     torch.nn.functional.cross_entropy(model(x), y).backward()
        ...     opt.step(); opt.zero_grad(); control.step()
        >>> control.size() <= 0.5
        True
    """

    def __init__(
        self,
        opt: DualAveraging,
        model: nn.Module,
        target: TargetSize,
        example_input: ExampleInput,
        *,
        ramp_steps: int,
        hold_from: int,
        steer_until: int | None = None,
        every: int = 50,
        balance: bool = True,
        select_inputs: bool = False,
        round_to: int = 1,
        narrow_norms: bool = False,
    ) -> None:
        if not isinstance(opt, DualAveraging):
            raise TypeError(
                "opt must be RMDA or RAMDA, whose structured point can be found again at "
                f"another strength, got {type(opt).__name__}"
            )
        for name, value in (("ramp_steps", ramp_steps), ("hold_from", hold_from), ("every", every)):
            require(is_count(value), name, "an int >= 1", value)
        check_kinds(SizeControl.__init__, locals())
        self.steer_until = hold_from if steer_until is None else steer_until
        ok = is_count(self.steer_until) and self.steer_until <= hold_from
        require(ok, "steer_until", f"an int from 1 to hold_from = {hold_from}", steer_until)
        self.opt, self.model, self.target, self.example = opt, model, target, example_input
        self.ramp_steps, self.hold_from, self.every = ramp_steps, hold_from, every
        self.balance, self.select_inputs, self.round_to = balance, select_inputs, round_to
        self.narrow_norms = narrow_norms
        called = {id(param): name for name, param in model.named_parameters()}
        # Of sharded ones the model is the ordinary twin: they have its names.
        named = opt.named_params()
        called.update({id(param): name for name, param, _ in named if is_sharded(param)})
        self.levels: list[Level] = []
        self.names: list[list[str]] = []
        for number, group in enumerate(opt.param_groups):
            penalty = group["penalty"]
            if penalty is None or penalty.own_strength() is None:
                continue
            for unit in opt.units():
                # What is frozen stays, whatever the strength.
                if unit.group is group and any(param.requires_grad for param in unit.params):
                    foreign = next((p for p in unit.params if id(p) not in called), None)
                    if foreign is not None:
                        raise ValueError(
                            f"opt has a parameter that is none of the model's, {unit.name} of "
                            f"shape {tuple(foreign.shape)}"
                        )
                    self.levels.append(Level(opt, unit, number))
                    self.names.append([called[id(param)] for param in unit.params])
        if not self.levels:
            raise ValueError("opt must train a weight whose penalty has a strength, got none")
        require_sizes(self.levels, self.names, target.measure)
        target.require_used([name for names in self.names for name in names])
        self.bounds = [target.bounds_of(names) for names in self.names]
        require_own_groups(self.levels, self.names, self.bounds)
        shared = Counter(level.number for level in self.levels)
        self.keeps_one = [
            shared[level.number] == 1 and not any(fnmatch.filter(names, p) for p in target.at_least)
            for level, names in zip(self.levels, self.names, strict=True)
        ]
        self.sizes = Sizes(
            model,
            example_input,
            target,
            self.levels,
            self.names,
            select_inputs,
            round_to,
            narrow_norms,
        )
        own = [float(level.base.own_strength() or 0) for level in self.levels]
        if min(own) <= 0:
            raise ValueError("strengths must be > 0: their ratios are kept, got 0")
        self.ratios = [strength / max(own) for strength in own]
        self.weights = [1.0] * len(self.levels)
        self.strength = max(own)
        # What the sums of the first steps would make of the strength given says nothing: most often
        # all would be dead until the first look, and the iterate a fraction of the weights.
        self._set([0.0] * len(self.levels))
        self.steps = 0
        # Of each level, the weights with which it is held.
        self._held: list[tuple[float, ...] | None] = [None] * len(self.levels)
        self.history: list[SizeRecord] = []
        self.latency = LatencyAim(target, example_input)
        in_time = target.measure == "latency_ms"
        self.goal = self.latency.goal(1.0, model) if in_time else self.sizes.wanted()
        self.sizes.require_reachable(self.goal)

    def allows_target(self) -> bool:
        """Whether the bounds of the target leave room for it."""
        return self.sizes.least([low for low, _ in self.bounds]) <= self.goal

    def step(self) -> None:
        """Count an optimizer step; look and steer when it is time."""
        self.steps += 1
        is_time = self.steps % self.every == 0 or self.steps == self.steer_until
        if is_time and self.steps <= self.steer_until:
            if self.target.measure == "latency_ms" and self.steps >= self.ramp_steps // 2:
                self._aim_at_latency()
            left = max(0.0, 1 - self.steps / self.ramp_steps) ** 3
            self._steer(self.goal + (1 - self.goal) * left)
        if self.steps == self.hold_from:
            if self.steer_until < self.hold_from:
                self.land()
            self._hold()

    def land(self) -> float:
        """Set the strength at which the structured point has the target size now; return its size.

        For a refit, right before the structure is frozen: the sums stay what they were. A structure
        that is held stays as it is, unless it has become larger than the target. Of nonzeros those
        count that the network has once it is cut: with channels go entries that lead nowhere.
        """
        if self.target.measure == "nonzeros":
            return self._land_nonzeros()
        now = self.size()
        return now if self.is_held and now <= self.goal else self._steer(self.goal, weigh=False)

    def _land_nonzeros(self) -> float:
        def left(goal: float) -> float:
            self._steer(goal, weigh=False)
            return self.sizes.nonzeros(self.cut()) / self.sizes.footprint.dense.parameters

        low = self.goal
        if left(low) >= low * (1 - self.target.tolerance / 3):
            return self.size()
        high = low
        while high < 1.0 and left(high) <= self.goal:
            low, high = high, min(1.0, 1.5 * high)
        for _ in range(_LANDINGS):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if left(middle) <= self.goal else (low, middle)
        left(low)
        return self.size()

    def size(self) -> float:
        """The share of the dense size that the structured point has, with the present strength."""
        if not self.history:
            return 1.0
        for level in self.levels:
            level.refresh()
        return self.sizes.at(self._strengths(self.strength))

    def cut(self) -> nn.Module:
        """The smaller network at the structured point: shrunk, weights of low rank factorized."""
        slim = self.model
        with self.opt.structured():
            if self.sizes.has_groups:
                slim = shrink(
                    slim,
                    self.example,
                    round_to=self.round_to,
                    latency=False,
                    select_inputs=self.select_inputs,
                    narrow_norms=self.narrow_norms,
                )
            return factorize(slim, self.example, latency=False) if self.sizes.has_ranks else slim

    @property
    def is_held(self) -> bool:
        """Whether a nonconvex penalty has been replaced by one that holds its structure."""
        return any(weights is not None for weights in self._held)

    @torch.no_grad()
    def _hold(self) -> None:
        """See the class."""
        for number, (level, own) in enumerate(
            zip(self.levels, self._strengths(self.strength), strict=True)
        ):
            penalty = holding_penalty(level, own)
            if penalty is not None:
                self._held[number] = penalty.coupling.weights
                level.become(penalty)
        self._rebase()

    def _rebase(self) -> None:
        """Count strengths from what the penalties have now."""
        for number, level in enumerate(self.levels):
            own = float(level.unit.group["penalty"].own_strength())
            self.ratios[number], self.weights[number] = own / self.strength, 1.0

    @torch.no_grad()
    def _steer(self, goal: float, weigh: bool = True) -> float:
        for level in self.levels:
            level.refresh()
        if self.balance and weigh:
            self._weigh()

        def size(strength: float) -> float:
            return self.sizes.at(self._strengths(strength))

        found = least_strength(size, goal, max(self.strength, 1e-30))
        self.strength = found * (1 + MARGIN)
        if self.balance and self.steps >= self.steer_until:
            self._fill(goal)
        strengths = self._strengths(self.strength)
        self._set(strengths)
        reached = self.sizes.at(strengths)
        self.history.append(SizeRecord(self.steps, goal, reached, self.strength))
        return reached

    def _fill(self, goal: float) -> None:
        """Let more live where a coarse group's death has left room."""

        def at(factors: Sequence[float]) -> list[float]:
            return self._strengths(self.strength, factors)

        def alive(factors: Sequence[float]) -> list[int]:
            pairs = zip(self.levels, at(factors), strict=True)
            return [level.live(own).count() for level, own in pairs]

        owners = [level.number for level in self.levels]
        factors = filling(
            lambda factors: self.sizes.at(at(factors)), alive, owners, goal, self.target.tolerance
        )
        self.weights = [weight * f for weight, f in zip(self.weights, factors, strict=True)]

    def _set(self, strengths: Sequence[float]) -> None:
        for level, own in zip(self.levels, strengths, strict=True):
            level.unit.group["penalty"] = level.base.with_strength(own)

    def _strengths(self, strength: float, factors: Sequence[float] | None = None) -> list[float]:
        found = []
        every = factors or [1.0] * len(self.levels)
        for level, ratio, weight, factor, (low, high), keeps in zip(
            self.levels, self.ratios, self.weights, every, self.bounds, self.keeps_one, strict=True
        ):
            own = strength * ratio * weight * factor
            if (low, high) != (0.0, 1.0):
                own = level.within(own, low, high)
            found.append(level.keeping_one(own) if keeps else own)
        return found

    def _weigh(self) -> None:
        """See the class: `balance`."""
        now = self._strengths(self.strength) if self.history else [0.0] * len(self.levels)
        units: dict[int, list[float]] = {}
        for level, own in zip(self.levels, now, strict=True):
            units.setdefault(level.number, []).append(max(level.typical_strength(own), 1e-30))
        # Weights that share a param group share a strength: the geometric mean of theirs.
        means = {n: math.exp(sum(map(math.log, own)) / len(own)) for n, own in units.items()}
        largest = max(means.values())
        self.weights = [max(means[level.number] / largest, 1e-9) for level in self.levels]

    def _aim_at_latency(self) -> None:
        self.goal = self.latency.goal(self.size(), self.cut())

    def state_dict(self) -> dict[str, Any]:
        """Numbers and lists, loadable with ``weights_only=True``."""
        return {
            "steps": self.steps,
            "strength": self.strength,
            "strengths": [level.unit.group["penalty"].own_strength() for level in self.levels],
            "weights": list(self.weights),
            "held": [None if own is None else list(own) for own in self._held],
            "goal": self.goal,
            "latencies": [list(pair) for pair in self.latency.known],
            "history": [asdict(record) for record in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the state was taken; the strengths are set again.

        Load it before the optimizer's state, which is refused where penalties are not those saved.
        """
        if len(state["weights"]) != len(self.levels):
            raise ValueError(
                f"the state is of {len(state['weights'])} penalized weights, here are "
                f"{len(self.levels)}"
            )
        self.steps, self.strength = state["steps"], state["strength"]
        self.weights, self.goal = list(state["weights"]), state["goal"]
        self.latency.known = [(share, known) for share, known in state["latencies"]]
        self.history = [SizeRecord(**record) for record in state["history"]]
        self._held = [None if own is None else tuple(own) for own in state["held"]]
        for level, own, weights in zip(self.levels, state["strengths"], self._held, strict=True):
            if weights is not None:
                level.become(held(level, own, weights))
        self._set(state["strengths"])
        if self.is_held:
            self._rebase()
