"""The theorem at work, on real data; `benchmarks/identification.py` draws the same."""

from itertools import pairwise

import pytest

import identification as bench


@pytest.mark.parametrize("problem", bench.PROBLEMS, ids=lambda p: p.name)
def test_the_optimum_is_certain_and_nondegenerate(problem):
    truth = bench.optimum(problem)
    assert truth.residual <= 1e-10
    assert truth.margin > 1e-4 and truth.weakest > 1e-2
    assert 0 < truth.support.sum() < truth.support.size / 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("method", ["RMDA", "RAMDA"])
@pytest.mark.parametrize("problem", bench.PROBLEMS, ids=lambda p: p.name)
def test_dual_averaging_finds_the_optimums_support_and_stays(problem, method, seed):
    wrong = bench.wrong_groups(method, problem, bench.optimum(problem), epochs=160, seed=seed)
    assert wrong[0] > 0
    assert not any(wrong[120:])


@pytest.mark.slow
@pytest.mark.parametrize("problem", bench.PROBLEMS, ids=lambda p: p.name)
def test_prox_sgd_is_wrong_and_fluctuates(problem):
    wrong = bench.wrong_groups("ProxSGD", problem, bench.optimum(problem), epochs=160, seed=0)
    late = wrong[120:]
    assert sum(map(bool, late)) > 0.9 * len(late)
    changes = sum(a != b for a, b in pairwise(late))
    assert changes > 0.3 * len(late)
