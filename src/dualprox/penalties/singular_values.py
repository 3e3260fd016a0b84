"""The singular values above a threshold, soft-thresholded, with a proof that none was missed.

A full singular value decomposition computes hundreds of vectors that the threshold then discards.
Here only the leading ones are computed, from a guess of their span, and one Cholesky
factorization proves that the rest of the matrix stays below the threshold. Where that proof fails
the guess is extended; in the end there is always the full decomposition. The bounds are derived
in docs/math.md, "Singular values above a threshold".
"""

import contextlib
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

RTOL = 1e-5  # of the result, in the Frobenius norm
SMALLEST = 64  # below this side the full decomposition is as fast
SHARE = 3  # the partial way is for ranks up to 1/3 of the smaller side
# The rest is proved to lie this far below the threshold, so that residuals cannot lift it above.
MARGIN = 2.0**-10
WIDE_MARGIN = 0.05  # of threshold^2: the most that rounding may cost the proof before float64
ROUNDS = 4  # proofs tried
REFINEMENTS = 4  # corrections of the vectors after a proof
INNER = 3  # conjugate gradient steps of a correction
FAR = 3e-3  # relative error from which a correction includes its quadratic term


def shrink_singular_values(
    matrix: Tensor, threshold: float, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """U diag(max(s - threshold, 0)) V' for matrix = U diag(s) V'.

    Solves min_Z 1/2 ||Z - matrix||_F^2 + threshold * (sum of the singular values of Z). Float64
    and small matrices take the full decomposition. Float32 matrices take a partial one, whose
    result is within 1e-5 ||Z||_F of the solution, or within rounding, 8 eps ||matrix||_F, where
    that is more; anything it cannot prove goes to the full decomposition too.

    Args:
        matrix: (rows, columns), float32 or float64.
        threshold: >= 0.
        start: a guess of the result, of the same shape; only speed depends on it. None: no guess.

    Returns:
        New (rows, columns) tensor, and its singular values in descending order (zeros may be
        left out). The result is a function of the arguments alone: no state, no global random
        numbers. Synchronises about eight times, and more for each further correction or proof.

    Raises:
        RuntimeError: the matrix holds NaN or infinity, as torch.linalg.svd does.

    Source: docs/math.md, "Singular values above a threshold".
    """
    if matrix.shape[0] > matrix.shape[1]:
        wide_start = None if start is None else start.mT
        z, s = shrink_singular_values(matrix.mT, threshold, wide_start)
        return z.mT, s
    partial = matrix.dtype == torch.float32 and matrix.shape[0] >= SMALLEST and threshold > 0
    if partial and not (matrix.requires_grad and torch.is_grad_enabled()):
        # A small eigenvalue problem that does not converge proves nothing either.
        failure = torch.linalg.LinAlgError  # pyright: ignore[reportPrivateImportUsage]
        found = None
        with contextlib.suppress(failure), torch.no_grad(), _full_precision(matrix.device):
            found = shrink_near(matrix, threshold, start)
        if found is not None:
            return found
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    s = (s - threshold).clamp_min(0)
    return (u * s) @ vh, s


@contextlib.contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Matrix products in float32 proper: TF32 and bfloat16 would void the rounding margins."""
    with torch.autocast(device.type, enabled=False):
        here: Any = torch.backends.mkldnn
        if not hasattr(here, "matmul"):  # torch < 2.9
            precision = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("highest")
            try:
                yield
            finally:
                torch.set_float32_matmul_precision(precision)
            return
        backends: list[Any] = [torch.backends.cuda.matmul, here.matmul]
        before = [backend.fp32_precision for backend in backends]
        for backend in backends:
            backend.fp32_precision = "ieee"
        try:
            yield
        finally:
            for backend, precision in zip(backends, before, strict=True):
                backend.fp32_precision = precision


def shrink_near(a: Tensor, threshold: float, start: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """The partial way of `shrink_singular_values` for rows <= columns; None without a proof."""
    # Squares of both, and cubes of their ratio's square, must stay within float32.
    if not 1e-12 < threshold < 1e12:
        return None
    size = math.sqrt(_square(a))
    if size * _sum_rounding(a) <= threshold:  # so is the largest singular value
        return torch.zeros_like(a), a.new_zeros(0)
    if not size < min(1e12, 1e5 * threshold):  # or NaN
        return None
    basis = a.new_zeros(len(a), 0) if start is None else _span(start)
    limit = len(a) // SHARE
    for attempt in range(ROUNDS):
        if basis.shape[1] > limit:
            return None
        pairs = _ritz(a, basis)
        residual = pairs.residual(a)
        rest = torch.addmm(a, pairs.u, pairs.b, alpha=-1)
        gram, above = _count(pairs, residual, rest, threshold * (1 - MARGIN))
        if above is None:
            assert gram is not None
            new = _leading(gram, threshold, thorough=attempt > 0 or basis.shape[1] == 0)
            useful = int((pairs.s > 0.9 * threshold).sum())
            better = (pairs.u * pairs.s + residual)[:, :useful]  # A v, a power step
            basis = torch.linalg.qr(torch.cat([better, new], dim=1))[0]
            continue
        pairs, found = _refined(a, pairs, residual, rest, gram, above, threshold, size)
        if found is not None:
            return found
        basis = pairs.u
    return None


@dataclass(frozen=True, eq=False)
class _Ritz:
    """A' restricted to a subspace and diagonalized there: u' a = b = diag(s) v'.

    Args:
        u: (rows, k), orthonormal columns.
        s: (k,), descending.
        b: (k, columns), orthogonal rows of lengths s.
    """

    u: Tensor
    s: Tensor
    b: Tensor

    def v(self) -> Tensor:
        """(k, columns), orthonormal rows; zero where s is."""
        return self.b / self.s.clamp_min(torch.finfo(self.s.dtype).tiny)[:, None]

    def residual(self, a: Tensor) -> Tensor:
        """A v - u s, (rows, k): zero where u, s, v are singular vectors and values of a."""
        return a @ self.v().mT - self.u * self.s


def _ritz(a: Tensor, basis: Tensor) -> _Ritz:
    """The Ritz pairs of a in the span of orthonormal columns."""
    b = basis.mT @ a
    wide = b.double()  # squares: in float32 the small values would drown in the large ones
    rotation = torch.linalg.eigh(wide @ wide.mT)[1].flip(1).to(b.dtype)
    b = rotation.mT @ b
    return _Ritz(basis @ rotation, torch.linalg.vector_norm(b, dim=1), b)


@functools.lru_cache(maxsize=64)
def _gaussian(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Fixed random numbers, so that a step is repeated bit by bit."""
    generator = torch.Generator().manual_seed(rows + columns)
    return torch.randn(rows, columns, generator=generator, dtype=dtype).to(device)


def _span(start: Tensor) -> Tensor:
    """Orthonormal columns that span `start` but for its smallest part."""
    rows, columns = start.shape
    width = 40
    while True:
        width = min(width, rows)
        sketch = start @ _gaussian(columns, width, start.dtype, start.device)
        q, r = torch.linalg.qr(sketch)
        size = r.diagonal().abs()
        rank = int((size > 2e-3 * size.max()).sum())
        if rank < width or width > rows // SHARE:
            return q[:, :rank]
        width *= 2


def _negative_gram(rest: Tensor) -> Tensor:
    """The symmetric -rest rest', computed on and below the diagonal and mirrored."""
    rows = len(rest)
    gram = rest.new_empty(rows, rows)
    block = -(-rows // 4)
    for i in range(0, rows, block):
        part = gram[i : i + block, : i + block]
        part.addmm_(rest[i : i + block], rest[: i + block].mT, beta=0, alpha=-1)
        gram[:i, i : i + block] = part[:, :i].mT
    return gram


def _count(
    pairs: _Ritz, residual: Tensor, rest: Tensor, level: float
) -> tuple[Tensor | None, int | None]:
    """-rest rest' where it was needed, and a proved bound on the singular values above `level`.

    Of the Ritz values the first ones, near `level` or above it, are counted; the others and the
    rest of the matrix are proved to lie below, by their Frobenius norm where that is enough and by
    a Cholesky factorization elsewhere. None where there is no proof.
    """
    rows, columns = rest.shape
    s, f = _numbers(pairs.s, _lengths(residual))
    size = _square(rest) * _sum_rounding(rest)
    above = 0
    weights = [0.0] * len(s)
    for i in reversed(range(len(s))):
        gap = level**2 - s[i] ** 2
        if gap <= 0 or (gap < 1e-4 * level**2 and (s[i] * f[i]) ** 2 > 0.01 * level**2 * gap):
            above = i + 1
            break
        weights[i] = s[i] ** 2 / gap
        size += weights[i] * f[i] ** 2
    if size <= level**2:
        return None, above
    matrix = gram = _negative_gram(rest)
    margin = _rounding(rest.dtype, rows, columns + len(s), size, level)
    if margin > WIDE_MARGIN * level**2:
        matrix = _negative_gram(rest.double())
        margin = _rounding(matrix.dtype, rows, columns + len(s), size, level)
    if above < len(s):
        scale = torch.tensor(weights[above:], dtype=matrix.dtype).sqrt().to(rest.device)
        tilted = residual[:, above:].to(matrix.dtype) * scale
        matrix = torch.addmm(matrix, tilted, tilted.mT, alpha=-1)
    proved = _is_positive_definite(matrix, level**2 - margin)
    return gram, above if proved else None


def _rounding(dtype: torch.dtype, rows: int, terms: int, size: float, level: float) -> float:
    """What rounding may change in level^2 I - (Gram matrix of trace `size`) and its test."""
    unit = torch.finfo(dtype).eps / 2
    return 1.01 * unit * ((terms + 8) * size + (rows + 8) * rows * level**2)


def _square(a: Tensor) -> float:
    """||a||_F^2 of a dense matrix, several times faster than by vector_norm."""
    flat = (a if a.is_contiguous() else a.mT).reshape(-1)
    return float(torch.dot(flat, flat))


def _sum_rounding(a: Tensor) -> float:
    """The factor by which a sum of so many squares may be off."""
    return 1 + a.numel() * torch.finfo(a.dtype).eps


def _lengths(columns: Tensor) -> Tensor:
    """The 2-norms of the columns, several times faster than vector_norm."""
    return columns.square().sum(0).sqrt()


def _numbers(*tensors: Tensor) -> list[list[float]]:
    """The tensors' entries, in one synchronisation."""
    flat = iter(torch.cat([t.flatten() for t in tensors]).tolist())
    return [[next(flat) for _ in range(t.numel())] for t in tensors]


def _is_positive_definite(matrix: Tensor, shift: float) -> bool:
    """Whether a Cholesky factorization of matrix + shift I, by blocks of columns, succeeds."""
    rows = len(matrix)
    block = max(176, -(-rows // 8))  # LAPACK is slow on 512 rows at once, and on 128
    lower = torch.empty_like(matrix)
    failures = []
    for i in range(0, rows, block):
        j = min(i + block, rows)
        part = torch.addmm(matrix[i:, i:j], lower[i:, :i], lower[i:j, :i].mT, alpha=-1)
        part[: j - i].diagonal().add_(shift)
        factor, failure = torch.linalg.cholesky_ex(part[: j - i])
        failures.append(failure)
        if j < rows:
            lower[j:, i:j] = torch.linalg.solve_triangular(
                factor.mT, part[j - i :], upper=True, left=False
            )
    return not bool(torch.stack(failures).any())


def _leading(gram: Tensor, threshold: float, thorough: bool) -> Tensor:
    """Vectors that hold what of the rest may be above the threshold."""
    if thorough:
        values, vectors = torch.linalg.eigh(gram.neg())
        few = int((values > (0.9 * threshold) ** 2).sum())
        return vectors[:, len(gram) - few :]
    block = _gaussian(len(gram), 16, gram.dtype, gram.device)
    for _ in range(3):
        for _ in range(3):
            block = gram @ (block / -(threshold**2))
        block = torch.linalg.qr(block)[0]
    return block


def _refined(
    a: Tensor,
    pairs: _Ritz,
    residual: Tensor,
    rest: Tensor,
    gram: Tensor | None,
    above: int,
    threshold: float,
    size: float,
) -> tuple[_Ritz, tuple[Tensor, Tensor] | None]:
    """Ritz pairs whose first `above` are as good as singular, and the result, if it is proved.

    One correction solves (s_i^2 + gram) d_i = s_i residual_i for all i at once by conjugate
    gradients and adds d_i to u_i (the Jacobi-Davidson method with blocks).
    """
    slack = MARGIN * threshold
    floor = 8 * torch.finfo(a.dtype).eps * size
    for refinement in range(REFINEMENTS + 1):
        kept = (pairs.s[:above] - threshold).clamp_min(0)
        f, s = _numbers(_lengths(residual)[:above], pairs.s[:above])
        error = math.hypot(*f)
        z_size = math.hypot(*(max(x - threshold, 0) for x in s))
        if error <= min(max(RTOL * z_size, floor), slack):
            if above and s[-1] - error <= threshold - slack:
                break  # on the border: count again with these better pairs
            point = (pairs.u[:, :above] * (kept / pairs.s[:above])) @ pairs.b[:above]
            return pairs, (point, kept)
        if refinement == REFINEMENTS:
            break
        if gram is None and refinement >= 2:
            gram = _negative_gram(rest)
        better = pairs.u[:, :above]
        if gram is None:  # the rest is small, so a power step goes far
            better = better + residual[:, :above] / pairs.s[:above]
        else:
            rounds = 1 if error < FAR * z_size else 2
            better = better + _correction(gram, pairs, residual, above, rounds)
        pairs = _ritz(a, torch.linalg.qr(torch.cat([better, pairs.u[:, above:]], dim=1))[0])
        residual = pairs.residual(a)
    return pairs, None


def _correction(gram: Tensor, pairs: _Ritz, residual: Tensor, above: int, rounds: int) -> Tensor:
    """D of docs/math.md, equation (R), by `rounds` times a few conjugate gradient steps."""
    shifts = pairs.s[:above].square()
    right = residual[:, :above] * pairs.s[:above]
    found = torch.zeros_like(right)
    left = right
    for count in range(rounds):
        if count:
            left = right - found @ (right.mT @ found) - found * shifts - gram @ found
        direction, length = left, left.square().sum(0)
        for step in range(INNER):
            image = torch.addcmul(gram @ direction, direction, shifts)
            curve = (direction * image).sum(0)
            # A value inside the rest's spectrum bends the parabola down: its column stays.
            along = torch.where(curve > 0, length / curve, 0)
            found = torch.addcmul(found, direction, along)
            if step == INNER - 1:
                break
            left = torch.addcmul(left, image, -along)
            before, length = length, left.square().sum(0)
            direction = torch.addcmul(left, direction, torch.where(before > 0, length / before, 0))
    return found
