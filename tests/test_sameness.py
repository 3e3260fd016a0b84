"""When the outputs of two networks count as the same."""

from typing import Any

import pytest
import torch
from torch import nn

import dualprox as dp
from dualprox.shrinking.inputs import Inputs
from dualprox.shrinking.sameness import agrees
from dualprox.shrinking.slim import slimmed


class Constant(nn.Module):
    """An input of which nothing is left, plus a number."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0 * x + self.value


@pytest.mark.parametrize(
    ("dtype", "one", "other", "same"),
    [
        (torch.float64, 0.0, 7e-13, True),  # the rounding of a constant through an instance norm
        (torch.float64, 0.0, 1e-10, False),
        (torch.float64, 1.0, 1.0 + 1e-8, True),
        (torch.float64, 1.0, 1.0 + 1e-6, False),
        (torch.float64, 1e-6, 1.001e-6, False),
        (torch.float32, 0.0, 1e-8, True),
        (torch.float32, 0.0, 1e-6, False),
        (torch.float32, 1.0, float("inf"), False),
    ],
)
def test_outputs_may_differ_by_rounding_alone(dtype, one, other, same) -> None:
    inputs = Inputs.of(torch.ones(2, 3, dtype=dtype))
    assert agrees(Constant(one), Constant(other), inputs) is same
    assert agrees(Constant(other), Constant(one), inputs) is same


def test_constants_may_cancel_in_outputs_far_smaller_than_they_are() -> None:
    """Rounding a bias of 1 to float32 is 6e-8: more than 1e-7 of outputs of 1e-4."""
    torch.manual_seed(0)
    first, second, last = nn.Linear(3, 8), nn.Linear(8, 6), nn.Linear(6, 2)
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)
    with torch.no_grad():
        first.weight[4:] = 0
        first.bias[4:] += 1
        second.weight[:, :4] *= 1e-3
        second.bias.add_(1)
        last.bias.sub_(model(torch.zeros(1, 3))[0])
        x = torch.randn(64, 3)
        assert model(x).abs().max() < 2e-3
        slim = dp.shrink(model, x, latency=False)
        assert slim.get_parameter("0.weight").shape == (4, 3)
        exact = model.double()(x.double())
        assert (slim(x) - exact).abs().max() < 1e-6


def test_a_small_part_that_is_lost_is_no_rounding(monkeypatch) -> None:
    """Of outputs around 1, a copy in which 1e-5 of them is missing is refused."""
    first, last = nn.Linear(2, 4), nn.Linear(4, 1)
    model = nn.Sequential(first, nn.ReLU(), last)
    with torch.no_grad():
        for layer in (first, last):
            layer.weight.fill_(0.5)
            layer.bias.fill_(0.5)
        last.weight[:, 0] = 0

    def spoiled(dense: nn.Module, found: Any) -> nn.Module:
        slim = slimmed(dense, found)
        slim.get_parameter("2.bias").data += 1e-5
        return slim

    monkeypatch.setattr("dualprox.shrinking.slim.slimmed", spoiled)
    with pytest.raises(dp.ShrinkError, match="differs by 1e-05"):
        dp.shrink(model, torch.rand(4, 2), latency=False)
