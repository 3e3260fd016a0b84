"""Without a penalty every optimizer is a known one."""

import math

import madgrad
import numpy as np
import pytest
import torch

import dualprox as dp

STEPS = 500


class Quadratic:
    """A seeded noisy quadratic on which two optimizers are compared, step by step."""

    def __init__(self, seed, shape=(5, 7)):
        generator = torch.Generator().manual_seed(seed)

        def normal(*size):
            return torch.randn(*size, generator=generator, dtype=torch.float64)

        self.start, self.target = normal(*shape), normal(*shape)
        self.curvature = 0.5 + normal(*shape).abs()
        self.noise = 0.3 * normal(STEPS, *shape)

    def gradient(self, w, step):
        return self.curvature * (w - self.target) + self.noise[step]

    def parameter(self):
        return self.start.clone().requires_grad_()


def largest_gap(problem, build, other_build):
    """Run both optimizers, each on its own gradients; return the largest relative distance."""
    w, other = problem.parameter(), problem.parameter()
    optimizer, reference = build([w]), other_build([other])
    gap = 0.0
    for t in range(STEPS):
        for param, method in ((w, optimizer), (other, reference)):
            param.grad = problem.gradient(param.detach(), t)
            method.step()
        distance = (w - other).detach().abs().max() / other.detach().abs().max()
        gap = max(gap, float(distance))
    assert (w - problem.start).abs().max() > 0.1
    return gap


def formula_gap(problem, build, update):
    """Run an optimizer beside update(t, w, grad) -> new w on numpy arrays."""
    w = problem.parameter()
    optimizer, expected, gap = build([w]), problem.start.numpy().copy(), 0.0
    for t in range(STEPS):
        w.grad = problem.gradient(w.detach(), t)
        optimizer.step()
        grad = problem.gradient(torch.from_numpy(expected), t).numpy()
        expected = update(t + 1, expected, grad)
        distance = np.abs(w.detach().numpy() - expected).max() / np.abs(expected).max()
        gap = max(gap, float(distance))
    assert np.abs(expected - problem.start.numpy()).max() > 0.1
    return gap


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("eps", [1e-6, 1e-3])
def test_ramda_without_a_penalty_is_the_published_madgrad(momentum, eps):
    lr = 0.05

    def ramda(params):
        return dp.RAMDA(params, lr=lr, momentum=momentum, eps=eps)

    def published(params):  # it adds eps to lr
        return madgrad.MADGRAD(params, lr=lr - eps, momentum=momentum, eps=eps)

    # With momentum 0 the package recovers its anchor from w + s / rms, which loses digits.
    assert largest_gap(Quadratic(1), ramda, published) < (1e-12 if momentum else 1e-10)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rmda_without_a_penalty_is_modernized_dual_averaging(momentum):
    """MDA: s += lr sqrt(t) g, z = x0 - s / sqrt(t), x = (1 - c) x + c z (arXiv:2010.10502)."""
    problem, lr = Quadratic(2), 0.1
    anchor, total = problem.start.numpy().copy(), np.zeros(problem.start.shape)

    def update(t, w, grad):
        nonlocal total
        total = total + lr * math.sqrt(t) * grad
        return momentum * w + (1 - momentum) * (anchor - total / math.sqrt(t))

    def rmda(params):
        return dp.RMDA(params, lr=lr, momentum=momentum)

    assert formula_gap(problem, rmda, update) < 1e-12


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_prox_sgd_without_a_penalty_averages_gradients(momentum):
    """The buffer starts at zero: m = momentum m + (1 - momentum) g, w = w - lr m."""
    problem, lr = Quadratic(3), 0.1
    average = np.zeros(problem.start.shape)

    def update(t, w, grad):
        nonlocal average
        average = momentum * average + (1 - momentum) * grad
        return w - lr * average

    def prox_sgd(params):
        return dp.ProxSGD(params, lr=lr, momentum=momentum)

    assert formula_gap(problem, prox_sgd, update) < 1e-12


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
def test_prox_adamw_without_a_penalty_is_adamw(amsgrad, weight_decay):
    settings = {
        "lr": 0.02,
        "betas": (0.9, 0.95),
        "eps": 1e-7,
        "weight_decay": weight_decay,
        "amsgrad": amsgrad,
    }

    def prox_adamw(params):
        return dp.ProxAdamW(params, **settings)

    def adamw(params):
        return torch.optim.AdamW(params, **settings)

    assert largest_gap(Quadratic(4), prox_adamw, adamw) < 1e-12


@pytest.mark.parametrize("name", ["RMDA", "RAMDA", "ProxSGD", "ProxAdamW"])
def test_zero_strength_equals_no_penalty(name):
    """A group LASSO of strength zero removes nothing and shrinks nothing."""

    def free(params):
        return getattr(dp, name)(params)

    def zero(params):
        return getattr(dp, name)([{"params": params, "penalty": dp.GroupLasso(0.0)}])

    problem = Quadratic(5)
    problem.curvature *= 3  # the default learning rates are small
    assert largest_gap(problem, zero, free) < 1e-12
