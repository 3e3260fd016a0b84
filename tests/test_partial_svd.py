"""The nuclear norm's prox from few singular vectors, against full decompositions in float64."""

import numpy as np
import pytest
import torch
from torch import Tensor

import dualprox as dp
from contracts import assert_same
from dualprox.penalties import singular_values
from dualprox.penalties.singular_values import RTOL, shrink_near, shrink_singular_values
from oracles import algorithms
from oracles.penalties import NuclearNorm

SHAPES = [(96, 128), (128, 96), (100, 100), (64, 300)]


def matrix(spectrum, shape, seed=0):
    """A float32 matrix with random singular vectors; missing singular values are zero."""
    rng = np.random.default_rng(seed)
    rows, columns = shape
    u = np.linalg.qr(rng.normal(size=(rows, min(shape))))[0]
    v = np.linalg.qr(rng.normal(size=(columns, min(shape))))[0]
    s = np.zeros(min(shape))
    s[: len(spectrum)] = spectrum
    return torch.tensor((u * s) @ v.T, dtype=torch.float32)


def noise(count, top):
    """Singular values like those of a random matrix, the largest `top`."""
    return top * np.linspace(1, 0.1, count)


# Each with the threshold 1; the name says what is special near it or far from it.
SPECTRA = {
    "gap": [*np.geomspace(10, 2, 12), *noise(50, 0.5)],
    "quiet": [*np.geomspace(10, 1.05, 12), *noise(50, 0.1)],
    "no gap": np.linspace(1.3, 0.5, 60),
    "close noise": [*np.geomspace(10, 1.05, 12), *noise(50, 0.97)],
    "cluster": [5, 4, 3, *np.linspace(1.0003, 0.9997, 9), *noise(40, 0.7)],
    "tie": [5, 4, 3, 1, *noise(40, 0.7)],
    "equal values": [3] * 6 + [1.5] * 6 + [0.5] * 40,
    "few above": [1.2, 1.1, *noise(55, 0.9)],
    "one above": [1 + 1e-4, *noise(55, 0.9)],
    "none above": noise(60, 0.95),
    "all above": np.linspace(9, 1.5, 128),
    "many above": [*np.linspace(9, 1.5, 45), *noise(19, 0.8)],
    "wide range": [*np.geomspace(1e4, 1.1, 15), *np.geomspace(0.8, 1e-4, 45)],
    "widest range": [*np.geomspace(1e7, 1.5, 15), *np.geomspace(0.8, 1e-4, 45)],
    "low rank": np.geomspace(8, 1.2, 7),
    "zero": [],
}


def truth(w, threshold=1.0):
    """The prox and the singular values of w, in numpy float64."""
    u, s, vt = np.linalg.svd(w.double().numpy(), full_matrices=False)
    return (u * np.maximum(s - threshold, 0)) @ vt, s


def starts(w):
    """Guesses from excellent to useless, one of them orthogonal to the solution on both sides."""
    rng = np.random.default_rng(7)
    u, s, vt = np.linalg.svd(w.double().numpy(), full_matrices=False)
    z, _ = truth(w)
    other = rng.normal(size=w.shape)
    rank = min(int((s > 1).sum()), 20)
    low_rank = rng.normal(size=(w.shape[0], 9)) @ rng.normal(size=(9, w.shape[1]))
    away = (u[:, rank : rank + 9] * 3) @ vt[rank : rank + 9]
    size = np.linalg.norm(z) / np.linalg.norm(other)
    moved, _ = truth(w + torch.tensor(0.02 * size * other))
    known = {
        "itself": z,
        "close": moved,
        "zero": 0 * z,
        "orthogonal": away,
        "a part": (u[:, : rank // 2] * s[: rank // 2]) @ vt[: rank // 2],
        "low rank": low_rank,
        "full rank": other,
        "tiny": 1e-30 * other,
        "huge": 1e30 * low_rank,
    }
    return {name: torch.tensor(a, dtype=torch.float32) for name, a in known.items()}


def assert_is_prox(found, w, threshold=1.0):
    """Within the stated tolerance of the truth, with the true rank but for ties."""
    z, kept = found
    expected, s = truth(w, threshold)
    rounding = 8 * 2.0**-23 * float(np.linalg.norm(s))
    error = float(np.linalg.norm(z.double().numpy() - expected))
    assert error <= RTOL * float(np.linalg.norm(expected)) + rounding
    above = np.sort(kept.double().numpy())[::-1]
    assert (above >= 0).all()
    full = np.zeros(len(s))
    full[: len(above)] = above
    assert np.abs(full - np.maximum(s - threshold, 0)).max() <= RTOL * full.max() + rounding
    tied = int((np.abs(s - threshold) <= rounding).sum())
    assert abs(int((above > 0).sum()) - int((s > threshold).sum())) <= tied


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", SPECTRA)
def test_the_prox_is_right_for_every_spectrum_from_every_start(name, shape):
    w = matrix(SPECTRA[name][: min(shape)], shape)
    assert_is_prox(shrink_singular_values(w, 1.0), w)
    for start in starts(w).values():
        assert_is_prox(shrink_singular_values(w, 1.0, start), w)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6, 1e-18, 1e18, 1e-30])
def test_the_scale_does_not_matter(scale):
    w = matrix(SPECTRA["close noise"], (96, 128))
    found = shrink_singular_values(scale * w, scale, scale * starts(w)["close"])
    assert_is_prox((found[0] / scale, found[1] / scale), scale * w / scale, 1.0)


@pytest.mark.parametrize(
    "name", ["gap", "quiet", "no gap", "close noise", "equal values", "few above", "low rank"]
)
@pytest.mark.parametrize("start", ["itself", "close", "zero", "orthogonal", "a part", "low rank"])
def test_the_partial_way_is_taken_where_the_rank_is_low(name, start):
    """Else the tests above would be tests of torch."""
    w = matrix(SPECTRA[name], (120, 150))
    found = shrink_near(w, 1.0, starts(w)[start])
    assert found is not None
    assert_is_prox(found, w)


@pytest.mark.parametrize("name", ["gap", "quiet", "close noise", "equal values", "low rank"])
def test_the_rank_found_is_that_of_the_float64_prox(name):
    w = matrix(SPECTRA[name], (120, 150))
    penalty = dp.NuclearNorm(1.0)
    expected = penalty.structure(penalty.prox(w.double(), 1.0)).count()
    z = penalty.prox_with_value(w, 1.0, starts(w)["close"])[0]
    assert penalty.structure(z).count() == expected == sum(s > 1 for s in SPECTRA[name])


@pytest.mark.parametrize(("name", "factorizations"), [("quiet", 0), ("gap", 1)])
def test_a_small_rest_needs_no_factorization(name, factorizations, monkeypatch):
    w = matrix(SPECTRA[name], (120, 150))
    tested = singular_values._is_positive_definite
    calls = []
    monkeypatch.setattr(
        singular_values,
        "_is_positive_definite",
        lambda *args: calls.append(args) or tested(*args),
    )
    assert shrink_near(w, 1.0, starts(w)["close"]) is not None
    assert len(calls) == factorizations


def hidden(excess):
    """A matrix with a direction above the threshold that the start knows nothing of."""
    w = matrix([*np.geomspace(10, 1.5, 9), excess, *noise(80, 0.98)], (128, 160), seed=3)
    u, s, vt = np.linalg.svd(w.double().numpy(), full_matrices=False)
    kept = [i for i in range(10) if abs(s[i] - excess) > 1e-4]
    return w, torch.tensor((u[:, kept] * (s[kept] - 1)) @ vt[kept], dtype=torch.float32)


@pytest.mark.parametrize("excess", [1.001, 1.01, 1.1, 3.0, 300.0])
def test_a_singular_value_orthogonal_to_the_start_is_not_missed(excess):
    w, start = hidden(excess)
    found = shrink_near(w, 1.0, start)
    assert found is not None
    assert_is_prox(found, w)
    assert int((found[1] > 0).sum()) == 10


def test_without_the_proof_it_would_be_missed(monkeypatch):
    """The Cholesky factorization does the work, and the test above would notice its absence."""
    w, start = hidden(1.1)
    monkeypatch.setattr(singular_values, "_is_positive_definite", lambda *_: True)
    found = shrink_near(w, 1.0, start)
    assert found is not None and int((found[1] > 0).sum()) == 9


def test_what_cannot_be_proved_goes_to_the_full_decomposition(monkeypatch):
    w, start = hidden(1.1)
    monkeypatch.setattr(singular_values, "_is_positive_definite", lambda *_: False)
    assert shrink_near(w, 1.0, start) is None
    assert_is_prox(shrink_singular_values(w, 1.0, start), w)


def test_a_failing_eigenvalue_problem_goes_to_the_full_decomposition(monkeypatch):
    w, start = hidden(1.1)

    def fails(*_):
        raise torch.linalg.LinAlgError("did not converge")  # pyright: ignore

    monkeypatch.setattr(singular_values, "_ritz", fails)
    assert_is_prox(shrink_singular_values(w, 1.0, start), w)


@pytest.mark.parametrize("seed", range(3))
def test_the_blocked_cholesky_agrees_with_the_eigenvalues(seed):
    generator = torch.Generator().manual_seed(seed)
    for rows in (1, 64, 176, 177, 400):
        half = torch.randn(rows, rows + 5, generator=generator)
        gram = -half @ half.T
        top = float(torch.linalg.eigvalsh(-gram.double())[-1])
        assert singular_values._is_positive_definite(gram, 1.001 * top)
        assert not singular_values._is_positive_definite(gram, 0.999 * top)


def test_large_sides_prove_in_float64():
    """In float32 the worst case of rounding would eat the margin at this size."""
    w = matrix([*np.geomspace(10, 1.5, 9), *noise(900, 0.9)], (1000, 1000))
    start = matrix([*np.geomspace(9, 0.5, 9)], (1000, 1000))
    found = shrink_near(w, 1.0, start)
    assert found is not None
    assert_is_prox(found, w)


def test_the_result_repeats_bit_by_bit_and_draws_no_global_random_numbers():
    w, start = hidden(1.01)
    before = torch.get_rng_state()
    first = shrink_singular_values(w, 1.0, start)
    singular_values._gaussian.cache_clear()
    torch.manual_seed(1)
    torch.set_rng_state(before)
    assert_same([*first], [*shrink_singular_values(w, 1.0, start)])
    assert torch.equal(torch.get_rng_state(), before)


def test_layout_and_inputs_are_left_alone():
    w, start = hidden(1.01)
    copies = w.clone(), start.clone()
    expected = shrink_singular_values(w, 1.0, start)[0]
    assert_same([w, start], [*copies])
    strided = torch.empty(160, 128).mT.copy_(w)
    assert torch.allclose(shrink_singular_values(strided, 1.0, start)[0], expected, atol=1e-5)


def test_nan_is_not_hidden():
    w, start = hidden(1.01)
    bad = start.clone()
    bad[3, 4] = torch.nan
    assert_is_prox(shrink_singular_values(w, 1.0, bad), w)
    for value in (torch.nan, torch.inf):
        w[3, 4] = value
        with pytest.raises(RuntimeError):
            shrink_singular_values(w, 1.0, start)


def test_reduced_precision_of_products_does_not_reach_the_proof():
    w, start = hidden(1.001)
    expected = shrink_singular_values(w, 1.0, start)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(shrink_singular_values(w, 1.0, start)[0], expected)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(shrink_singular_values(w, 1.0, start)[0], expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_gradients_flow_through_the_full_decomposition_as_before():
    w = matrix(np.linspace(5, 0.5, 80), (80, 90)).requires_grad_()
    dp.NuclearNorm(1.0).prox(w, 1.0).sum().backward()
    assert w.grad is not None and bool(w.grad.abs().max() > 0)


def test_float64_is_solved_to_float64():
    w = matrix(SPECTRA["close noise"], (96, 128)).double()
    z = dp.NuclearNorm(1.0).prox_with_value(w, 1.0, w)[0]
    assert np.abs(z.numpy() - truth(w)[0]).max() <= 1e-13


@pytest.mark.parametrize("shape", [(96, 12, 3, 3), (70, 200), (20, 30)], ids=str)
def test_the_value_comes_with_the_prox(shape):
    penalty = dp.NuclearNorm(0.3)
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    step = 0.7 * float(torch.linalg.matrix_norm(w.flatten(1), 2)) / 0.3
    for start in (None, w, torch.zeros_like(w)):
        z, value = penalty.prox_with_value(w, torch.tensor(step), start)
        assert z.shape == w.shape
        expected = truth(w.flatten(1), 0.3 * step)[0]
        assert np.abs(z.flatten(1).numpy() - expected).max() <= 1e-5 * np.linalg.norm(expected)
        assert float(value) == pytest.approx(float(penalty.value(z.double())), rel=1e-4)


def test_penalties_without_a_free_value_say_so():
    w = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    z, value = dp.GroupLasso(0.3).prox_with_value(w, 0.5, w)
    assert value is None and torch.equal(z, dp.GroupLasso(0.3).prox(w, 0.5))


class Recovery:
    """Gradients of 1/2 ||W - W*||^2 plus noise, W* of low rank plus a full-rank part."""

    def __init__(self, shape):
        flat = (shape[0], int(np.prod(shape[1:])))
        spectrum = [*np.geomspace(20, 3, 14), *noise(min(flat) - 14, 2.0)]
        self.target = matrix(spectrum, flat).double().numpy().reshape(shape)
        self.start = 0.1 * np.random.default_rng(1).normal(size=shape)

    def gradient(self, w, t):
        rng = np.random.default_rng(1000 + t)
        return w - self.target + 0.05 * rng.normal(size=w.shape)


STRENGTH = 2.2


def made(method, param):
    groups = [{"params": [param], "penalty": dp.NuclearNorm(STRENGTH)}]
    solver = dp.ProximalGradient(max_iter=4, rtol=0)
    if method == "RMDA":
        return dp.RMDA(groups, lr=0.1, momentum=0.8)
    if method == "RAMDA":
        return dp.RAMDA(groups, lr=0.1, momentum=0.8, eps=1e-3, solver=solver)
    if method == "ProxSGD":
        return dp.ProxSGD(groups, lr=0.2, momentum=0.8)
    return dp.ProxAdamW(groups, lr=0.02, betas=(0.9, 0.98), eps=0.05, solver=solver)


def oracle(method, w):
    penalty = NuclearNorm(STRENGTH)
    solver = algorithms.ProximalGradient(max_iter=4, rtol=0)
    if method == "RMDA":
        return algorithms.RMDA(w, penalty, lr=0.1, c=0.2)
    if method == "RAMDA":
        return algorithms.RAMDA(w, penalty, lr=0.1, c=0.2, eps=1e-3, solver=solver)
    if method == "ProxSGD":
        return algorithms.ProxSGD(w, penalty, lr=0.2, rho=0.8)
    return algorithms.ProxAdamW(w, penalty, 0.02, (0.9, 0.98), 0.05, solver=solver)


METHODS = ["RMDA", "RAMDA", "ProxSGD", "ProxAdamW"]


@pytest.mark.parametrize("shape", [(96, 128), (80, 16, 3, 3)], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_training_follows_the_oracle_and_is_warm(method, shape, monkeypatch):
    """The gradients are the oracle's at its own float64 iterate: only the solver can differ."""
    problem = Recovery(shape)
    param = torch.nn.Parameter(torch.tensor(problem.start, dtype=torch.float32))
    opt, other = made(method, param), oracle(method, problem.start)
    results: list[bool] = []

    def watched(a: Tensor, threshold: float, start: Tensor | None):
        found = shrink_near(a, threshold, start)
        results.append(found is not None)
        return found

    monkeypatch.setattr(singular_values, "shrink_near", watched)
    for t in range(60):
        gradient = problem.gradient(other.w, t)
        param.grad = torch.tensor(gradient, dtype=torch.float32)
        other.step(gradient)
        opt.step()
        gap = np.linalg.norm(param.detach().double().numpy() - other.w)
        assert gap <= 1e-4 * np.linalg.norm(other.w) + 1e-6, t
    point = opt.structured_point(param).double().numpy()
    expected = other.structured()
    assert np.linalg.norm(point - expected) <= 1e-4 * np.linalg.norm(expected)
    rank = dp.structure(opt).layers[0]
    assert rank is not None
    assert sum(results[-20:]) == 20


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_the_same_bit_by_bit(method):
    problem = Recovery((96, 128))

    def run(opt, param, steps):
        for t in steps:
            gradient = problem.gradient(param.detach().double().numpy(), t)
            param.grad = torch.tensor(gradient, dtype=torch.float32)
            opt.step()

    param = torch.nn.Parameter(torch.tensor(problem.start, dtype=torch.float32))
    opt = made(method, param)
    run(opt, param, range(20))
    twin_param = torch.nn.Parameter(param.detach().clone())
    twin = made(method, twin_param)
    twin.load_state_dict(opt.state_dict())
    singular_values._gaussian.cache_clear()
    run(opt, param, range(20, 35))
    run(twin, twin_param, range(20, 35))
    assert torch.equal(param, twin_param)
    assert_same([*opt.state[param].values()], [*twin.state[twin_param].values()])
    assert torch.equal(opt.structured_point(param), twin.structured_point(twin_param))
