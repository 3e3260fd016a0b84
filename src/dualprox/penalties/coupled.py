"""Group penalties whose groups span several tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from ..coupling import Coupling, coupling_of
from ..joint import Joint
from ..kinds import check_kinds
from ..sharding import is_sharded
from .base import DiagonalPenalty, Penalty, Support
from .sparse import GroupPenalty


@dataclass(frozen=True)
class Coupled(DiagonalPenalty):
    """A group penalty over several tensors: psi is that of `penalty`, its groups `coupling`'s.

    With z_g all entries of group g in whatever tensor, psi(z) = sum_g psi_g(z_g), and lambda_g is
    strength * sqrt(entries of g in all tensors), times the coupling's own weight of g if it has
    weights: with `GroupLasso` that is the adaptive group LASSO. Slices that the coupling leaves
    free add nothing.

    It belongs to a param group whose parameters are the members of the coupling, in their order.
    Its methods take all their entries as one vector, `coupling.joint(tensors).vector()`, or as a
    `Joint`, and return the same.

    Args:
        penalty: any `GroupPenalty`; its own axis, block and conv_groups must be the defaults.
        coupling: which slices of which tensors make up each group.

    Raises:
        TypeError: the penalty has no groups.
        ValueError: the penalty has an axis, block or conv_groups of its own.

    Example:
        >>> import torch, dualprox as dp
        >>> first, second = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2))
        >>> columns = dp.Member((2, 2), dp.Slices(axis=1), (0, 1))
        >>> rows = dp.Member((2, 2), dp.Slices(axis=0), (0, 1))
        >>> penalty = dp.Coupled(dp.GroupLasso(0.5), dp.Coupling((columns, rows)))
        >>> opt = dp.RMDA([{"params": [first, second], "penalty": penalty}], lr=1.0)
        >>> first.grad, second.grad = torch.tensor([[1.0, 0.0]] * 2), torch.zeros(2, 2)
        >>> opt.step(); opt.finalize_(); first.data, second.data
        (tensor([[0.0000, 0.5000],
                [0.0000, 0.5000]]), tensor([[0.2929, 0.2929],
                [0.5000, 0.5000]]))
    """

    penalty: GroupPenalty
    coupling: Coupling

    def __post_init__(self) -> None:
        check_kinds(type(self), vars(self))
        own = self.penalty
        if own.along(GroupPenalty.axis, GroupPenalty.block, GroupPenalty.conv_groups) != own:
            raise ValueError(
                f"penalty must keep the default axis, block and conv_groups, got {own}"
            )

    @property
    def is_convex(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of `penalty`."""
        return self.penalty.is_convex

    def __str__(self) -> str:
        return f"{self.penalty} over {self.coupling}"

    def _joint(self, w: Tensor) -> Tensor:
        return w if isinstance(w, Joint) else cast(Tensor, self.coupling.split(w))

    def value(self, w: Tensor) -> Tensor:
        """psi(w)."""
        return self.penalty.value(self._joint(w))

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """That of `penalty`, on the coupled groups."""
        return _like(w, self.penalty.prox(self._joint(w), step))

    def metric_prox(
        self, a: Tensor, d: float | Tensor, step: float | Tensor, start: Tensor | None = None
    ) -> tuple[Tensor, int]:
        """That of `penalty`, on the coupled groups."""
        metric = d if isinstance(d, int | float) or d.dim() == 0 else self._joint(d)
        guess = None if start is None else self._joint(start)
        point, iterations = self.penalty.metric_prox(self._joint(a), metric, step, guess)
        return _like(a, point), iterations

    def check(self, shape: torch.Size | tuple[int, ...]) -> None:
        """Raise ValueError for all but vectors of all entries."""
        if tuple(shape) != (self.coupling.numel(),):
            raise ValueError(
                f"Coupled: its {len(self.coupling.members)} tensors have {self.coupling.numel()} "
                f"entries, and make a vector of as many, got shape {tuple(shape)}"
            )

    def structure(self, w: Tensor) -> Support:
        """Which groups have a nonzero entry in any tensor."""
        found = self.penalty.structure(self._joint(w))
        return Support(found.live[: self.coupling.count()], self.coupling.size())

    def live_entries(self, w: Tensor) -> Tensor | None:
        """Those of `penalty` in all tensors, and the entries of free slices."""
        joint = self._joint(w)
        is_free = ~self.coupling.is_grouped(w.device)
        live = self.penalty.live_entries(joint)
        return None if live is None else _like(w, live | is_free.expand_as(joint))

    def residual(self, w: Tensor, g: Tensor) -> Tensor:
        """dist(-g, d psi(w)); see `Penalty.residual`."""
        return self.penalty.residual(self._joint(w), self._joint(g))

    def dead_groups(self, a: Tensor, step: float | Tensor) -> Tensor | None:
        """Those of `penalty`: a group is screened out in all tensors or in none."""
        found = self.penalty.dead_groups(self._joint(a), step)
        return None if found is None else _like(a, found)

    def penalized_entries(self, w: Tensor) -> Tensor:
        """All but those of free slices."""
        is_penalized = self.coupling.is_grouped(w.device).expand_as(self._joint(w))
        return _vector(w)[_vector(is_penalized)]

    def own_strength(self) -> float | None:
        """That of `penalty`."""
        return self.penalty.own_strength()

    def with_strength(self, strength: float) -> "Coupled":
        """The same groups, and `penalty` with another strength."""
        return self._with(self.penalty.with_strength(strength))

    def with_concavity(self, concavity: float) -> "Coupled":
        """The same groups, and `penalty` with another concavity."""
        return self._with(self.penalty.with_concavity(concavity))

    def _with(self, penalty: Penalty) -> "Coupled":
        assert isinstance(penalty, GroupPenalty)
        return self if penalty is self.penalty else replace(self, penalty=penalty)

    def along(self, axis: int, block: int, conv_groups: int) -> "Coupled":
        """Refuse: the groups are the coupling's."""
        del axis, block, conv_groups
        raise ValueError("Coupled has the groups of its coupling: give it a param group of its own")


def taken_by(penalty: Penalty | None, tensors: Sequence[Tensor]) -> Tensor:
    """Tensors as the formulas of a penalty take them: the one, or a joint where there are more.

    Where there are groups, a joint of one sharded tensor too: see `ShardedCoupling`.
    """
    if isinstance(penalty, Coupled):
        return cast(Tensor, penalty.coupling.joint(tensors))
    if isinstance(penalty, GroupPenalty) and is_sharded(tensors[0]):
        return cast(Tensor, coupling_of(tuple(tensors[0].shape), penalty.slices).joint(tensors))
    return tensors[0]


def _like(w: Tensor, result: Tensor) -> Tensor:
    """A result as a vector, if w is one."""
    return result if isinstance(w, Joint) else _vector(result)


def _vector(w: Tensor) -> Tensor:
    return w.vector() if isinstance(w, Joint) else w
