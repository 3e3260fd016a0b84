import copy
import io
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import dualprox as dp
from dualprox.shrinking.inputs import Inputs, undisturbed
from dualprox.shrinking.measure import count_macs


def conv_macs(layer, inputs, out):
    """Multiplications of a convolution, by looking at every output's window."""
    inside = layer.kernel_size
    per_window = layer.in_channels // layer.groups
    for side in inside:
        per_window *= side
    places = inputs if isinstance(layer, nn.ConvTranspose2d) else out
    count = 0
    for _ in itertools.product(*(range(side) for side in places.shape[2:])):
        count += per_window * layer.out_channels
    return count * places.shape[0]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, (3, 2), stride=2, groups=2),
        nn.Conv2d(6, 6, 3, groups=6, dilation=2, padding=2),
        nn.ConvTranspose2d(4, 6, 3, stride=2),
        nn.ConvTranspose2d(4, 6, 2, groups=2),
    ],
    ids=str,
)
def test_macs_of_a_convolution_are_counted_by_hand(layer):
    x = torch.randn(2, layer.in_channels, 7, 6)
    assert count_macs(layer, x) == conv_macs(layer, x, layer(x)) / 2


def test_macs_of_a_linear_layer_ignore_the_bias_and_count_each_position():
    assert count_macs(nn.Linear(7, 5), torch.zeros(3, 4, 7)) == 4 * 7 * 5


@pytest.mark.parametrize("kind, gates", [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_macs_of_recurrent_layers_are_those_of_their_gates(kind, gates, bidirectional):
    layer = kind(5, 7, num_layers=2, batch_first=True, bidirectional=bidirectional)
    ways = 1 + bidirectional
    first, second = gates * 7 * (5 + 7), gates * 7 * (ways * 7 + 7)
    assert count_macs(layer, torch.zeros(3, 11, 5)) == 11 * ways * (first + second)


class Attention(nn.Module):
    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v)


def test_macs_of_attention_are_scores_and_mixtures():
    heads, queries, keys, width, depth = 2, 5, 7, 4, 3
    shapes = [(2, heads, queries, width), (2, heads, keys, width), (2, heads, keys, depth)]
    macs = heads * queries * keys * (width + depth)
    assert count_macs(Attention(), tuple(map(torch.zeros, shapes))) == macs


def test_macs_of_a_fused_encoder_layer_are_those_of_its_parts():
    length, width, hidden = 6, 8, 20
    layer = nn.TransformerEncoderLayer(width, 2, hidden, batch_first=True)
    products = length * (4 * width * width + 2 * width * hidden)
    attention = 2 * length * length * width
    fused = torch.backends.mha.get_fastpath_enabled()
    assert count_macs(layer, torch.zeros(3, length, width)) == products + attention
    assert torch.backends.mha.get_fastpath_enabled() == fused


def test_shared_parameters_and_buffers_count_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[1].weight = model[0].weight
    cost = dp.measure(model, torch.zeros(2, 4), latency=False)
    assert (cost.parameters, cost.buffers) == (16 + 4 + 4 + 8, 9)
    assert cost.bytes == 4 * (16 + 4 + 4 + 8 + 8) + 8
    assert cost.latencies == ()


def test_bytes_are_nearly_those_of_the_file():
    model = nn.Sequential(nn.Linear(300, 400), nn.BatchNorm1d(400)).half()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    size = dp.measure(model, torch.zeros(2, 300).half(), latency=False).bytes
    assert size <= file.tell() <= size + 8000


class Stateful(nn.Module):
    """Everything that a forward should not do."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", None)
        self.cache = None

    def forward(self, x):
        self.calls += 1
        self.last = x.mean(0)
        self.cache = x + 1
        return self.dropout(self.norm(x)) + torch.randn_like(x)


def test_measuring_leaves_no_trace():
    model = Stateful()
    model.dropout.eval()
    before = copy.deepcopy(model.state_dict())
    flags = [module.training for module in model.modules()]
    x = torch.randn(3, 4)
    random = torch.get_rng_state()
    calls, mean = model.calls, model.norm.running_mean
    dp.measure(model, x, batch_sizes=[1, 5], seconds=0.01)
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), random)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert model.calls is calls and model.last is None and model.cache is None
    assert model.norm.running_mean is mean
    model(x).sum().backward()


def test_a_model_that_raises_is_left_as_it_was():
    model = Stateful()
    with pytest.raises(RuntimeError), undisturbed(model):
        model(torch.zeros(2, 5))
    assert model.training and model.norm.training and model.calls == 0


class TwoAtMost(nn.Linear):
    def forward(self, input):
        if len(input) > 2:
            raise ValueError("at most two\nat a time")
        return super().forward(input)


def test_a_batch_size_that_does_not_run_says_why():
    cost = dp.measure(TwoAtMost(3, 3), torch.zeros(2, 3), batch_sizes=(1, 4), seconds=0.01)
    one, four = cost.latencies
    assert one.timing is not None and not one.failure
    assert one.timing.q1 <= one.timing.median <= one.timing.q3
    assert (four.batch_size, four.timing) == (4, None)
    assert four.failure == "ValueError: at most two"


class Slow(nn.Module):
    def __init__(self, times):
        super().__init__()
        self.times = times
        self.matrix = nn.Parameter(torch.eye(200))

    def forward(self, x):
        for _ in range(self.times):
            x = x @ self.matrix
        return x


def test_compare_sees_which_one_is_faster():
    x = torch.randn(50, 200)
    slow, fast = dp.compare(Slow(12), Slow(3), x, batch_sizes=(50,), seconds=0.2)
    assert slow.macs == 12 * 200 * 200 and fast.macs == 3 * 200 * 200
    times = [cost.latencies[0].timing for cost in (slow, fast)]
    # Lower quartiles: a busy machine adds to the others.
    assert times[0] and times[1] and 2 < times[0].q1 / times[1].q1 < 8


def test_settings_are_checked():
    model, x = nn.Linear(2, 2), torch.zeros(1, 2)
    with pytest.raises(ValueError, match="batch_sizes must be ints >= 1, got 0"):
        dp.measure(model, x, batch_sizes=(1, 0))
    with pytest.raises(ValueError, match="seconds must be a number > 0, got 0"):
        dp.measure(model, x, seconds=0)
    with pytest.raises(TypeError, match=r"example_input must be a tensor or .* got "):
        dp.measure(model, "x")  # pyright: ignore
    with pytest.raises(ValueError, match="tensor with an axis"):
        dp.measure(model, (torch.zeros(()),))


class Keywords(nn.Module):
    def forward(self, ids, *, mask, table):
        return table[ids].sum(-1) * mask


def test_keyword_arguments_are_cut_where_they_have_the_batch():
    example = {
        "ids": torch.tensor([[0, 4], [1, 2], [3, 3]]),
        "mask": torch.tensor([[True, False], [True, True], [False, True]]),
        "table": torch.randn(5, 2),
    }
    inputs = Inputs.of(example)
    assert inputs.batch_size == 3
    four = inputs.at_batch(4)
    assert torch.equal(four.kwargs["ids"], example["ids"][[0, 1, 2, 0]])
    assert four.kwargs["table"] is example["table"]
    assert four.run(Keywords()).shape == (4, 2)
    assert inputs.at_batch(1).run(Keywords()).shape == (1, 2)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    size=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_random_inputs_are_of_the_examples_kind(shape, size, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(7, shape, generator=generator)
    real = torch.randn(shape, generator=generator, dtype=torch.float64)
    inputs = Inputs.of((ids, [real, None], ids > 3)).at_batch(size)
    drawn = inputs.at_random(torch.Generator().manual_seed(seed))
    assert drawn.args[0].shape == (size, *shape[1:])
    assert torch.equal(drawn.args[0].flatten().sort()[0], inputs.args[0].flatten().sort()[0])
    assert drawn.args[1][0].dtype == torch.float64 and drawn.args[1][1] is None
    assert torch.equal(drawn.args[2], inputs.args[2])
    again = inputs.at_random(torch.Generator().manual_seed(seed))
    assert torch.equal(again.args[1][0], drawn.args[1][0])
