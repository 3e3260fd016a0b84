"""Gradients that are far longer than usual are scaled down, the others left alone."""

import numpy as np
import pytest
import torch
from torch import nn

import dualprox as dp
from dualprox.fitting.clipping import Clipping
from fitting_cases import batches, network


def transcription(norms: list[float], most: float) -> list[float]:
    """The factors of gradients of these norms, in float64."""
    usual, factors = norms[0], []
    for norm in norms:
        usual = usual or norm
        limit = most * usual
        factors.append(min(1.0, limit / norm) if norm else 1.0)
        usual += 0.03 * (min(norm, limit) - usual)
    return factors


@pytest.mark.parametrize("most", [1.5, 2.0, 10.0])
@pytest.mark.parametrize("first", [1.0, 0.0])
def test_gradients_have_the_lengths_of_the_formula(most: float, first: float) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
    model.get_parameter("0.bias").requires_grad_(False)  # without a gradient
    rng = np.random.default_rng(0)
    clipping = Clipping(most)
    norms = [first, *rng.lognormal(0, 1.5, 60)]
    norms[30] = 1e4
    factors = []
    trained = [param for param in model.parameters() if param.requires_grad]
    for norm in norms:
        draws = [torch.randn_like(param) for param in trained]
        length = torch.cat([draw.flatten() for draw in draws]).norm()
        for param, draw in zip(trained, draws, strict=True):
            param.grad = draw * (norm / length)
        before = [param.grad.clone() for param in trained if param.grad is not None]
        clipping.clip_(model)
        ratios = [param.grad / old for param, old in zip(trained, before, strict=True) if norm]  # pyright: ignore
        together = torch.cat([r.flatten() for r in ratios]) if norm else torch.ones(1)
        torch.testing.assert_close(together, together.mean().expand_as(together))
        factors.append(float(together.mean()))
    expected = transcription(norms, most)
    np.testing.assert_allclose(factors, expected, rtol=1e-4)
    assert min(factors) < 0.01 and sum(factor > 0.99 for factor in factors) > 10


def test_none_leaves_gradients_alone() -> None:
    model = nn.Linear(2, 2)
    clipping = Clipping(None)
    for scale in (1.0, 1e6):
        (scale * model(torch.ones(1, 2))).sum().backward()
        before = [param.grad.clone() for param in model.parameters() if param.grad is not None]
        clipping.clip_(model)
        assert all(map(torch.equal, before, [p.grad for p in model.parameters()]))  # pyright: ignore


def test_a_fit_survives_a_batch_that_is_a_million_times_as_steep() -> None:
    """It comes in the search, where dual averaging would keep it in its sum."""
    data = batches("mlp", count=16)
    ends = []
    for clip in (2.0, None):
        steps = [0]

        def loss(outputs: torch.Tensor, targets: torch.Tensor, steps=steps) -> torch.Tensor:
            steps[0] += 1
            value = nn.functional.cross_entropy(outputs, targets)
            return 1e6 * value if steps[0] == 32 else value

        found = dp.fit(
            network("mlp"), data, 8, dp.TargetSize(params=0.5), loss=loss, latency=False, clip=clip,
            warmup=0.1,
        )  # fmt: skip
        found.model.eval()
        hits = [(found.model(x).argmax(1) == y).float().mean() for x, y in data]
        ends.append(float(torch.stack(hits).mean()))
    assert ends[0] > 0.95 and ends[0] > ends[1] + 0.1, ends


@pytest.mark.parametrize("clip", [1.0, 0, -2.0, float("nan")])
def test_what_is_no_clipping_is_refused(clip: float) -> None:
    with pytest.raises(ValueError, match="clip must be a number > 1 or None"):
        dp.fit(network("mlp"), batches("mlp"), 2, dp.TargetSize(params=0.5), clip=clip)
