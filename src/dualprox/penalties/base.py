"""The contract every penalty keeps, and the kinds of structure a point can have."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import is_real, make_plain, require
from ..geometry import Slices


class Structure(ABC):
    """The manifold a point lies on: what identification identifies."""

    @abstractmethod
    def count(self) -> int:
        """How large the structure is: live groups, free entries or rank."""

    @abstractmethod
    def total(self) -> int:
        """How large it could be."""

    @abstractmethod
    def similarity(self, other: "Structure") -> float:
        """Jaccard similarity |A & B| / |A | B| in [0, 1]; 1 means the same structure."""

    @abstractmethod
    def to_tensor(self) -> Tensor:
        """The structure as a CPU tensor, from which `from_tensor` makes it again."""

    @abstractmethod
    def from_tensor(self, saved: Tensor) -> "Structure":
        """A structure of this kind and size with the saved values."""


@dataclass(frozen=True, eq=False)
class Support(Structure):
    """Which groups are live.

    Args:
        live: bool, one entry per group, False where every entry of the group is exactly zero.
        group_size: entries in each group, one number or one for each; 1 when each entry is a
            group of its own.
    """

    live: Tensor
    group_size: int | Tensor

    def count(self) -> int:
        """Live groups."""
        return int(self.live.sum())

    def total(self) -> int:
        """All groups."""
        return self.live.numel()

    def entries(self) -> int:
        """Entries in all groups."""
        if isinstance(self.group_size, Tensor):
            return int(self.group_size.expand(self.total()).sum())
        return self.total() * self.group_size

    def dead_entries(self) -> int:
        """Entries in dead groups."""
        if isinstance(self.group_size, Tensor):
            return int(self.group_size[~self.live.cpu()].sum())
        return (self.total() - self.count()) * self.group_size

    def similarity(self, other: Structure) -> float:
        """Shared live groups over groups live in either."""
        assert isinstance(other, Support)
        theirs = other.live.to(self.live.device)
        either = int((self.live | theirs).sum())
        return int((self.live & theirs).sum()) / either if either else 1.0

    def to_tensor(self) -> Tensor:
        """The bool mask of live groups."""
        return self.live.cpu()

    def from_tensor(self, saved: Tensor) -> "Support":
        """The support with the saved mask."""
        return replace(self, live=saved)


@dataclass(frozen=True, eq=False)
class Faces(Structure):
    """On which face of a constraint set each entry lies.

    Args:
        side: int8, one entry per coordinate of the set: -1 at the lower bound, 1 at the upper
            bound, 0 strictly between.
    """

    side: Tensor

    def count(self) -> int:
        """Coordinates strictly inside the set."""
        return int((self.side == 0).sum())

    def total(self) -> int:
        """All coordinates."""
        return self.side.numel()

    def similarity(self, other: Structure) -> float:
        """Share of the bounds active in either point that are the same bound in both."""
        assert isinstance(other, Faces)
        theirs = other.side.to(self.side.device)
        either = int(((self.side != 0) | (theirs != 0)).sum())
        return int(((self.side == theirs) & (self.side != 0)).sum()) / either if either else 1.0

    def to_tensor(self) -> Tensor:
        """The int8 faces."""
        return self.side.cpu()

    def from_tensor(self, saved: Tensor) -> "Faces":
        """The faces with the saved sides."""
        return replace(self, side=saved)


@dataclass(frozen=True, eq=False)
class Rank(Structure):
    """How many singular values are nonzero.

    Args:
        rank: nonzero singular values.
        full: the largest possible rank, the smaller side of the flattened matrix.
    """

    rank: int
    full: int

    def count(self) -> int:
        """Nonzero singular values."""
        return self.rank

    def total(self) -> int:
        """The largest possible rank."""
        return self.full

    def similarity(self, other: Structure) -> float:
        """The smaller rank over the larger: the fixed-rank manifolds are nested in rank alone."""
        assert isinstance(other, Rank)
        larger = max(self.rank, other.rank)
        return min(self.rank, other.rank) / larger if larger else 1.0

    def to_tensor(self) -> Tensor:
        """The rank as a 0-dim tensor."""
        return torch.tensor(self.rank)

    def from_tensor(self, saved: Tensor) -> "Rank":
        """The saved rank out of the same full rank."""
        return replace(self, rank=int(saved))


@dataclass(frozen=True)
class SparseGroupForm:
    """psi(w) = entry_strength * ||w||_1 + group_strength * sum_g ||w_g||_2, for one tensor.

    Args:
        entry_strength: >= 0.
        group_strength: >= 0.
        slices: the groups; None if `group_strength` is 0.
        counts: whether each live group counts 1 instead of its norm, or, with an
            `entry_strength` > 0, each live entry; the other strength is 0 then.
    """

    entry_strength: float
    group_strength: float
    slices: Slices | None
    counts: bool = False


@dataclass(frozen=True)
class Penalty(ABC):
    """A regularizer psi, with its strength inside; a constraint is its indicator function.

    Write one by subclassing with ``@dataclass(frozen=True)`` and giving `value` and `prox`; the
    other methods have defaults that hold for any penalty. Its fields must be plain numbers,
    strings or bools: they are what a checkpoint stores of it. `is_constraint` says that it is the
    indicator function of a set, which a refit must not drop.

    All methods take tensors of any shape and memory layout, return new tensors, let NaN through,
    and never synchronise unless their docstring says so.
    """

    is_convex: ClassVar[bool] = True
    is_constraint: ClassVar[bool] = False

    def __post_init__(self) -> None:
        make_plain(self)  # a checkpoint has its text

    @abstractmethod
    def value(self, w: Tensor) -> Tensor:
        """psi(w), a 0-dim tensor; infinite outside a constraint set."""

    @abstractmethod
    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """The minimizer z of 1/2 ||z - w||^2 + step * psi(z), zeros exact.

        For a nonconvex penalty, a global minimizer.

        Args:
            w: any shape.
            step: scalar >= 0; 0 gives w itself (its projection, for a constraint).
        """

    def prox_with_value(
        self, w: Tensor, step: float | Tensor, start: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """`prox`, from a guess of it, and psi of it where that comes for nothing, else None.

        Args:
            w: any shape.
            step: scalar >= 0.
            start: a guess of the result, of w's shape; only speed may depend on it.
        """
        del start
        return self.prox(w, step), None

    def check(self, shape: torch.Size | tuple[int, ...]) -> None:
        """Raise ValueError if the penalty does not fit a parameter of this shape."""
        del shape

    def structure(self, w: Tensor) -> Structure:
        """The manifold w lies on; by default the support of its entries."""
        return Support(live=(w != 0).flatten(), group_size=1)

    def live_entries(self, w: Tensor) -> Tensor | None:
        """The entries that may move on the manifold that w lies on; by default the nonzero ones.

        Returns:
            bool of w's shape, or None where the manifold is no coordinate subspace.
        """
        return w != 0

    def residual(self, w: Tensor, g: Tensor) -> Tensor:
        """How far w is from stationarity for gradient g, a 0-dim tensor; 0 iff -g in d psi(w).

        The penalties of this library return dist(-g, d psi(w)), the distance to the (regular)
        subdifferential. The default, for penalties that know only their prox, is the length of
        a unit prox-gradient step, ||w - prox(w - g, 1)||, which is zero at the same points when
        psi is convex.
        """
        return torch.linalg.vector_norm(w - self.prox(w - g, 1.0))

    def dead_groups(self, a: Tensor, step: float | Tensor) -> Tensor | None:
        """Entries known beforehand to be zero at the minimizer of 1/2<z,Dz> - <a,z> + step*psi(z).

        Returns:
            bool of a's shape, or None if the penalty knows no such test. It must hold for every
            positive diagonal D.
        """
        del a, step
        return None

    def penalized_entries(self, w: Tensor) -> Tensor:
        """The entries of w that the penalty is about, as one vector; by default all."""
        return w.flatten()

    def sparse_group_form(self, w: Tensor) -> SparseGroupForm | None:
        """Psi for a tensor like `w`, if it is of this form: then the fused kernels know it."""
        del w
        return None

    def along(self, axis: int, block: int, conv_groups: int) -> "Penalty":
        """The same penalty with groups along another axis; itself when it has no groups."""
        del axis, block, conv_groups
        return self

    def own_strength(self) -> float | None:
        """The field `strength`; None for a penalty without one, such as a constraint."""
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        return known.get("strength")

    def with_strength(self, strength: float) -> "Penalty":
        """The same penalty with another value in the field `strength`; itself if it has none."""
        if self.own_strength() is None:
            return self
        changes: dict[str, Any] = {"strength": strength}
        return replace(self, **changes)

    def with_concavity(self, concavity: float) -> "Penalty":
        """The same penalty between its convex limit, at 0, and itself, at 1.

        Penalties without such a limit, among them the convex ones, stay as they are.
        """
        del concavity
        return self


@dataclass(frozen=True)
class DiagonalPenalty(Penalty):
    """A penalty whose subproblem under a diagonal metric is solved exactly."""

    @abstractmethod
    def metric_prox(
        self, a: Tensor, d: float | Tensor, step: float | Tensor, start: Tensor | None = None
    ) -> tuple[Tensor, int]:
        """A global minimizer z of 1/2 <z, D z> - <a, z> + step * psi(z), D = diag(d).

        Args:
            a: any shape.
            d: > 0, scalar or of a's shape.
            step: scalar >= 0.
            start: a guess of z, of a's shape, for penalties that iterate.

        Returns:
            z of a's shape, zeros exact, and the iterations used (0 for a closed form).

        Source: arXiv:2403.14398, eqs. (4) and (6).
        """


@dataclass(frozen=True)
class SeparablePenalty(DiagonalPenalty):
    """psi(w) = sum_i phi(w_i): one closed form for the prox with and without a metric."""

    @abstractmethod
    def entry_prox(self, a: Tensor, d: float | Tensor, step: float | Tensor) -> Tensor:
        """Per entry, a global minimizer of 1/2 d z^2 - a z + step * phi(z)."""

    def metric_prox(
        self, a: Tensor, d: float | Tensor, step: float | Tensor, start: Tensor | None = None
    ) -> tuple[Tensor, int]:
        """The closed form, entry by entry."""
        del start
        return self.entry_prox(a, d, step), 0

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """The closed form with d = 1."""
        return self.entry_prox(w, 1.0, step)


def require_strength(value: Any) -> None:
    """The rule that every lambda obeys."""
    require(is_real(value) and value >= 0, "strength", "a finite number >= 0", value)


def soft_threshold(a: Tensor, threshold: float | Tensor) -> Tensor:
    """sign(a) * max(|a| - threshold, 0), entry by entry, zeros exact, NaN kept."""
    if isinstance(threshold, Tensor):
        return a - a.clamp(-threshold, threshold)
    return a - a.clamp(-threshold, threshold)
