"""What size is asked for, and how close a network has come."""

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from ..checks import is_count, is_real, make_plain, require, shown
from ..kinds import check_kinds

MEASURES = ("params", "macs", "latency_ms", "weighted_group_sparsity", "nonzeros")
# Of these, the ones that are a share or a number, and those to which zeros count as gone.
COUNTS = ("params", "macs", "nonzeros")
ZEROS = ("weighted_group_sparsity", "nonzeros")


class OutOfReachError(ValueError):
    """A size that a network has not even with all of its groups dead."""


@dataclass(frozen=True)
class TargetSize:
    """The size that a network is to have: of the shrunk network, not a count of zeros.

    Args:
        params: its parameters: a share of the dense network's in (0, 1], or their number, an int.
        macs: its multiplications with additions for one example; likewise.
        latency_ms: the median time of one run in milliseconds, on the machine that trains.
        weighted_group_sparsity: entries in dead groups over all penalized ones, in [0, 1).
        nonzeros: its parameters less the zeros in penalized weights, a share or a number: of a
            network that single zeros make neither smaller nor faster.
        batch_size: of the run whose latency is asked for.
        at_least: pattern of parameter names -> share of its groups that has to stay alive; those
            that no pattern matches keep one group.
        at_most: pattern of parameter names -> share of its groups that may stay alive.
        tolerance: relative; a network this close to the target has it.

    Raises:
        ValueError: not exactly one of the first five is given, or a value is out of its range.

    Example:
        >>> TargetSize(params=0.1)
        TargetSize(params=0.1)
        >>> TargetSize(macs=1_000_000, at_least={"*.attention.*": 0.25})
        TargetSize(macs=1000000, at_least={'*.attention.*': 0.25})
    """

    params: float | int | None = None
    macs: float | int | None = None
    latency_ms: float | None = None
    weighted_group_sparsity: float | None = None
    nonzeros: float | int | None = None
    batch_size: int = field(default=1, kw_only=True)
    at_least: Mapping[str, float] = field(default_factory=dict, kw_only=True)
    at_most: Mapping[str, float] = field(default_factory=dict, kw_only=True)
    tolerance: float = field(default=0.03, kw_only=True)

    def __post_init__(self) -> None:
        bounds = {"at_least": self.at_least, "at_most": self.at_most}
        check_kinds(type(self), bounds)
        make_plain(self)
        sizes = {name: getattr(self, name) for name in MEASURES}
        given = [f"{name}={shown(size)}" for name, size in sizes.items() if size is not None]
        if len(given) != 1:
            raise ValueError(
                f"exactly one of {', '.join(MEASURES)} must be given, got {', '.join(given)}"
                if given
                else f"one of {', '.join(MEASURES)} must be given, got none"
            )
        value = self.value
        if self.measure in COUNTS:
            ok = is_count(value) or (isinstance(value, float) and 0 < value <= 1)
            require(ok, self.measure, "a share in (0, 1] or an int >= 1", value)
        elif self.measure == "latency_ms":
            require(is_real(value) and value > 0, "latency_ms", "a number > 0", value)
        else:
            ok = is_real(value) and 0 <= value < 1
            require(ok, "weighted_group_sparsity", "in [0, 1)", value)
        require(is_count(self.batch_size), "batch_size", "an int >= 1", self.batch_size)
        ok = is_real(self.tolerance) and self.tolerance > 0
        require(ok, "tolerance", "a number > 0", self.tolerance)
        for name in ("at_least", "at_most"):
            for pattern, share in getattr(self, name).items():
                ok = is_real(share) and 0 <= share <= 1
                require(ok, f"{name}[{pattern!r}]", "in [0, 1]", share)

    def __repr__(self) -> str:
        changed = {f.name: getattr(self, f.name) for f in fields(self)}
        defaults = {"batch_size": 1, "tolerance": 0.03, "at_least": {}, "at_most": {}}
        shown = [
            f"{name}={value!r}"
            for name, value in changed.items()
            if value is not None and defaults.get(name) != value
        ]
        return f"TargetSize({', '.join(shown)})"

    @property
    def measure(self) -> str:
        """Which of `MEASURES` is given."""
        return next(name for name in MEASURES if getattr(self, name) is not None)

    @property
    def value(self) -> float:
        """What is asked of it."""
        return getattr(self, self.measure)

    def share_of(self, dense: float) -> float:
        """The target as a share of the dense network's size; that of what lives for a sparsity."""
        if self.measure == "weighted_group_sparsity":
            return 1.0 - self.value
        if self.measure in COUNTS and isinstance(self.value, float):
            return self.value
        return min(1.0, self.value / dense)

    def bounds_of(self, names: list[str]) -> tuple[float, float]:
        """The least and the largest live share of groups that these parameters have in common."""
        least = [s for p, s in self.at_least.items() if fnmatch.filter(names, p)]
        most = [s for p, s in self.at_most.items() if fnmatch.filter(names, p)]
        low, high = max(least, default=0.0), min(most, default=1.0)
        if low > high:
            raise ValueError(f"at_least {low} must be <= at_most {high} for {', '.join(names)}")
        return low, high

    def require_used(self, names: list[str]) -> None:
        """Raise ValueError for a pattern that matches none of the parameters with groups."""
        for pattern in (*self.at_least, *self.at_most):
            if not fnmatch.filter(names, pattern):
                raise ValueError(
                    f"{pattern!r} matches no parameter with groups; there are {', '.join(names)}"
                )
