"""The exact subproblem solutions against slow truths, and the iterative solvers against them."""

import itertools

import numpy as np
import pytest
import torch

import dualprox as dp
from oracles import algorithms
from oracles.cases import CASES, NoisyQuadratic, oracle
from oracles.precise import condition, precise_group

EXACT_CASES = [case for case in CASES if case.oracles()[0].offers_metric]
EXACT_WEIGHTS = [(case, i) for case in EXACT_CASES for i in range(len(case.weights))]
GROUPED = ["GroupLasso", "SparseGroupLasso", "GroupMCP", "GroupSCAD", "GroupL0", "GroupHalf"]
CONVEX = ["L1", "ElasticNet", "GroupLasso", "SparseGroupLasso", "Box", "NonNegative"]


def named(value):
    return f"{value}" if not isinstance(value, tuple) else f"{value[0]}-{value[1]}"


def built(case, i):
    """Return the library's penalty, its oracle and the weight's shape."""
    shape, more = case.weights[i]
    arguments = {**case.arguments, **more}
    return getattr(dp, case.name)(**arguments), oracle(case.name, **arguments), shape


def tensors(*arrays, dtype=torch.float64):
    return [torch.tensor(x, dtype=dtype) for x in arrays]


def solve(penalty, a, d, threshold, *, solver=None, start=None, dtype=torch.float64):
    """Minimize 1/2 <z, D z> - <a, z> + threshold * psi(z) and return the library's answer."""
    a, d = tensors(a, d, dtype=dtype)
    problem = dp.Subproblem(
        linear=-a, center=torch.zeros_like(a), metric=d, threshold=threshold, penalty=penalty
    )
    start = torch.zeros_like(a) if start is None else torch.tensor(start, dtype=dtype)
    return (solver or dp.Exact()).solve(problem, start).point.numpy()


def close(actual, expected, rtol):
    assert np.array_equal(actual == 0, expected == 0)
    assert np.abs(actual - expected).max() <= rtol * np.abs(expected).max()


@pytest.mark.parametrize("weight", EXACT_WEIGHTS, ids=named)
@pytest.mark.parametrize("threshold", [0.05, 1.0, 8.0])
def test_the_exact_solution_is_the_global_minimizer(weight, threshold):
    penalty, truth, shape = built(*weight)
    rng = np.random.default_rng(10)
    a, d = 3 * rng.normal(size=shape), 10 ** rng.uniform(-1, 1, size=shape)
    close(solve(penalty, a, d, threshold), truth.metric_prox(a, d, threshold), 1e-12)


@pytest.mark.parametrize("weight", EXACT_WEIGHTS, ids=named)
def test_linear_term_center_and_metric_enter_as_in_the_subproblem(weight):
    penalty, truth, shape = built(*weight)
    rng = np.random.default_rng(11)
    v, z0, d = rng.normal(size=shape), rng.normal(size=shape), rng.uniform(0.5, 2, size=shape)
    linear, center, metric = tensors(v, z0, d)
    problem = dp.Subproblem(linear, center, metric, 0.7, penalty)
    point = dp.Exact().solve(problem, center).point
    close(point.numpy(), truth.metric_prox(d * z0 - v, d, 0.7), 1e-12)
    q = (v * point.numpy()).sum() + 0.5 * (d * (point.numpy() - z0) ** 2).sum()
    q += 0.7 * truth.value(point.numpy())
    assert float(problem.objective(point)) == pytest.approx(q, rel=1e-12)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_under_a_multiple_of_the_identity_exact_is_the_prox(case):
    penalty, truth, shape = built(case, 0)
    rng = np.random.default_rng(12)
    v, z0 = rng.normal(size=shape), 2 * rng.normal(size=shape)
    linear, center = tensors(v, z0)
    point = dp.Exact().solve(dp.Subproblem(linear, center, 2.5, 0.7, penalty), center).point
    expected = truth.prox(z0 - v / 2.5, 0.7 / 2.5)
    assert np.abs(point.numpy() - expected).max() <= 1e-12 * np.abs(expected).max()


@pytest.mark.parametrize("name", [*CONVEX, "MCP", "SCAD", "GroupMCP"])
def test_exact_agrees_with_proximal_gradient_driven_to_a_tiny_certificate(name):
    """The nonconvex three are in the regime D > tau / (gamma - 1) where Q is convex."""
    case = next(case for case in CASES if case.name == name)
    for i in range(len(case.weights)):
        penalty, _, shape = built(case, i)
        rng = np.random.default_rng(13)
        v, z0, d = rng.normal(size=shape), rng.normal(size=shape), rng.uniform(1, 4, size=shape)
        linear, center, metric = tensors(v, z0, d)
        problem = dp.Subproblem(linear, center, metric, 0.9, penalty)
        solver = dp.ProximalGradient(max_iter=5000, rtol=0, tol=1e-10)
        slow = solver.solve(problem, center)
        assert slow.certificate is not None and slow.certificate <= 1e-10
        exact = dp.Exact().solve(problem, center).point
        # Q is at least 1/2-strongly convex here, so its subgradients bound the distance.
        assert (slow.point - exact).norm() <= 2.1e-10


TOLERANCE = {torch.float64: 64 * 2.0**-52, torch.float32: 64 * 2.0**-23}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", ["GroupLasso", "SparseGroupLasso"])
@pytest.mark.parametrize("threshold", [2.0**-10, 1.0, 8.0])
def test_group_solutions_match_fifty_digits_on_metrics_over_ten_orders(name, threshold, dtype):
    """Every entry, relatively, to 64 units in the last place times the problem's conditioning."""
    if name == "GroupLasso":
        penalty, l1 = dp.GroupLasso(1.0, axis=1, size_weighted=False), 0.0
    else:
        penalty = dp.SparseGroupLasso(2.0, l1_ratio=0.5, axis=1, size_weighted=False)
        l1 = threshold
    rng = np.random.default_rng(14)
    a = (rng.normal(size=(7, 12)) * np.geomspace(0.5, 300, 12)).astype(np.float32)
    d = (10 ** rng.uniform(-5, 5, size=(7, 12))).astype(np.float32)
    point = solve(penalty, a, d, threshold, dtype=dtype)
    live = 0
    for g in range(12):
        column = a[:, g].astype(float).tolist()
        truth = np.array(precise_group(column, d[:, g].astype(float).tolist(), threshold, l1))
        assert np.array_equal(point[:, g] == 0, truth == 0)
        allowed = TOLERANCE[dtype] * condition(column, threshold, l1) * np.abs(truth)
        assert (np.abs(point[:, g] - truth) <= allowed).all()
        live += bool(truth.any())
    assert live > 0 and (live < 12 or threshold < 1)


@pytest.mark.parametrize("gap", [1e-2, 1e-5, 1e-9])
def test_groups_just_above_their_threshold_stay_alive_and_accurate(gap):
    rng = np.random.default_rng(15)
    a, d = rng.normal(size=(9, 1)), 10 ** rng.uniform(-5, 5, size=(9, 1))
    threshold = float(np.linalg.norm(a) * (1 - gap))
    point = solve(dp.GroupLasso(1.0, axis=1, size_weighted=False), a, d, threshold)
    truth = np.array(precise_group(a[:, 0].tolist(), d[:, 0].tolist(), threshold))
    assert (truth != 0).all()
    assert np.abs(point[:, 0] / truth - 1).max() <= 64 * 2.0**-52 / gap


@pytest.mark.parametrize("weight", EXACT_WEIGHTS, ids=named)
def test_zero_threshold_leaves_the_unpenalized_solution(weight):
    """Zero groups included, where 0 / 0 lurks; constraints still hold."""
    penalty, truth, shape = built(*weight)
    rng = np.random.default_rng(16)
    a, d = rng.normal(size=shape), 10 ** rng.uniform(-5, 5, size=shape)
    a[:, 0] = 0.0
    point = solve(penalty, a, d, 0.0)
    constrained = truth.value(-1e9 * np.ones(shape)) == np.inf
    close(point, truth.metric_prox(a, d, 0.0) if constrained else a / d, 1e-15)


SUMS = [weight for weight in EXACT_WEIGHTS if "strength" in weight[0].arguments]


@pytest.mark.parametrize("weight", SUMS, ids=named)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_huge_thresholds_kill_the_layer_and_tiny_ones_leave_it(weight, dtype):
    penalty, _, shape = built(*weight)
    rng = np.random.default_rng(17)
    a, d = rng.normal(size=shape), 10 ** rng.uniform(-2, 2, size=shape)
    huge, tiny = (1e200, 1e-200) if dtype == torch.float64 else (1e25, 1e-25)
    assert not solve(penalty, a, d, huge, dtype=dtype).any()
    left = solve(penalty, a, d, tiny, dtype=dtype)
    assert np.abs(left * d / a - 1).max() <= TOLERANCE[dtype]


ENTRYWISE = {
    "GroupLasso": ("L1", {}),
    "SparseGroupLasso": ("L1", {}),
    "GroupMCP": ("MCP", {"gamma": 2.0}),
    "GroupSCAD": ("SCAD", {"gamma": 2.5, "concavity": 0.7}),
    "GroupL0": ("L0", {}),
}


@pytest.mark.parametrize("name", ENTRYWISE)
def test_groups_of_one_entry_reduce_to_the_entrywise_penalty(name):
    rng = np.random.default_rng(18)
    a, d = 3 * rng.normal(size=(1, 40)), 10 ** rng.uniform(-2, 2, size=(1, 40))
    kind, extra = ENTRYWISE[name]
    entrywise = getattr(dp, kind)(0.8, **extra)
    grouped = getattr(dp, name)(0.8, axis=1, **extra)
    for threshold in (0.1, 1.0, 3.0):
        close(solve(grouped, a, d, threshold), solve(entrywise, a, d, threshold), 1e-13)


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_warm_start_does_not_matter(name, dtype):
    case = next(case for case in CASES if case.name == name)
    for i in range(len(case.weights)):
        penalty, _, shape = built(case, i)
        rng = np.random.default_rng(19)
        a = 3 * NoisyQuadratic(shape, 19, 1).target
        d = 10 ** rng.uniform(0 if name == "GroupMCP" else -3, 3, size=shape)
        cold = solve(penalty, a, d, 0.8, dtype=dtype)
        assert cold.any()
        for start in (1e-9 * cold, 0.999 * cold, 1.001 * cold, 1e9 * cold, rng.normal(size=shape)):
            close(solve(penalty, a, d, 0.8, start=start, dtype=dtype), cold, 16 * TOLERANCE[dtype])


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_groups_without_gradient_stay_exactly_zero(name, threshold):
    rng = np.random.default_rng(20)
    a, d = rng.normal(size=(5, 6)), 10 ** rng.uniform(-5, 5, size=(5, 6))
    a[:, [1, 4]] = 0.0
    for start in (np.zeros((5, 6)), rng.normal(size=(5, 6))):
        point = solve(getattr(dp, name)(0.2, axis=1), a, d, threshold, start=start)
        assert np.isfinite(point).all()
        assert not point[:, [1, 4]].any() and point.any()


def test_group_mcp_finds_the_global_minimizer_of_a_nonconvex_group():
    """Groups of two against a dense polar grid; all three kinds of minimizer must win somewhere."""
    rng = np.random.default_rng(21)
    winners = {"zero": 0, "bent": 0, "flat": 0}
    radius, angle = np.meshgrid(np.linspace(0, 1, 500), np.linspace(0, np.pi / 2, 250))
    for _ in range(60):
        a, d = np.abs(rng.normal(size=2)), 10 ** rng.uniform(-1, 0.7, size=2)
        threshold, strength, gamma = rng.uniform(0.5, 3), rng.uniform(0.1, 0.8), 2.0
        assert d.min() > 0
        penalty = dp.GroupMCP(strength, axis=1, gamma=gamma, size_weighted=False)
        truth = oracle("GroupMCP", strength=strength, axis=1, gamma=gamma, size_weighted=False)
        point = solve(penalty, a[:, None], d[:, None], threshold)[:, 0]

        def q(x, y, a=a, d=d, threshold=threshold, strength=strength, gamma=gamma):
            r = np.minimum(np.hypot(x, y), gamma * strength)
            charge = threshold * (strength * r - r * r / (2 * gamma))
            return 0.5 * (d[0] * x * x + d[1] * y * y) - a[0] * x - a[1] * y + charge

        reach = 1.01 * np.linalg.norm(a / d)
        grid = q(reach * radius * np.cos(angle), reach * radius * np.sin(angle))
        assert q(*point) <= grid.min() + 1e-12
        close(point[:, None], truth.metric_prox(a[:, None], d[:, None], threshold), 1e-12)
        if d.min() < threshold / gamma < d.max():
            norm = np.linalg.norm(point)
            kind = "zero" if norm == 0 else "bent" if norm < gamma * strength else "flat"
            winners[kind] += 1
    assert min(winners.values()) > 0, winners


@pytest.mark.parametrize("name", ["MCP", "SCAD", "L0"])
def test_entrywise_nonconvex_solutions_beat_every_point_of_a_grid(name):
    """On both sides of the curvature at which the entry's problem turns nonconvex."""
    case = next(case for case in CASES if case.name == name)
    penalty, truth, _ = built(case, 0)
    rng = np.random.default_rng(22)
    a, d = 2 * rng.normal(size=300), 10 ** rng.uniform(-1, 1, size=300)
    grid = np.linspace(-1, 1, 4001)[:, None] * 1.01 * np.abs(a / d)
    for threshold in (0.3, 1.0, 5.0):
        z = solve(penalty, a[None], d[None], threshold)[0]

        def q(x, threshold=threshold):
            return 0.5 * d * x * x - a * x + threshold * truth.scalar(np.abs(x))

        assert (q(z) <= q(grid).min(axis=0) + 1e-12).all()
        assert 0 < (z == 0).sum() < 300


def test_cardinality_keeps_the_best_of_all_subsets():
    rng = np.random.default_rng(23)
    for _ in range(20):
        a, d = rng.normal(size=8), 10 ** rng.uniform(-2, 2, size=8)
        kept = set(np.flatnonzero(solve(dp.Cardinality(3), a[None], d[None], 1.0)[0]))
        best = max(
            itertools.combinations(range(8), 3), key=lambda s: sum(a[i] ** 2 / d[i] for i in s)
        )
        assert kept == set(best)


@pytest.mark.parametrize("i", range(8))
def test_newton_raphson_agrees_with_exact(i):
    case = next(case for case in CASES if case.name == "GroupLasso")
    penalty, _, shape = built(case, i)
    rng = np.random.default_rng(24)
    a, d = 3 * rng.normal(size=shape), 10 ** rng.uniform(-1, 1, size=shape)
    for threshold in (0.0, 0.5, 1.5, 1e6):
        exact = solve(penalty, a, d, threshold)
        tight = dp.NewtonRaphson(max_iter=200, tol=1e-13)
        close(solve(penalty, a, d, threshold, solver=tight), exact, 1e-10)
        close(solve(penalty, a, d, threshold, solver=dp.NewtonRaphson()), exact, 1e-5)


def test_newton_raphson_is_for_group_lasso_alone():
    with pytest.raises(TypeError):
        dp.RAMDA(
            [{"params": [torch.zeros(2, 2, requires_grad=True)], "penalty": dp.L1(1.0)}],
            solver=dp.NewtonRaphson(),
        )


def random_problem(case, i, seed, threshold=0.8):
    """Return (library problem, a start, the same as arrays) with a moderate metric."""
    penalty, truth, shape = built(case, i)
    rng = np.random.default_rng(seed)
    v, z0, start = (rng.normal(size=shape) for _ in range(3))
    d = rng.uniform(0.5, 2.0, size=shape)
    linear, center, metric, begin = tensors(v, z0, d, start)
    problem = dp.Subproblem(linear, center, metric, threshold, penalty)
    return problem, begin, (truth, v, z0, d, threshold, start)


ALL_WEIGHTS = [(case, i) for case in CASES for i in range(len(case.weights))]


@pytest.mark.parametrize("weight", ALL_WEIGHTS, ids=named)
@pytest.mark.parametrize(
    "settings",
    [
        {"max_iter": 7, "rtol": 0, "min_iter": 1},
        {"max_iter": 60, "rtol": 1e-6, "min_iter": 2},
        {"max_iter": 60, "rtol": 1e9, "min_iter": 4},
        {"max_iter": 60, "rtol": 0, "min_iter": 2, "tol": 1e-3},
    ],
    ids=["max_iter", "rtol", "min_iter", "tol"],
)
def test_proximal_gradient_follows_algorithm_2_iteration_by_iteration(weight, settings):
    problem, start, arrays = random_problem(*weight, seed=30)
    solution = dp.ProximalGradient(**settings).solve(problem, start)
    expected = algorithms.ProximalGradient(**settings).solve(*arrays)
    assert solution.iterations == expected.iterations <= settings["max_iter"]
    gap = np.abs(solution.point.numpy() - expected.point).max()
    assert gap <= 1e-12 * np.abs(expected.point).max()
    assert solution.certificate is not None
    assert float(solution.certificate) == pytest.approx(expected.certificate, rel=1e-7, abs=1e-13)


def test_proximal_gradient_runs_exactly_as_long_as_its_limits_say():
    problem, start, _ = random_problem(CASES[0], 1, seed=31)
    for limit in (1, 3, 9):
        endless = dp.ProximalGradient(max_iter=limit, rtol=0, min_iter=1)
        assert endless.solve(problem, start).iterations == limit
        hasty = dp.ProximalGradient(max_iter=50, rtol=1e9, min_iter=limit)
        assert hasty.solve(problem, start).iterations == limit
    loose = dp.ProximalGradient(max_iter=500, rtol=0, tol=1e-4).solve(problem, start)
    assert loose.certificate is not None and loose.certificate <= 1e-4
    one_less = dp.ProximalGradient(max_iter=loose.iterations - 1, rtol=0, tol=1e-4)
    before = one_less.solve(problem, start)
    assert before.certificate is not None and before.certificate > 1e-4


@pytest.mark.parametrize("weight", ALL_WEIGHTS, ids=named)
def test_proximal_gradient_never_ends_above_its_start(weight):
    for seed in (32, 33):
        problem, start, _ = random_problem(*weight, seed=seed)
        penalty = problem.penalty
        assert penalty is not None
        solved = dp.ProximalGradient(max_iter=300, rtol=1e-15).solve(problem, start).point
        for begin in (start, torch.zeros_like(start), penalty.prox(start, 1.0), solved):
            for limit in (1, 10):
                end = dp.ProximalGradient(max_iter=limit, rtol=0).solve(problem, begin).point
                ceiling = problem.objective(begin)
                rounding = 64 * 2.0**-52 * (ceiling.abs() + 1)
                assert problem.objective(end) <= ceiling + rounding


@pytest.mark.parametrize("weight", ALL_WEIGHTS, ids=named)
def test_the_certificate_bounds_the_distance_to_stationarity(weight):
    """The certificate is the norm of one subgradient of Q, so the least norm is not above it."""
    problem, start, (_, v, z0, d, threshold, _) = random_problem(*weight, seed=36)
    penalty = problem.penalty
    assert penalty is not None
    for limit in (1, 4, 40):
        solution = dp.ProximalGradient(max_iter=limit, rtol=0).solve(problem, start)
        gradient = torch.tensor((v + d * (solution.point.numpy() - z0)) / threshold)
        least = threshold * float(penalty.residual(solution.point, gradient))
        assert solution.certificate is not None
        assert least <= float(solution.certificate) * (1 + 1e-9) + 1e-10


def test_the_certificate_of_group_lasso_is_checked_by_its_subdifferential():
    problem, start, (truth, v, z0, d, threshold, _) = random_problem(
        CASES[2], 0, seed=37, threshold=4.0
    )
    solution = dp.ProximalGradient(max_iter=3, rtol=0).solve(problem, start)
    z = solution.point.numpy().ravel()
    gradient = v.ravel() + d.ravel() * (z - z0.ravel())
    parts = []
    for g in truth.groups(v.shape):
        weight = threshold * truth.strength_of(g)
        norm = np.linalg.norm(z[g])
        inside = max(np.linalg.norm(gradient[g]) - weight, 0.0)
        parts.append(inside if norm == 0 else np.linalg.norm(gradient[g] + weight * z[g] / norm))
    assert 0 < parts.count(0.0) < len(parts)
    least = float(np.linalg.norm(parts))
    assert solution.certificate is not None
    assert 0 < least <= float(solution.certificate) * (1 + 1e-12)
    assert float(problem.certificate(solution.point)) == pytest.approx(least, rel=1e-10)
