"""One computation written in several ways: shrinking sees through all of them."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn import Linear, ReLU, Sequential

import dualprox as dp
from shrinking import DEAD, WIDTH, Between, kill, shrunk


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


CUTS = {
    "chunk": lambda x: x.chunk(2, 1),
    "split": lambda x: x.split(x.shape[1] // 2, 1),
    "tensor_split into parts": lambda x: x.tensor_split(2, 1),
    "tensor_split at indices": lambda x: x.tensor_split([x.shape[1] // 2], 1),
    "slices": lambda x: (x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]),
}


class Gated(Between):
    """Its first layer makes values and gates, which `cut` takes apart."""

    def __init__(self, cut):
        super().__init__()
        self.first, self.cut = Linear(4, 2 * WIDTH), [cut]

    def between(self, x):
        values, gates = self.cut[0](x)
        return values * gates.sigmoid()


@pytest.mark.parametrize("form", CUTS)
def test_halves_lose_the_same_however_they_are_cut(form):
    slim = shrunk(Gated(CUTS[form]), torch.randn(3, 4))
    assert slim.first.out_features == 2 * (WIDTH - len(DEAD))


class GatedWithWidth(Gated):
    """Remembers the width of a half."""

    def __init__(self, cut):
        super().__init__(cut)
        self.width = WIDTH

    def between(self, x):
        return super().between(x) + x.new_ones(self.width)


@pytest.mark.parametrize("form", ["chunk", "split", "tensor_split into parts"])
def test_a_width_is_found_however_the_code_cuts(form):
    slim = shrunk(GatedWithWidth(CUTS[form]), torch.randn(3, 4))
    assert slim.first.out_features == 2 * slim.width == 2 * (WIDTH - len(DEAD))


@pytest.mark.parametrize("join", [lambda x: x.flatten(2), lambda x: x.view(*x.shape[:2], -1)])
def test_a_width_is_found_however_the_code_joins(join):
    class Pooled(Between):
        def __init__(self):
            super().__init__()
            self.first, self.channels = nn.Conv2d(2, WIDTH, 3), WIDTH

        def between(self, x):
            return join(x).mean(-1) + x.new_zeros(self.channels)

    slim = shrunk(Pooled(), torch.randn(3, 2, 5, 5))
    assert slim.first.out_channels == slim.channels == WIDTH - len(DEAD)
