"""When the outputs of two networks count as the same."""

import pytest
import torch
from torch import nn

from dualprox.shrinking.inputs import Inputs
from dualprox.shrinking.sameness import agrees


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
