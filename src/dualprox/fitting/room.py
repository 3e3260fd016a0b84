"""The room that the death of a coarse group leaves below the size asked for."""

from collections.abc import Callable, Sequence

from .aims import least_strength
from .levels import MARGIN

_BELOW = 1 - 4 * MARGIN


def filling(
    size: Callable[[Sequence[float]], float],
    alive: Callable[[Sequence[float]], Sequence[int]],
    owners: Sequence[int],
    goal: float,
    close: float,
) -> list[float]:
    """Factors <= 1 on the strengths of levels with which the size is closest below the goal.

    Where the next group is a head of attention, or a channel that many layers read, one strength
    for all goes past the goal. That level keeps its strength; those of the others fall together
    until the next group would be too large, and so on.

    Args:
        size: with such factors.
        alive: how many groups of each level live with such factors.
        owners: for each level, the number of the param group whose strength it has.
        goal: not to be exceeded; with all factors 1 it is not.
        close: relative; a size this close to the goal needs no more.
    """
    factors, left = [1.0] * len(owners), set(owners)

    def scaled(factor: float, among: set[int]) -> list[float]:
        pairs = zip(factors, owners, strict=True)
        return [f * factor if owner in among else f for f, owner in pairs]

    def size_with(factor: float) -> float:
        return size(scaled(factor, left))

    while left and size(factors) < goal * (1 - close):
        # At half the margin above its critical strength a group is dead, at twice it is alive.
        before, now = alive(scaled(_BELOW, left)), alive(factors)
        dying = [o for o, more, less in zip(owners, before, now, strict=True) if more > less]
        if not dying:
            break
        coarse = {o for o in dying if size(scaled(_BELOW, {o})) > goal}
        left -= coarse
        if not coarse:  # too much together, at one strength: one after the other
            factors = scaled(_BELOW, {dying[0]})
        elif left:
            factor = least_strength(size_with, goal, 1.0) * (1 + MARGIN)
            factors = scaled(min(1.0, factor), left)
    return factors
