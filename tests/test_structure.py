import io

import numpy as np
import pytest
import torch

import dualprox as dp
from contracts import OPTIMIZERS, run, small_problem

every = pytest.mark.parametrize("maker", OPTIMIZERS, ids=str)


def mixed(params):
    matrix, vector, kernel = params
    return [
        {"params": [matrix], "penalty": dp.GroupLasso(0.6)},
        {"params": [kernel], "penalty": dp.NuclearNorm(4.2)},
        {"params": [vector], "penalty": dp.L1(0.6)},
    ]


@every
def test_shares_are_what_a_slow_count_says(maker):
    params, set_gradients = small_problem()
    opt = maker(mixed(params))
    run(opt, set_gradients, range(150))
    matrix, vector, kernel = (opt.structured_point(p).numpy() for p in params)
    dead = sum(not matrix[:, j].any() for j in range(6))
    zeros = int((vector == 0).sum())
    rank = np.linalg.matrix_rank(kernel.reshape(3, -1), tol=1e-10)
    assert 0 < dead < 6 and zeros > 0 and rank < 3
    found = dp.structure(opt)
    assert found.group_sparsity == pytest.approx((dead + zeros) / 11)
    assert found.weighted_group_sparsity == pytest.approx((5 * dead + zeros) / 35)
    assert found.low_rank_level == pytest.approx(1 - rank / 3)
    all_zeros = (matrix == 0).sum() + zeros + (kernel == 0).sum()
    assert found.unstructured_sparsity == pytest.approx(all_zeros / (30 + 5 + 48))
    assert [layer.size for layer in found.layers] == [6 - dead, rank, 5 - zeros]
    assert "weighted group sparsity" in str(found) and "structured point" in str(found)


def test_the_iterate_of_dual_averaging_shows_no_structure():
    params, set_gradients = small_problem()
    opt = dp.RMDA(mixed(params), lr=0.1)
    run(opt, set_gradients, range(20))
    assert dp.structure(opt).group_sparsity
    assert dp.structure(opt, at="iterate").group_sparsity == 0
    with opt.structured():
        assert dp.structure(opt).to_dict() == dp.structure(opt, at="iterate").to_dict()
    with pytest.raises(ValueError, match="at must be 'structured' or 'iterate', got 'w'"):
        dp.structure(opt, at="w")  # pyright: ignore


def test_frozen_and_unpenalized_parameters_do_not_count():
    params, set_gradients = small_problem()
    opt = dp.ProxSGD(mixed(params))
    run(opt, set_gradients, range(2))
    params[0].requires_grad_(False)
    assert [layer.name for layer in dp.structure(opt).layers] == ["1.0", "2.0"]
    free = dp.RMDA(small_problem()[0])
    assert set(dp.structure(free).to_dict().values()) == {None}


@every
def test_the_monitor_sees_what_sets_say(maker):
    params, set_gradients = small_problem(seed=3)
    opt = maker([{"params": params[:1], "penalty": dp.GroupLasso(0.6)}, {"params": params[1:]}])
    monitor = dp.StructureMonitor(opt)
    previous, since, changes = None, 1, 0
    for epoch in range(1, 100):
        run(opt, set_gradients, range(epoch, epoch + 1))
        record = monitor.update()
        point = opt.structured_point(params[0])
        live = {j for j in range(6) if point[:, j].any()}
        assert (record.epoch, record.support_size, record.support_total) == (epoch, len(live), 6)
        if previous is None:
            assert record.jaccard is None
        else:
            union = previous | live
            shared = len(previous & live) / len(union) if union else 1.0
            assert record.jaccard == pytest.approx(shared, rel=1e-14)
            if previous != live:
                since, changes = epoch, changes + 1
        assert record.unchanged_since == since
        previous = live
    assert changes


def test_stationarity_is_the_distance_with_the_averaged_gradient():
    params, set_gradients = small_problem()
    strength = 0.6
    opt = dp.RMDA(
        [{"params": params[:1], "penalty": dp.GroupLasso(strength)}, {"params": params[1:]}], lr=0.1
    )
    monitor = dp.StructureMonitor(opt)
    assert monitor.update().stationarity is None
    grads, scales = [], []
    for step in range(1, 31):
        set_gradients(step)
        grads.append([p.grad.numpy().copy() for p in params])  # pyright: ignore
        scales.append(0.1 * step**0.5)
        opt.step()
    weights = np.array(scales) / sum(scales)
    mean = [np.tensordot(weights, np.stack([g[i] for g in grads]), 1) for i in range(3)]
    point = opt.structured_point(params[0]).numpy()
    squares = [np.square(mean[1]).sum(), np.square(mean[2]).sum()]
    threshold = strength * 5**0.5
    for j in range(6):
        norm, g = np.linalg.norm(point[:, j]), mean[0][:, j]
        live = np.linalg.norm(g + threshold * point[:, j] / norm) if norm else 0.0
        squares.append(live**2 if norm else max(np.linalg.norm(g) - threshold, 0.0) ** 2)
    assert monitor.update().stationarity == pytest.approx(np.sqrt(sum(squares)), rel=1e-10)


def test_the_monitor_continues_from_its_state():
    params, set_gradients = small_problem()
    opt = dp.RAMDA(mixed(params))
    monitor = dp.StructureMonitor(opt)
    run(opt, set_gradients, range(5))
    monitor.update()
    buffer = io.BytesIO()
    torch.save(monitor.state_dict(), buffer)
    buffer.seek(0)
    twin = dp.StructureMonitor(opt)
    twin.load_state_dict(torch.load(buffer, weights_only=True))
    run(opt, set_gradients, range(5, 9))
    assert twin.update() == monitor.update()


def test_iterations_and_certificates_can_be_read():
    params, set_gradients = small_problem()
    opt = dp.RAMDA(mixed(params), lr=0.05)
    assert opt.solver_report() == []
    run(opt, set_gradients, range(10))
    exact, iterative, closed = opt.solver_report()
    assert exact.iterations > 0 and exact.certificate is None
    assert iterative.iterations >= 2 and iterative.certificate is not None
    assert closed.iterations == 0
    params, set_gradients = small_problem()
    opt = dp.RAMDA(mixed(params), lr=0.05, certify=True)
    run(opt, set_gradients, range(10))
    for report in (opt.solver_report()[0], opt.solver_report()[2]):
        assert report.certificate is not None and report.certificate < 1e-12
