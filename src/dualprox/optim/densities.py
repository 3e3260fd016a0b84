"""How many entries of each weight live, when of all of them a share does."""

import math
from collections.abc import Sequence


def erk_densities(shapes: Sequence[Sequence[int]], density: float) -> list[float]:
    """Live share of each weight, in proportion to the sum of its sizes over their product.

    That is the Erdős-Rényi-Kernel distribution. Weights whose share would exceed 1 are dense, and
    the factor is solved for again, so that live entries are `density` of all.

    Args:
        shapes: of the weights.
        density: in (0, 1], of all weights together.

    Source: Evci et al., arXiv:1911.11134, section 3, (1).

    Example:
        >>> [round(share, 3) for share in erk_densities([(8, 8), (2, 8), (1, 4)], 0.5)]
        [0.365, 0.913, 1.0]
    """
    sizes = [math.prod(shape) for shape in shapes]
    free = list(range(len(shapes)))
    while free:
        full = sum(sizes) - sum(sizes[i] for i in free)
        factor = (density * sum(sizes) - full) / sum(sum(shapes[i]) for i in free)
        below = [i for i in free if factor * sum(shapes[i]) <= sizes[i]]
        if len(below) == len(free):
            return [
                factor * sum(shape) / size if i in free else 1.0
                for i, (shape, size) in enumerate(zip(shapes, sizes, strict=True))
            ]
        free = below
    return [1.0] * len(shapes)


def live_counts(sizes: Sequence[int], densities: Sequence[float]) -> list[int]:
    """Whole numbers of live entries whose sum is that of the exact ones, rounded.

    Example:
        >>> live_counts([10, 10, 10], [0.25, 0.25, 0.27])
        [3, 2, 3]
    """
    exact = [size * density for size, density in zip(sizes, densities, strict=True)]
    counts = [math.floor(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: round(sum(exact)) - sum(counts)]:
        counts[i] += 1
    return counts
