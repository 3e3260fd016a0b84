"""Widths that hardware likes."""

import pytest
import torch
from torch import nn

import dualprox as dp


def network(dead: int) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 24), nn.ReLU(), nn.Linear(24, 3)).eval()
    with torch.no_grad():
        model.get_parameter("2.weight")[:] = torch.arange(1.0, 25.0)  # the later, the stronger
        model.get_parameter("2.weight")[:, -dead:] = 0.0
    return model


def test_dead_channels_pad_a_width_up_to_the_next_multiple() -> None:
    model, x = network(dead=7), torch.randn(4, 5)
    slim = dp.shrink(model, x, round_to=8, latency=False)
    assert slim.get_parameter("0.weight").shape[0] == 24  # 17 live ones
    slim = dp.shrink(network(dead=9), x, round_to=8, latency=False)
    assert slim.get_parameter("0.weight").shape[0] == 16  # 15 live ones
    assert "fills the width up to a multiple of 8" in str(dp.report_of(slim))


def test_the_weakest_live_channels_go_only_if_asked_to() -> None:
    model, x = network(dead=7), torch.randn(4, 5)
    slim = dp.shrink(model, x, round_to=8, lossy=True, latency=False)
    kept = dp.Plan.from_dict(dp.report_of(slim).plan).keep["2.weight"][1]
    assert kept == tuple(range(1, 17))
    with torch.no_grad():
        hidden = torch.relu(model[0](x))[:, 1:17]
        readers, bias = model.get_parameter("2.weight")[:, 1:17], model.get_parameter("2.bias")
        wanted = nn.functional.linear(hidden, readers, bias)
        torch.testing.assert_close(slim(x), wanted)
        apart = float((slim(x) - model(x)).abs().max())
    assert dp.report_of(slim).max_abs_diff == pytest.approx(apart, rel=1e-5)
    assert apart > 0


def test_a_width_below_the_multiple_is_left_as_it_is() -> None:
    slim = dp.shrink(network(dead=20), torch.randn(4, 5), round_to=8, lossy=True, latency=False)
    assert slim.get_parameter("0.weight").shape[0] == 8


def test_attention_heads_are_given_up_whole() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 8, 32, batch_first=True).eval()
    with torch.no_grad():
        layer.self_attn.out_proj.weight[:, 6:14] = 0.0  # heads 3, 4, 5 and 6
        layer.self_attn.out_proj.weight[:, 2:4] *= 1e-3
    x = torch.randn(2, 3, 16)
    slim = dp.shrink(layer, x, round_to=6, lossy=True, latency=False)
    heads = slim.get_submodule("self_attn")
    assert isinstance(heads, dp.NarrowAttention)
    assert heads.num_heads == 3


def test_lossy_needs_a_multiple() -> None:
    with pytest.raises(ValueError, match="lossy must be False unless round_to > 1, got True"):
        dp.shrink(network(dead=1), torch.randn(1, 5), lossy=True)
