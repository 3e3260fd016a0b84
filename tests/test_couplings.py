"""Which slices read one channel, found on the graph of small networks whose answer is known."""

from typing import Any

import torch
from torch import nn

import dualprox as dp
from dualprox.shrinking.couple import Couplings, couplings
from dualprox.shrinking.inputs import Inputs


def found(model: nn.Module, example: object, free: tuple[str, ...] = ()) -> Couplings:
    return couplings(model.eval(), Inputs.of(example), free)  # pyright: ignore[reportArgumentType]


def names(result: Couplings) -> list[set[str]]:
    return [{reader.name for reader in coupled.readers} for coupled in result.sets]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.a = nn.Conv2d(6, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.b = nn.Conv2d(5, 6, 3, padding=1)
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = x + self.b(torch.relu(self.norm(self.a(x))))
        return self.head(x.mean((2, 3)))


def test_all_readers_of_a_residual_stream_are_one_group_per_channel() -> None:
    result = found(Residual(), torch.randn(2, 3, 8, 8))
    assert names(result) == [{"a.weight", "head.weight"}, {"b.weight"}]
    stream = result.sets[0]
    assert stream.count == 6
    assert all(reader.groups == tuple(range(6)) for reader in stream.readers)
    assert result.stays.keys() == {"stem.weight"}


def test_a_concatenation_keeps_the_channels_of_its_parts_apart() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2)
            self.c = nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.a(x))
            return self.c(torch.cat([torch.relu(self.b(x)), x], 1))

    (dense,) = found(Dense(), torch.randn(2, 4)).sets
    groups = {reader.name: reader.groups for reader in dense.readers}
    assert dense.count == 5
    assert groups["c.weight"][2:] == groups["b.weight"]
    assert len(set(groups["c.weight"])) == 5


def test_a_flattened_channel_is_one_group_of_all_its_places() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4, 2))
    (only,) = found(model, torch.randn(2, 1, 4, 4)).sets
    assert only.readers[0].groups == (0,) * 4 + (1,) * 4 + (2,) * 4


def test_heads_and_hidden_neurons_of_a_transformer_are_groups_and_its_stream_stays() -> None:
    layer = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True)
    result = found(layer, torch.randn(2, 5, 12))
    assert names(result) == [{"self_attn.out_proj.weight"}, {"linear2.weight"}]
    heads, neurons = result.sets
    assert heads.readers[0].groups == (0,) * 4 + (1,) * 4 + (2,) * 4
    assert neurons.count == 20
    assert "self_attn.in_proj_weight" in result.stays


def test_a_depthwise_convolution_dies_with_the_channel_that_it_passes_on() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 2, 1)
    )
    (only,) = found(model, torch.randn(2, 2, 5, 5)).sets
    assert {reader.name for reader in only.readers} == {"1.weight", "3.weight"}
    assert only.count == 4


def test_the_hidden_units_of_a_plain_lstm_are_read_by_itself_and_by_what_follows() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.lstm(x)[0])

    (units,) = found(Tagger(), torch.randn(2, 5, 3)).sets
    assert {r.name for r in units.readers} == {"lstm.weight_hh_l0", "head.weight"}


def test_channels_that_a_weight_left_free_reads_have_no_group() -> None:
    result = found(Residual(), torch.randn(2, 3, 8, 8), free=("head.weight",))
    assert names(result) == [{"b.weight"}]
    assert result.stays["a.weight"] == "head.weight, which is left free, reads it"


def test_a_channel_read_by_its_index_has_no_group() -> None:
    class Indexed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.a(x))
            return self.b(x) * x[:, 3:4]

    result = found(Indexed(), torch.randn(2, 4))
    assert not any(3 < len(r.groups) and r.groups[3] >= 0 for s in result.sets for r in s.readers)


def test_the_model_is_untouched_and_its_weights_do_not_matter() -> None:
    model = Residual()
    nn.init.zeros_(model.a.weight)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    assert len(found(model.train(), torch.randn(2, 3, 8, 8)).sets) == 2
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_parts_that_the_code_cuts_alike_go_place_by_place() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            left, right = torch.relu(self.a(x)).chunk(2, 1)
            return self.b(left) + self.c(right)

    (halves,) = found(Halves(), torch.randn(2, 4)).sets
    assert {reader.name: reader.groups for reader in halves.readers} == {
        "b.weight": (0, 1, 2),
        "c.weight": (0, 1, 2),
    }


def test_every_dead_group_of_a_residual_network_goes() -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    x = torch.randn(2, 3, 8, 8)
    stream = found(model, x).sets[0]
    with torch.no_grad():
        for reader in stream.readers:
            model.get_parameter(reader.name)[:, [1, 4]] = 0.0
    slim = dp.shrink(model, x, latency=False)
    assert slim.get_parameter("stem.weight").shape[0] == 4
    assert slim.get_parameter("b.weight").shape[0] == 4


def test_parameters_made_in_another_order_than_they_are_used_keep_their_own_slices() -> None:
    """Both weights that read channels have one shape, and other channels: no shape would tell."""

    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.second = nn.Linear(7, 2), nn.Linear(7, 2)
            self.first, self.other = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b = torch.relu(self.first(x)), torch.relu(self.other(x))
            return self.second(torch.cat([a, b], 1)) + self.last(torch.cat([b, a], 1))

    torch.manual_seed(0)
    model, x = Backwards().eval(), torch.randn(2, 4)
    groups = dp.param_groups(model, dp.GroupLasso(1.0), coupled=True, example_input=x)
    (group,) = [group for group in groups if group["penalty"] is not None]
    assert [name for name, _ in group["params"]] == ["last.weight", "second.weight"]
    opt = dp.RMDA(groups, lr=1.0)
    with torch.no_grad():
        members = group["penalty"].coupling.members
        for (_, param), member in zip(group["params"], members, strict=True):
            param[:, list(member.groups).index(0)] = 0
    assert [layer.size for layer in dp.structure(opt).layers] == [6]
    slim: Any = dp.shrink(model, x, latency=False)
    # The one dead group is one channel that goes.
    assert slim.first.out_features + slim.other.out_features == 6
