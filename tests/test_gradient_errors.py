"""The errors of gradient estimates along a run, against numpy, and Lemma 1."""

import math
from typing import Any

import numpy as np
import pytest
import torch

import dualprox as dp
from dualprox.lab.data import Split
from dualprox.lab.data.planted import planted_logistic
from dualprox.lab.experiments.variance import full_gradient, gradient_errors
from oracles import algorithms
from oracles.cases import oracle as penalty_oracle


def softmax_gradient(w, x, y):
    """Of the mean cross entropy of a linear model without bias, in float64."""
    scores = x @ w.T
    p = np.exp(scores - scores.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return (p - np.eye(len(w))[y]).T @ x / len(x)


def small() -> tuple[Split, torch.nn.Linear]:
    torch.manual_seed(0)
    x, y = torch.randn(150, 6, dtype=torch.float64), torch.randint(3, (150,))
    split = Split(x, y, x[:0], y[:0], normalize=lambda kept: kept)
    return split, torch.nn.Linear(6, 3, bias=False, dtype=torch.float64)


@pytest.mark.parametrize("method", ["RMDA", "ProxSGD"])
def test_the_errors_are_those_of_a_slow_transcription(method):
    split, model = small()
    groups = [{"params": [model.weight], "penalty": dp.GroupLasso(0.01)}]
    oracle: Any
    start = model.weight.detach().numpy().copy()
    penalty = penalty_oracle("GroupLasso", strength=0.01)
    if method == "RMDA":
        opt = dp.RMDA(groups, lr=0.2, momentum=0.8)
        oracle = algorithms.RMDA(start, penalty, 0.2, 0.2)
    else:
        opt = dp.ProxSGD(groups, lr=0.2, momentum=0.8)
        oracle = algorithms.ProxSGD(start, penalty, 0.2, 0.8)
    steps = [1, 2, 5, 40]
    records = gradient_errors(model, opt, split, steps, batch_size=20, seed=4)
    assert [record.step for record in records] == steps
    x, y = split.x.numpy(), split.y.numpy()
    batches = [b for epoch in range(5) for b in split.batches(20, 4, epoch)]
    weighted, weights = np.zeros_like(start), 0.0
    for step, (inputs, labels) in enumerate(batches[:40], start=1):
        full = softmax_gradient(oracle.w, x, y)
        batch = softmax_gradient(oracle.w, inputs.numpy(), labels.numpy())
        oracle.step(batch)
        weighted, weights = weighted + math.sqrt(step) * batch, weights + math.sqrt(step)
        estimate = weighted / weights if method == "RMDA" else oracle.m
        if step in steps:
            record = records[steps.index(step)]
            assert record.minibatch == pytest.approx(((batch - full) ** 2).sum(), rel=1e-9)
            assert record.estimate == pytest.approx(((estimate - full) ** 2).sum(), rel=1e-9)
            assert record.gradient == pytest.approx((full**2).sum(), rel=1e-9)


def test_the_full_gradient_is_that_of_the_mean_in_any_chunks_and_leaves_grad_alone():
    split, model = small()
    expected = softmax_gradient(model.weight.detach().numpy(), split.x.numpy(), split.y.numpy())
    model.weight.grad = torch.ones_like(model.weight)
    for chunk in (7, 1000):
        (found,) = full_gradient(model, split, chunk)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10, atol=1e-14)
    assert torch.equal(model.weight.grad, torch.ones_like(model.weight))


def test_measuring_does_not_change_the_run():
    weights = []
    for steps in ([30], [1, 7, 8, 30]):
        made = planted_logistic(examples=200)
        model = made.start()
        opt = dp.RAMDA(dp.param_groups(model, dp.GroupLasso(0.01)), lr=1e-3)
        gradient_errors(model, opt, made.split, steps)
        weights.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_the_error_vanishes_for_rmda_and_stays_for_proxsgd():
    """Lemma 1. The average over ten batches keeps about a nineteenth of a batch's error."""
    shares = {}
    for method, lr in ((dp.RMDA, 0.3), (dp.ProxSGD, 0.1)):
        made = planted_logistic()
        model = made.start()
        opt = method(dp.param_groups(model, dp.GroupLasso(0.01)), lr=lr)
        early, *late = gradient_errors(model, opt, made.split, [20, 990, 995, 1000])
        last = sum(r.estimate for r in late) / sum(r.minibatch for r in late)
        shares[method] = early.estimate / early.minibatch, last
    assert shares[dp.RMDA][1] < 0.005 and shares[dp.RMDA][1] < shares[dp.RMDA][0] / 5
    assert 0.02 < shares[dp.ProxSGD][1] < 0.1


def test_bad_steps_and_parameters_that_do_not_move_are_refused():
    split, model = small()
    opt = dp.RMDA(model.parameters())
    for steps in ([], [0, 1], [3, 2]):
        with pytest.raises(ValueError, match="steps must be ascending whole numbers >= 1, got"):
            gradient_errors(model, opt, split, steps)
    with pytest.raises(ValueError, match=r"did not step one of shape \(3, 6\)"):
        gradient_errors(model, dp.RMDA(model.parameters(), lr=0.0), split, [1])
