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
from .target import OutOfReachError, TargetSize


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
        ranks = [isinstance(level.everything(), Rank) for level in levels]
        self.has_ranks, self.has_groups = any(ranks), not all(ranks)
        self._thin = factorizable(model, example_input) if self.has_ranks else set[str]()

    def wanted(self) -> float:
        """The share of a target of parameters, multiplications or sparsity."""
        dense = self.footprint.dense
        return self.target.share_of(dense.macs if self._counts_macs else dense.parameters)

    @property
    def _counts_macs(self) -> bool:
        return self.target.measure == "macs"

    def at(self, strengths: Sequence[float]) -> float:
        """The share that is left with these strengths, one for each level."""
        found = [level.live(own) for level, own in zip(self.levels, strengths, strict=True)]
        if self.target.measure != "weighted_group_sparsity":
            return self._share(found)
        dead = total = 0
        for structure in found:
            assert isinstance(structure, Support)
            sizes = torch.as_tensor(structure.group_size).expand(structure.total())
            dead += int(sizes[~structure.live.cpu()].sum())
            total += int(sizes.sum())
        return 1 - dead / total

    def least(self, shares: Sequence[float]) -> float:
        """The share that is left if only these shares of the groups of each level live."""
        found: list[Support | Rank] = []
        for level, share in zip(self.levels, shares, strict=True):
            whole = level.everything()
            kept = math.ceil(share * whole.total() - 1e-9)
            if isinstance(whole, Support):
                live = torch.arange(whole.total()).view_as(whole.live) < kept
                found.append(replace(whole, live=live))
            else:
                found.append(replace(whole, rank=kept))
        return self._share(found)

    def require_reachable(self, goal: float) -> None:
        """Raise OutOfReachError for a share below what is left with everything dead."""
        if self.target.measure not in ("params", "macs"):
            return
        least = self.least([0.0] * len(self.levels))
        if least > goal * (1 + self.target.tolerance):
            raise OutOfReachError(
                f"{self.target.measure}={self.target.value!r} cannot be reached: {least:.2%} of "
                "the network are left with all groups dead; print the param groups to see what "
                "stays free"
            )

    def _share(self, found: Sequence[Support | Rank]) -> float:
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
