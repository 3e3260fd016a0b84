"""Networks that read their channels in ways a tool for pruning gets wrong.

Refusing, or keeping a channel and saying why, is right; a wrong network never is. In each case
half of the channels of a layer are read by no weight, and the code has another hold on them.
"""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Linear, Sequential
from torch.nn.utils import parametrizations

from shrinking import DEAD, WIDTH, Between, Method, kill, shrunk, why

STAYS = {
    "by its index": (lambda x: x * x[:, 2:3].sigmoid(), "fixed indices"),
    "by a select": (lambda x: x + x.select(1, 6).unsqueeze(1), "index"),
    "by a list of indices": (lambda x: x[:, [7, 1, 2, 3, 4, 5, 6, 0]], "unknown"),
    "by fixed slices": (lambda x: torch.cat([x[:, 4:], x[:, :4]], 1), "(slice)"),
    "by a view of fixed shape": (lambda x: x.view(-1, 4, 2).relu().view(-1, 8), "fewer channels"),
    "by a fixed split": (lambda x: torch.cat(torch.split(x, [3, 5], 1)[::-1], 1), "fewer channels"),
    "by the mean": (lambda x: x - x.mean(1, keepdim=True), "sums over it"),
    "by a softmax": (lambda x: x.softmax(1), "reads all along the axis"),
    "by sorting": (lambda x: x.sort(1).values, "unknown"),
    "by the largest": (lambda x: x - x.max(1, keepdim=True).values, "unknown"),
    "by a running sum": (lambda x: x.cumsum(1), "reads all along the axis"),
    "by a norm": (lambda x: F.normalize(x, dim=1), "sums over it"),
    "by a layer norm": (lambda x: F.layer_norm(x, (8,)), "mean and variance"),
    "by a constant of its width": (lambda x: x * torch.arange(8.0), ""),
    "by a scalar of its width": (lambda x: x / math.sqrt(x.shape[1]), "width"),
    "by adding what is fixed": (lambda x: x + torch.linspace(0, 1, 8), ""),
    "by writing into it": (lambda x: x.clone().index_fill_(1, torch.tensor([1]), 2.0), "unknown"),
    "by a scatter": (lambda x: torch.zeros(len(x), 8).index_copy(1, torch.arange(8), x), ""),
    "by its outer product": (lambda x: (x[:, :, None] @ x[:, None, :]).sum(1), "sums over it"),
    "by a broadcast in einsum": (lambda x: torch.einsum("bd,bd->bd", x, x[:, 1:2]), "unknown"),
    "by a shift": (lambda x: F.pad(x, (1, -1)), ""),
    "by rolling": (lambda x: x.roll(1, 1), "moves all along the axis"),
}


@pytest.mark.parametrize("case", STAYS)
def test_channels_that_code_reads_stay_with_a_reason(case):
    function, reason = STAYS[case]
    slim = shrunk(Method(function), torch.randn(3, 4))
    assert slim.first.out_features == WIDTH
    assert reason in why(slim, "last")
    assert why(slim, "last").startswith("4: ") or "; " in why(slim, "last")


GOES = {
    "activations": lambda x: F.gelu(x).tanh().clamp(min=-0.5),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "dropout of nothing": lambda x: F.dropout(x, 0.0, training=True),
    "in-place operations": lambda x: x.clone().mul_(2).relu_(),
    "a number for all": lambda x: x * 3 + 1,
    "a view of open shape": lambda x: x.view(x.shape[0], -1, 1).relu().flatten(1),
    "a transpose": lambda x: x.t().relu().t(),
    "a stack that is summed": lambda x: torch.stack([x, x.relu()]).sum(0),
    "a condition on its entries": lambda x: torch.where(x > 0, x, 0.1 * x),
    "a constant of any width": lambda x: x + torch.ones_like(x),
    "a copy to another dtype": lambda x: x.to(torch.bfloat16).float(),
    "no gradients": lambda x: x * x.detach(),
    "an unused result": lambda x: (x.sum(1), x.relu())[1],
    "padding of the batch": lambda x: F.pad(x, (0, 0, 0, 1))[:-1],
    "rolling the batch": lambda x: x.roll(1, 0),
}


@pytest.mark.parametrize("case", GOES)
def test_channels_that_nothing_reads_go(case):
    slim = shrunk(Method(GOES[case]), torch.randn(4, 4))
    assert slim.first.out_features == WIDTH - len(DEAD)


@torch.library.custom_op("dualprox_tests::halve", mutates_args=())
def halve(x: Tensor) -> Tensor:
    return x / 2


@halve.register_fake
def _(x):
    return torch.empty_like(x)


def test_a_custom_operation_keeps_its_channels():
    slim = shrunk(Method(lambda x: halve(x)), torch.randn(3, 4))
    assert slim.first.out_features == WIDTH
    assert "dualprox_tests::halve" in why(slim, "last")


def test_an_operation_that_random_numbers_enter_keeps_its_channels():
    slim = shrunk(Method(lambda x: F.dropout(x, 0.5, training=True)), torch.randn(3, 4))
    assert slim.first.out_features == WIDTH


class TwoHeads(Between):
    def __init__(self):
        super().__init__()
        self.other = Linear(WIDTH, 2)
        kill(self.other, (0, 1, 2))

    def forward(self, x):
        x = torch.relu(self.first(x))
        return {"one": self.last(x), "two": (self.other(x), None)}


def test_a_second_head_keeps_what_it_reads():
    slim = shrunk(TwoHeads(), torch.randn(3, 4))
    assert slim.first.out_features == WIDTH - 2
    assert "other (linear) reads it" in why(slim, "last")


class SecondOutput(Between):
    def forward(self, x):
        x = self.first(x)
        return self.last(x), x


def test_a_second_output_keeps_all_channels():
    slim = shrunk(SecondOutput(), torch.randn(3, 4))
    assert slim.first.out_features == WIDTH
    assert "output of the network" in why(slim, "last")


def test_an_output_that_is_used_twice_keeps_what_either_reads():
    class Twice(Between):
        def forward(self, x):
            x = self.first(x)
            return self.last(x + x.tanh()) + self.last(x.exp())

    assert shrunk(Twice(), torch.randn(3, 4)).first.out_features == WIDTH - len(DEAD)


class Applied(nn.Module):
    """One layer, twice."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = Linear(6, 6), Linear(6, 2)
        kill(self.layer, (0, 1))
        kill(self.last, (0, 1, 5))

    def forward(self, x):
        return self.last(torch.relu(self.layer(torch.relu(self.layer(x)))))


def test_a_layer_that_is_applied_twice_keeps_what_its_input_needs():
    slim = shrunk(Applied(), torch.randn(3, 6))
    assert slim.layer.weight.shape == (6, 6)


@pytest.mark.parametrize("bias", [True, False])
def test_constants_do_not_go_into_a_bias_that_others_use(bias):
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.middle = Linear(4, 6), Linear(6, 6, bias=bias)
            self.again, self.last = Linear(6, 6, bias=bias), Linear(6, 2)
            self.again.weight = self.middle.weight
            with torch.no_grad():
                self.first.weight[:3] = 0

        def forward(self, x):
            x = self.middle(torch.sigmoid(self.first(x)))
            return self.last(torch.sigmoid(self.again(x)))

    slim = shrunk(Constant(), torch.randn(3, 4))
    assert slim.middle.weight is slim.again.weight


def test_a_constant_does_not_go_into_a_tied_layer_that_is_not_run():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = Linear(4, 6)
            self.idle, self.last = Linear(6, 3, bias=False), Linear(6, 3, bias=False)
            self.last.weight = self.idle.weight
            with torch.no_grad():
                self.first.weight[:3] = 0

        def forward(self, x):
            return self.last(torch.sigmoid(self.first(x)))

    slim = shrunk(Half(), torch.randn(3, 4))
    assert slim.first.out_features == 6 and slim.last.weight is slim.idle.weight


def test_constants_do_not_go_through_a_padded_border():
    model: Any = Sequential(nn.Conv2d(2, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 3, 3, padding=1))
    with torch.no_grad():
        model[0].weight[:2] = 0
    assert shrunk(model, torch.randn(2, 2, 5, 5))[0].out_channels == 4


def test_a_pool_that_sums_keeps_zeros_alone():
    pool = nn.AvgPool2d(2, divisor_override=1)
    model: Any = Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), pool, nn.Conv2d(4, 3, 1))
    with torch.no_grad():
        model[0].weight[:2] = 0
        model[0].bias[:2] = torch.tensor([1.0, -1.0])
    assert shrunk(model, torch.randn(2, 2, 4, 4))[0].out_channels == 3


def test_constants_go_into_a_bias_that_the_layer_did_not_have():
    model: Any = Sequential(Linear(4, 6), nn.Sigmoid(), Linear(6, 3, bias=False))
    with torch.no_grad():
        model[0].weight[:2] = 0
    slim = shrunk(model, torch.randn(2, 4))
    assert slim[0].out_features == 4
    assert slim[2].bias.shape == (3,)


def test_a_layer_of_ones_own_without_bias_keeps_constant_channels():
    class Own(Linear):
        def forward(self, input):
            return F.linear(input, self.weight)

    model: Any = Sequential(Linear(4, 6), nn.Sigmoid(), Own(6, 3, bias=False))
    with torch.no_grad():
        model[0].weight[:2] = 0
    assert shrunk(model, torch.randn(2, 4))[0].out_features == 6


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("apply", [F.linear, torch.matmul])
def test_constants_do_not_go_into_a_bias_that_the_code_does_not_read(apply, bias):
    class Borrowed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.layer = Linear(4, 6), Linear(6, 6, bias=bias)
            with torch.no_grad():
                self.first.weight[:3] = 0

        def forward(self, x):
            return apply(torch.sigmoid(self.first(x)), self.layer.weight)

    assert shrunk(Borrowed(), torch.randn(3, 4)).first.out_features == 6


class Tied(nn.Module):
    """Words in and out by one table, and a layer between."""

    def __init__(self):
        super().__init__()
        self.words, self.up = nn.Embedding(9, 6), Linear(6, WIDTH)
        self.down, self.out = Linear(WIDTH, 6), Linear(6, 9, bias=False)
        self.out.weight = self.words.weight
        kill(self.words, (1, 4))
        kill(self.down)

    def forward(self, x):
        return self.out(self.down(torch.relu(self.up(self.words(x)))))


def test_tied_weights_stay_tied_and_lose_the_same():
    slim = shrunk(Tied(), torch.randint(9, (2, 5)))
    assert slim.out.weight is slim.words.weight
    assert slim.words.weight.shape == (9, 4)
    assert slim.up.weight.shape == (WIDTH - len(DEAD), 4)


@pytest.mark.parametrize(
    ("parametrize", "width"),
    [
        (parametrizations.weight_norm, 4),
        (parametrizations.spectral_norm, 8),
        (parametrizations.orthogonal, 4),
    ],
)
def test_parametrized_weights_are_right(parametrize, width):
    model: Any = Between()
    parametrize(model.first)
    slim = shrunk(model.eval(), torch.randn(3, 4))
    assert slim.first.weight.shape == (width, 4)


class Scaled(Between):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(WIDTH))
        self.shift = nn.Buffer(torch.randn(1, WIDTH))
        self.table = nn.Buffer(torch.randn(WIDTH, 3))

    def between(self, x):
        return torch.relu(x * self.scale + self.shift)


def test_parameters_and_buffers_per_channel_are_cut_too():
    slim = shrunk(Scaled(), torch.randn(3, 4))
    assert slim.scale.shape == (4,) and slim.shift.shape == (1, 4)
    assert isinstance(slim.scale, nn.Parameter)
    assert dict(slim.named_buffers())["shift"] is slim.shift
    assert slim.table.shape == (WIDTH, 3)  # the run never reads it


def test_a_scale_of_zero_kills_a_channel():
    model = Scaled()
    with torch.no_grad():
        model.scale[1] = model.shift[0, 1] = 0
    assert shrunk(model, torch.randn(3, 4)).first.out_features == 3
