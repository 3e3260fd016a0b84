"""How long does the prox of the nuclear norm take, beside a full singular value decomposition?

    dualprox bench nuclear

A weight moves a little from one step to the next, and the step before gives a warm start. The
routes: an SVD and an eigendecomposition of the Gram matrix, both written out here, and what
`Exact` does for `NuclearNorm`, cold and warm. All see the same sequence of matrices, in turns.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import dualprox as dp

from ...timing import Case, clock_of, interleave
from .settings import Settings

QUESTION = "How long does the prox of the nuclear norm take?"
RANK = 32  # singular values above the threshold
SHAPES: dict[str, tuple[int, int]] = {
    "512x784": (512, 784),
    "768x3072": (768, 3072),
    "512x4608": (512, 4608),
}
MODELS = tuple(SHAPES)
BASELINE = "torch.linalg.svd"
WARM = "Exact, warm"
BOUND = 0.1
_MATRICES = 8
# Relative size of the change from one matrix to the next.
_PACE = 1e-3


def svd_prox(matrix: Tensor, threshold: float) -> Tensor:
    """Soft-threshold the singular values of a full SVD."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return (u * (s - threshold).clamp_min(0)) @ vh


def gram_prox(matrix: Tensor, threshold: float) -> Tensor:
    """The same from the eigenvectors of the smaller Gram matrix, which squares the rounding."""
    wide = matrix.shape[0] <= matrix.shape[1]
    tall = matrix if wide else matrix.mT
    squares, u = torch.linalg.eigh(tall @ tall.mT)
    s = squares.clamp_min(0).sqrt()
    scale = torch.where(s > threshold, 1 - threshold / s, 0.0)
    kept = int((scale > 0).sum())  # eigh sorts upwards
    u, scale = u[:, u.shape[1] - kept :], scale[u.shape[1] - kept :]
    found = (u * scale) @ (u.mT @ tall)
    return found if wide else found.mT


def matrices(
    shape: tuple[int, int], rank: int, device: torch.device
) -> tuple[list[Tensor], list[float]]:
    """A slowly moving matrix whose threshold is 1, and its singular values at the beginning.

    `rank` singular values lie between 1.2 and 4, the others below 0.8.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    u, s, vh = torch.linalg.svd(normal(*shape), full_matrices=False)
    s = 0.8 * s / s[0]
    s[:rank] = torch.linspace(4.0, 1.2, rank, dtype=torch.float64)
    matrix, drift = (u * s) @ vh, normal(*shape)
    found = []
    for _ in range(_MATRICES):
        found.append(matrix.float().to(device))
        move = drift + normal(*shape)
        matrix = matrix + move * (_PACE * matrix.norm() / move.norm())
    return found, s.tolist()


@dataclass
class Route:
    """One way to the prox of a sequence of matrices, there and back again.

    Args:
        solve: from the matrix and the result before.
        sequence: the matrices.
    """

    solve: Callable[[Tensor, Tensor], Tensor]
    sequence: list[Tensor]

    def __post_init__(self) -> None:
        self.place = 0
        self.point = self.last = torch.zeros_like(self.sequence[0])
        self.matrix = self.sequence[0]

    def prepare(self) -> None:
        """Move to the next matrix; the result so far is the start."""
        turn = 2 * len(self.sequence) - 2
        place = self.place % turn if turn else 0
        self.matrix = self.sequence[min(place, turn - place)]
        self.place += 1
        self.last = self.point

    def run(self) -> None:
        """Solve."""
        self.point = self.solve(self.matrix, self.last)


def by_exact(matrix: Tensor, start: Tensor) -> Tensor:
    """The prox as an optimizer step asks for it."""
    problem = dp.Subproblem(torch.zeros_like(matrix), matrix, 1.0, 1.0, dp.NuclearNorm(1.0))
    return dp.Exact().solve(problem, start).point


ROUTES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    BASELINE: lambda matrix, start: svd_prox(matrix, 1.0),
    "Gram + torch.linalg.eigh": lambda matrix, start: gram_prox(matrix, 1.0),
    "Exact, cold": lambda matrix, start: by_exact(matrix, torch.zeros_like(start)),
    WARM: by_exact,
}


def run(settings: Settings) -> dict[str, Any]:
    """The result without its environment; see `results`."""
    rows: list[dict[str, Any]] = []
    for name in settings.models:
        with settings.progress(f"nuclear {name}") as tell:
            rows += list(_rows(name, settings, tell))
    figures = []
    for row in rows:
        if row["contender"] == WARM and row["workload"] == MODELS[0]:
            shared = {"workload": row["workload"], "ratio_of": WARM, "to": BASELINE}
            met = row["ratio"] <= BOUND
            figures.append(
                {**shared, "bound": BOUND, "value": row["ratio"], "met": met, "missing": None}
            )
    return {"rows": rows, "figures": figures}


def _rows(name: str, settings: Settings, tell: Callable[[str], object]) -> Iterator[dict[str, Any]]:
    shape, rank = SHAPES[name], RANK
    if settings.quick:
        shape, rank = (shape[0] // 32, shape[1] // 32), 3
    sequence, _ = matrices(shape, rank, settings.device)
    routes = {label: Route(solve, sequence) for label, solve in ROUTES.items()}
    cases = {label: Case(route.run, route.prepare) for label, route in routes.items()}
    timings = interleave(cases, clock_of(settings.device), settings.budget, tell)
    for label, route in routes.items():
        exact = svd_prox(route.matrix.double(), 1.0)
        penalty = dp.NuclearNorm(1.0)
        best, reached = (
            0.5 * (point - route.matrix.double()).square().sum() + penalty.value(point)
            for point in (exact, route.point.double())
        )
        yield {
            "workload": name,
            "shape": list(shape),
            "above_threshold": int(torch.linalg.matrix_rank(exact)),
            "contender": label,
            **asdict(timings[label]),
            "ratio": timings[label].median / timings[BASELINE].median,
            "rank": penalty.structure(route.point).count(),
            "relative_error": float((route.point.double() - exact).norm() / exact.norm()),
            "objective_gap": float((reached - best) / best),
        }
