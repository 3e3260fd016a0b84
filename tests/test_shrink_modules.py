"""Shrinking modules, dtypes, inputs and outputs of every kind, one at a time."""

import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Linear, ReLU, Sequential

import dualprox as dp
from dualprox.shrinking.couple import couplings
from dualprox.shrinking.inputs import Inputs
from dualprox.shrinking.values import Known
from shrinking import WIDTH, Between, Method, kill, shrunk, why


class Counted(Between):
    """Remembers its widths, in the ways that people write."""

    def __init__(self, view):
        super().__init__()
        self.hidden_size, self.groups, self.group_size = WIDTH, 4, 2
        self.view = [view]

    def between(self, x):
        return self.view[0](self, x)


@pytest.mark.parametrize(
    ("view", "left"),
    [
        (lambda self, x: x.view(-1, self.groups, self.group_size).relu().flatten(1), 6),
        (lambda self, x: x.view(-1, self.groups, 2).relu().view(-1, self.hidden_size), 6),
        (lambda self, x: x.view(-1, 4, 2).relu().view(-1, self.hidden_size), 8),
        (lambda self, x: x.view(-1, self.hidden_size).relu(), 5),
        (lambda self, x: x.view(-1, self.hidden_size) * self.hidden_size**-0.5, 8),
        (lambda self, x: x.relu() * self.hidden_size**-0.5, 5),
    ],
)
def test_sizes_in_attributes_are_found_or_the_channels_stay(view, left):
    model: Any = Counted(view)
    model.last.reset_parameters()
    kill(model.last, (2, 3, 7))
    slim = shrunk(model, torch.randn(3, 4))
    assert slim.first.out_features == left


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    slim = shrunk(Between().to(dtype), torch.randn(3, 4, dtype=dtype))
    assert slim.first.weight.shape == (4, 4) and slim.first.weight.dtype == dtype


ON_A_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


class Constants(Between):
    """Facts about channels meet parameters and buffers."""

    def __init__(self):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.rand(WIDTH)), nn.Buffer(torch.rand(WIDTH))
        self.last.reset_parameters()
        kill(self.last, (4,))
        with torch.no_grad():
            self.first.weight[:3] = 0

    def between(self, x):
        return (torch.sigmoid(x) * self.scale + self.shift).relu()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=ON_A_GPU)])
def test_networks_on_every_device(device):
    model, example = Constants().to(device), torch.randn(3, 4, device=device)
    slim: Any = shrunk(model, example)
    assert slim.first.out_features == 4 and slim.shift.device.type == device
    slim = dp.shrink(model, example, round_to=3, lossy=True, latency=False)
    assert slim.first.out_features == 3
    assert len(couplings(model, Inputs.of(example)).sets) == 1


def test_facts_about_a_tensor_of_a_gpu_lie_on_the_cpu():
    with FakeTensorMode():
        facts = Known.all(torch.ones(3, device="cuda"))
    assert facts.mask.device.type == facts.value.device.type == "cpu"


def test_a_model_in_training_stays_in_training_and_dropout_stays():
    model: Any = Sequential(Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), Linear(8, 2)).train()
    kill(model[3])
    model[0].eval()
    slim = shrunk(model, torch.randn(3, 4))
    assert [module.training for module in slim] == [False, True, True, True]
    assert slim[1].num_features == 4 and slim[1].num_batches_tracked == 0


def test_frozen_parameters_stay_frozen():
    model: Any = Between()
    model.first.requires_grad_(False)
    slim = shrunk(model, torch.randn(3, 4))
    assert [p.requires_grad for p in slim.parameters()] == [False, False, True, True]


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Between()

    def forward(self, pair, *, extra, scale=2.0, flag=None):
        x, (y,) = pair
        return [self.net(x + y * extra["shift"] * scale)]


def test_nested_inputs_and_outputs():
    pair = (torch.randn(3, 4), (torch.randn(3, 4),))
    example = {"pair": pair, "extra": {"shift": torch.randn(3, 1)}, "flag": None}
    assert shrunk(Nested(), example).net.first.out_features == 4


def test_a_tuple_of_inputs_with_a_number():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Between()

        def forward(self, x, y, times):
            return self.net(x * times + y)

    assert shrunk(Pair(), (torch.randn(3, 4), torch.randn(4), 3)).net.first.out_features == 4


class Branch(Between):
    def forward(self, x):
        x = self.first(x)
        if x.sum() > 0:
            x = x.relu()
        return self.last(x)


def test_control_flow_that_depends_on_data_is_refused_with_the_cause():
    with pytest.raises(dp.ShrinkError, match=r"torch\.export cannot trace Branch"):
        dp.shrink(Branch(), torch.randn(3, 4), latency=False)


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (lambda x: x * torch.where(x > 0)[0].sum(), "where"),
        (lambda x: x + x[x > 0].sum(), "index"),
        (lambda x: x + torch.masked_select(x, x > 0).mean(), "masked_select"),
        (lambda x: x[torch.nonzero(x.sum(1) > 0).flatten()], "nonzero"),
    ],
)
def test_shapes_that_depend_on_data_are_refused_by_name(function, operation):
    with pytest.raises(dp.ShrinkError, match=rf"depend on data: .*\({operation}\)"):
        dp.shrink(Method(function), torch.randn(3, 4), latency=False)


def test_control_flow_that_the_graph_can_hold_keeps_its_channels():
    class Cond(Between):
        def between(self, x):
            return torch.cond(x.sum() > 0, lambda x: x.relu(), lambda x: x.tanh(), (x,))

    slim: Any = dp.shrink(Cond(), torch.randn(3, 4), latency=False)
    assert slim.first.out_features == WIDTH
    assert "(cond)" in why(slim, "last")


def test_a_model_that_computes_under_other_modes():
    class Modes(Between):
        def between(self, x):
            with torch.no_grad():
                scale = torch.sigmoid(x)
            with torch.autocast("cpu", enabled=False):
                return x * scale

    assert shrunk(Modes(), torch.randn(3, 4)).first.out_features in (4, WIDTH)


def test_where_nothing_is_dead_nothing_changes():
    model: Any = Sequential(Linear(4, 5), ReLU(), Linear(5, 2))
    slim = shrunk(model, torch.randn(3, 4))
    assert not dp.Plan.from_dict(slim.report.plan).keep
    assert slim is not model


def test_where_all_is_dead_one_channel_of_each_layer_stays():
    model: Any = Sequential(
        nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), ReLU(), nn.Flatten(), Linear(20, 3)
    )
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    slim = shrunk(model, torch.randn(2, 2, 4, 4))
    assert slim[0].weight.shape == (1, 2, 3, 3) and slim[4].weight.shape == (3, 4)


def test_layers_of_one_channel_stay():
    model: Any = Sequential(Linear(4, 1), ReLU(), Linear(1, 1), ReLU(), Linear(1, 2))
    for layer in model[::2]:
        nn.init.zeros_(layer.weight)
    assert shrunk(model, torch.randn(3, 4))[2].weight.shape == (1, 1)


def test_a_batch_of_one():
    model: Any = Sequential(nn.Conv2d(1, 6, 3), ReLU(), nn.Flatten(), Linear(24, 2))
    kill(model[3], range(12))
    assert shrunk(model, torch.randn(1, 1, 4, 4))[0].out_channels == 3


def test_input_without_a_batch():
    model: Any = Sequential(Linear(4, 6), ReLU(), Linear(6, 2))
    kill(model[2], (0, 1))
    assert shrunk(model, torch.randn(4))[0].out_features == 4


class Positions(nn.Module):
    """Tables that are longer than the example."""

    def __init__(self):
        super().__init__()
        self.table, self.more = nn.Parameter(torch.randn(20, 6)), nn.Embedding(30, 6)
        self.steps = nn.Buffer(torch.arange(30))
        self.tasks = nn.Parameter(torch.randn(5, 6))
        self.up, self.last = Linear(6, 8), Linear(8, 2)
        kill(self.last)

    def forward(self, x, task=0):
        length = x.shape[1]
        x = x + self.table[:length] + self.more(self.steps[:length]) + self.tasks[task]
        return self.last(self.up(x).relu())


def test_tables_keep_the_rows_that_other_inputs_read():
    model = Positions()
    slim = shrunk(model, torch.randn(2, 7, 6))
    assert slim.up.out_features == 4
    longer = torch.randn(2, 15, 6)
    torch.testing.assert_close(slim(longer, 3), model(longer, 3))


def test_modules_that_the_run_never_calls_stay_whole():
    model: Any = Between()
    model.unused = Sequential(Linear(3, 7), Linear(7, 1))
    slim = shrunk(model, torch.randn(3, 4))
    assert slim.unused[0].weight.shape == (7, 3)


def test_lazy_modules():
    model: Any = Sequential(nn.LazyLinear(8), ReLU(), nn.LazyLinear(3))
    with pytest.raises(ValueError, match="must have been run once, for it is lazy"):
        dp.shrink(model, torch.randn(2, 4), latency=False)
    model(torch.randn(2, 4))
    kill(model[2])
    assert shrunk(model, torch.randn(2, 4))[0].out_features == 4


def test_a_constant_that_is_made_whole_is_not_taken_for_what_it_was():
    class Floor(Between):
        def between(self, x):
            return torch.sigmoid(x).to(torch.int64).to(x.dtype) + x

    model = Floor()
    with torch.no_grad():
        model.first.weight[:4] = 0
    shrunk(model, torch.randn(3, 4))


@pytest.mark.parametrize("groups", [4, 2])
def test_a_group_norm_with_its_groups_in_the_code(groups):
    class Norm(Between):
        def between(self, x):
            return F.group_norm(x, groups).relu()

    model = Norm()
    model.last.reset_parameters()
    kill(model.last, range(4))
    slim = shrunk(model, torch.randn(3, 4))
    assert slim.first.out_features == WIDTH


def test_group_norm_of_torch_loses_groups():
    model: Any = Sequential(nn.Conv2d(2, 8, 1), nn.GroupNorm(4, 8), nn.Conv2d(8, 2, 1))
    kill(model[2], (0, 1, 2, 6, 7))
    slim = shrunk(model, torch.randn(2, 2, 3, 3))
    assert slim[1].num_groups == 2 and slim[0].out_channels == 4


def test_a_grouped_convolution_of_which_one_group_is_left():
    model: Any = Sequential(nn.Conv2d(2, 6, 1), nn.Conv2d(6, 6, 3, groups=3), nn.Conv2d(6, 2, 1))
    kill(model[2], (0, 1, 4, 5))
    slim = shrunk(model, torch.randn(2, 2, 5, 5))
    assert slim[1].groups == 1 and slim[1].weight.shape == (2, 2, 3, 3)


def test_padding_by_other_values_than_zero():
    for mode in ("reflect", "circular", "replicate"):
        conv = nn.Conv2d(4, 3, 3, padding=1, padding_mode=mode)
        model: Any = Sequential(nn.Conv2d(2, 4, 1), nn.Sigmoid(), conv)
        with torch.no_grad():
            model[0].weight[0] = 0
        kill(model[2], (1,))
        assert shrunk(model, torch.randn(2, 2, 5, 5))[0].out_channels in (2, 3)


OPTIONS: list[dict[str, Any]] = [{"num_layers": 2}, {"bidirectional": True}, {"bias": False}]


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(
    ("kind", "options"),
    [(nn.LSTM, {"proj_size": 3}), *((k, o) for k in (nn.LSTM, nn.GRU, nn.RNN) for o in OPTIONS)],
)
def test_recurrent_layers_of_every_kind(kind, options):

    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter = Linear(3, 5)
            self.memory: Any = kind(5, 4, batch_first=True, **options)
            with torch.no_grad():
                self.memory.weight_ih_l0[:, [1, 3]] = 0
                if options.get("bidirectional"):
                    self.memory.weight_ih_l0_reverse[:, [1, 3]] = 0

        def forward(self, x, hidden=None):
            return self.memory(self.enter(x), hidden)

    slim = shrunk(Steps(), torch.randn(2, 6, 3))
    assert slim.enter.out_features == 3 and slim.memory.input_size == 3


def test_halves_that_the_code_cuts_stay_halves():
    slim = shrunk(Method(lambda x: torch.cat(x.chunk(2, 1), 1)), torch.randn(3, 4))
    assert slim.first.out_features == 6  # three of the first half are dead, one of the second
    assert "equal parts" in why(slim, "last")


def test_a_model_that_cannot_be_copied_is_refused():
    model: Any = Between()
    model.lock = threading.Lock()
    with pytest.raises(dp.ShrinkError, match="Between cannot be copied"):
        dp.shrink(model, torch.randn(3, 4), latency=False)


def test_round_to_keeps_multiples_and_the_function():
    model: Any = Between(width=16)
    kill(model.last, range(11))
    slim = shrunk(model, torch.randn(3, 4), round_to=4)
    assert slim.first.out_features == 8
    assert "multiple of 4" in why(slim, "last")


def test_pixel_shuffle_and_channel_shuffle():
    model: Any = Sequential(
        nn.Conv2d(2, 16, 1), nn.PixelShuffle(2), nn.ReLU(), nn.Conv2d(4, 8, 1),
        nn.ChannelShuffle(2), nn.Conv2d(8, 4, 1), nn.PixelUnshuffle(2), nn.Conv2d(16, 2, 1),
    )  # fmt: skip
    kill(model[3], (1, 2))
    kill(model[5], (0, 1, 6))
    kill(model[7], (*range(4), 9))
    slim = shrunk(model, torch.randn(2, 2, 3, 3))
    widths = [slim[0].out_channels, slim[3].out_channels, slim[5].out_channels]
    assert widths == [8, 6, 3]
