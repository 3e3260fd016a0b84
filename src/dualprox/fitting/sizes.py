"""The size of the network that is left when strengths decide what lives."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..penalties import GroupPenalty, Rank, Support
from ..shrinking.factorize import factorizable
from ..shrinking.footprint import Footprint
from ..shrinking.inputs import ExampleInput
from .levels import Level, slices_alive
from .target import COUNTS, ZEROS, OutOfReachError, TargetSize


class Sizes:
    """Shares of the dense size, in the measure of a target.

    Args:
        model: the network.
        example_input: as in `shrink`.
        target: says what is measured.
        levels: the units whose structure decides.
        names: of the weights of each.
        select_inputs: as in `shrink`.
        round_to: as in `shrink`.
        narrow_norms: as in `shrink`.
    """

    def __init__(
        self,
        model: nn.Module,
        example_input: ExampleInput,
        target: TargetSize,
        levels: Sequence[Level],
        names: Sequence[list[str]],
        select_inputs: bool,
        round_to: int,
        narrow_norms: bool,
    ) -> None:
        self.target, self.levels, self.names = target, levels, names
        # Linear layers with groups that nobody else reads.
        selected = [
            own[0]
            for own, level in zip(names, levels, strict=True)
            if select_inputs
            and len(own) == 1
            and isinstance(level.base, GroupPenalty)
            and isinstance(model.get_submodule(own[0].rpartition(".")[0]), nn.Linear)
        ]
        self.footprint = Footprint(model, example_input, selected, round_to, narrow_norms)
        whole = [level.everything for level in levels]
        ranks = [isinstance(structure, Rank) for structure in whole]
        self.has_ranks, self.has_groups = any(ranks), not all(ranks)
        self._entries = sum(s.entries() for s in whole if isinstance(s, Support))
        if target.measure == "nonzeros":
            self._entries = self.footprint.dense.parameters
        self._thin = factorizable(model, example_input) if self.has_ranks else set[str]()

    def wanted(self) -> float:
        """The share of any target but a latency."""
        dense = self.footprint.dense
        return self.target.share_of(dense.macs if self._counts_macs else dense.parameters)

    @property
    def _counts_macs(self) -> bool:
        return self.target.measure == "macs"

    def at(self, strengths: Sequence[float]) -> float:
        """The share that is left with these strengths, one for each level."""
        found = [level.live(own) for level, own in zip(self.levels, strengths, strict=True)]
        return self._share(found)

    def least(self, shares: Sequence[float]) -> float:
        """The share that is left if only these shares of the groups of each level live."""
        found: list[Support | Rank] = []
        for level, share in zip(self.levels, shares, strict=True):
            whole = level.everything
            kept = math.ceil(share * whole.total() - 1e-9)
            if isinstance(whole, Support):
                live = torch.arange(whole.total()).view_as(whole.live) < kept
                found.append(replace(whole, live=live))
            else:
                found.append(replace(whole, rank=kept))
        return self._share(found)

    def require_reachable(self, goal: float) -> None:
        """Raise OutOfReachError for a share below what is left with everything dead."""
        if self.target.measure not in COUNTS:
            return
        least = self.least([0.0] * len(self.levels))
        if least > goal * (1 + self.target.tolerance):
            raise OutOfReachError(
                f"{self.target.measure}={self.target.value!r} cannot be reached: {least:.2%} of "
                "the network are left with all that is penalized dead; print the param groups to "
                "see what stays free"
            )

    def nonzeros(self, slim: nn.Module) -> int:
        """The parameters of a network that was cut, less the zeros in penalized weights."""
        return sum(p.numel() for p in slim.parameters()) - sum(
            int((weight == 0).sum()) for weight in self.penalized(slim).values()
        )

    def penalized(self, slim: nn.Module) -> dict[str, nn.Parameter]:
        """Those of its weights that have penalties, by name."""
        charged = {name for names in self.names for name in names}
        return {name: param for name, param in slim.named_parameters() if name in charged}

    def _share(self, found: Sequence[Support | Rank]) -> float:
        if self.target.measure in ZEROS:
            supports = [structure for structure in found if isinstance(structure, Support)]
            dead = sum(support.dead_entries() for support in supports)
            return 1 - dead / self._entries
        live: dict[str, Any] = {}
        ranks: dict[str, int] = {}
        for level, names, structure in zip(self.levels, self.names, found, strict=True):
            slices, low = slices_alive(level, structure, names)
            live.update(slices)
            ranks.update({name: rank for name, rank in low.items() if name in self._thin})
        left, dense = self.footprint.of(live, ranks), self.footprint.dense
        if self._counts_macs:
            return left.macs / dense.macs
        return left.parameters / dense.parameters
