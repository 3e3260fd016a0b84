"""One computation written in several ways: shrinking sees through all of them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch.nn import Linear, ReLU, Sequential

import dualprox as dp
from shrinking import WIDTH, kill, shrunk


class CastLinear(Linear):
    """Casts its parameters to the dtype of its input, as Whisper's layers do."""

    def forward(self, input):
        return F.linear(input, self.weight.to(input.dtype), self.bias.to(input.dtype))


def test_parameters_keep_their_names_behind_a_cast_to_their_own_dtype():
    model: Any = Sequential(Linear(4, WIDTH), ReLU(), CastLinear(WIDTH, 3))
    with torch.no_grad():
        model[0].weight[:2] = 0
        model[0].bias[:2] = 1
    slim: Any = shrunk(model, torch.randn(3, 4))
    assert slim[0].out_features == WIDTH - 2
    kill(model[2], (2, 3, 4))
    row = shrunk(model, torch.randn(3, 4)).report.layers[1]
    assert (row.name, row.dead, row.removed) == ("2", 3, 3)
    slim = dp.shrink(model, torch.randn(3, 4), round_to=2, lossy=True, latency=False)
    assert slim[0].out_features == 2
