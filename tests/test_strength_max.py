"""The unit of strength, against formulas in numpy and against optima on either side of it."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

import dualprox as dp
import identification as bench
from oracles.cases import oracle
from oracles.coupled import gathered

X, LABELS = bench.digits()


def at_zero(bias: bool = True) -> nn.Linear:
    model = nn.Linear(64, 10, bias=bias).double()
    for param in model.parameters():
        nn.init.zeros_(param)
    return model


def batches(size: int = 200) -> list[Any]:
    x, y = torch.from_numpy(X), torch.from_numpy(LABELS)
    return list(zip(x.split(size), y.split(size), strict=True))  # the last one is shorter


def gradient_at_zero() -> np.ndarray:
    """Of the mean logistic loss of ten classes: (p - y)' x / n with p = 1/10."""
    return (0.1 - np.eye(10)[LABELS]).T @ X / len(X)


def sparse_group(g: np.ndarray, ratio: float) -> float:
    """The largest root, over the columns, of ||soft(g, ratio s)|| = (1 - ratio) sqrt(10) s."""
    lows, highs = np.zeros(g.shape[1]), np.full(g.shape[1], 1e3)
    for _ in range(200):
        s = (lows + highs) / 2
        left = np.linalg.norm(np.maximum(np.abs(g) - ratio * s, 0), axis=0)
        dead = left <= (1 - ratio) * np.sqrt(10) * s
        lows, highs = np.where(dead, lows, s), np.where(dead, s, highs)
    return float(highs.max())


FORMULAS: list[tuple[dp.Penalty, Any]] = [
    (dp.GroupLasso(3.0), lambda g: np.linalg.norm(g, axis=0).max() / np.sqrt(10)),
    (dp.GroupLasso(3.0, size_weighted=False), lambda g: np.linalg.norm(g, axis=0).max()),
    (dp.L1(0.1), lambda g: np.abs(g).max()),
    (dp.ElasticNet(0.1, l1_ratio=0.4), lambda g: np.abs(g).max() / 0.4),
    (dp.SparseGroupLasso(1.0, l1_ratio=0.3), lambda g: sparse_group(g, 0.3)),
    (dp.GroupMCP(1.0), lambda g: np.linalg.norm(g, axis=0).max() / np.sqrt(10)),
    (dp.NuclearNorm(1.0), lambda g: np.linalg.norm(g, 2)),
]


@pytest.mark.parametrize(("penalty", "formula"), FORMULAS, ids=lambda x: type(x).__name__)
def test_it_is_the_formula_whatever_the_batches(penalty: dp.Penalty, formula: Any) -> None:
    expected = formula(gradient_at_zero())
    for size in (200, len(X)):
        found = dp.strength_max(at_zero(), batches(size), penalty)
        assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("penalty", [dp.GroupLasso(1.0), dp.L1(1.0)], ids=str)
def test_the_optimum_is_zero_above_it_and_not_below(penalty: Any) -> None:
    most = dp.strength_max(at_zero(), batches(), penalty)
    below = bench.Problem("", penalty.with_strength(0.999 * most))
    assert bench.optimum(below, tol=1e-6).support.sum() == 1
    # Above, zero is optimal: with the bias free, the gradient of the weights is all that pulls.
    threshold = 1.001 * most * (np.sqrt(10) if isinstance(penalty, dp.GroupLasso) else 1.0)
    share = np.bincount(LABELS) / len(LABELS)  # of the optimal bias
    pull = (share - np.eye(10)[LABELS]).T @ X / len(X)
    norms = np.linalg.norm(pull, axis=0) if isinstance(penalty, dp.GroupLasso) else np.abs(pull)
    assert norms.max() < threshold < 1.003 * norms.max()


def test_coupled_groups_count_all_their_entries() -> None:
    torch.manual_seed(0)

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner, self.last = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x).relu()
            return self.last((x + self.inner(x)).tanh())

    model, x, y = Residual().double(), torch.randn(9, 3).double(), torch.randint(2, (9,))
    groups = dp.param_groups(model, dp.GroupLasso(1.0), coupled=True, example_input=x)
    cross_entropy(model(x), y).backward()
    expected, coupled = 0.0, 0
    for group in groups:
        penalty = group["penalty"]
        if penalty is None:
            continue
        assert isinstance(penalty, dp.Coupled)
        coupled += 1
        members = [
            (m.shape, m.slices.axis, m.slices.block, m.slices.conv_groups, m.groups)
            for m in penalty.coupling.members
        ]
        flat = np.concatenate([p.grad.numpy().ravel() for _, p in group["params"]])
        norms = [np.linalg.norm(flat[own]) / np.sqrt(len(own)) for own in gathered(members)]
        expected = max(expected, *norms)
    assert coupled == 1
    model.zero_grad()
    assert dp.strength_max(model, [(x, y)], groups) == pytest.approx(expected, rel=1e-12)


def test_it_is_where_the_residual_at_zero_ends() -> None:
    """The oracle's residual, not the library's: dist(-G, s d psi(0)) for s around it."""
    torch.manual_seed(1)
    model = nn.Linear(8, 6, bias=False).double()
    x, y = torch.randn(30, 8).double(), torch.randn(30, 6).double()
    data = [(x, y)]
    mse_loss(model(x), y).backward()
    assert model.weight.grad is not None
    pull = -model.weight.grad.numpy()
    for name, more in (("SparseGroupLasso", {"l1_ratio": 0.5}), ("GroupLasso", {"axis": 0})):
        penalty = getattr(dp, name)(strength=1.0, **more)
        if "axis" in more:
            groups: Any = dp.param_groups(model, dp.GroupLasso(1.0), by="output")
        else:
            groups = penalty
        found = dp.strength_max(model, data, groups, loss=mse_loss)
        kind = {"axis": 1, "size_weighted": True, **more}
        for factor, dies in ((1 + 1e-9, True), (1 - 1e-9, False)):
            point = oracle(name, strength=factor * found, **kind).prox(pull, 1.0)
            assert (not point.any()) == dies


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def stateful_data() -> list[Any]:
    return [(torch.randn(8, 4), torch.randint(2, (8,))) for _ in range(3)]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_and_random_numbers_are_left_as_they_were(training: bool) -> None:
    torch.manual_seed(0)
    model = Stateful().train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    grads = [torch.randn_like(param) for param in model.parameters()]
    for param, grad in zip(model.parameters(), grads, strict=True):
        param.grad = grad.clone()
    data, random = stateful_data(), torch.get_rng_state()
    first = dp.strength_max(model, data, dp.GroupLasso(1.0))
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training is training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for param, grad in zip(model.parameters(), grads, strict=True):
        assert param.grad is not None and torch.equal(param.grad, grad)
    assert dp.strength_max(model, data, dp.GroupLasso(1.0)) == first


def test_buffers_are_restored_when_the_loader_fails() -> None:
    torch.manual_seed(0)
    model, data = Stateful(), stateful_data()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def failing() -> Any:
        yield data[0]
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        dp.strength_max(model, failing(), dp.GroupLasso(1.0))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_frozen_weights_do_not_count() -> None:
    torch.manual_seed(0)
    model, data = Stateful(), stateful_data()
    model.body[2] = nn.Identity()
    last = dp.param_groups(model, dp.GroupLasso(1.0), include=["body.3"])
    expected = dp.strength_max(model, data, last)
    model.body[0].weight.requires_grad_(False)  # pyright: ignore
    assert dp.strength_max(model, data, dp.GroupLasso(1.0)) == pytest.approx(expected, rel=1e-6)
    model.body[3].weight.requires_grad_(False)  # pyright: ignore
    with pytest.raises(ValueError, match="frozen"):
        dp.strength_max(model, data, dp.GroupLasso(1.0))


@pytest.mark.parametrize("penalty", [dp.L0(1.0), dp.GroupL0(1.0), dp.GroupHalf(1.0)], ids=str)
def test_penalties_that_hold_zero_at_any_strength_have_none(penalty: dp.Penalty) -> None:
    with pytest.raises(ValueError, match="zero is stationary at every strength"):
        dp.strength_max(at_zero(), batches(), penalty)


def test_refusals_say_what_is_wrong() -> None:
    x, y = torch.randn(4, 3), torch.zeros(4, 2)
    model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="at least one batch"):
        dp.strength_max(model, [], dp.L1(1.0))
    with pytest.raises(ValueError, match="gradient is zero"):
        dp.strength_max(model, [(x, y)], dp.L1(1.0), loss=lambda out, _: 0 * out.sum())
    with pytest.raises(ValueError, match="not finite"):
        dp.strength_max(model, [(x, y)], dp.L1(1.0), loss=lambda out, _: out.sum() * float("nan"))
    with pytest.raises(ValueError, match=r"must have a strength.*RankAtMost"):
        dp.strength_max(model, [(x, y)], dp.RankAtMost(1), loss=mse_loss)
    with pytest.raises(ValueError, match="no strength of ElasticNet"):
        dp.strength_max(model, [(x, y + 1)], dp.ElasticNet(1.0, l1_ratio=0.0), loss=mse_loss)
    with pytest.raises(TypeError, match=r"pairs \(inputs, targets\), got Tensor"):
        dp.strength_max(model, [x], dp.L1(1.0))  # pyright: ignore[reportArgumentType]
