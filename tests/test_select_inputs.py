"""Inputs that must stay, but that a layer need not read."""

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import LayerNorm, Linear, ReLU, Sequential

import dualprox as dp
from shrinking import Block, block, kill, mlp, run, selected, shrunk, why
from test_shrink_zoo import ZOO, damage


def pruned_mlp() -> Any:
    model: Any = mlp()
    kill(model[0], (0, 3, 4, 9))
    kill(model[2], (1,))
    return model


def test_pixels_that_no_neuron_reads_are_not_read() -> None:
    model, x = pruned_mlp(), torch.randn(4, 10)
    slim = selected(model, x)
    assert slim[0].index.tolist() == [1, 2, 5, 6, 7, 8]
    assert slim[0].weight.shape == (5, 6) and slim[0].of_features == 10
    assert sum(p.numel() for p in slim.parameters()) == 5 * 6 + 5 + 3 * 5 + 3
    cost = dp.measure(slim, x, latency=False)
    assert cost.parameters == 53 and cost.buffers == 6 and cost.macs == 45
    x[:, 0] = torch.nan  # is not read
    assert torch.equal(slim(x), slim(x.nan_to_num()))


def test_a_weight_that_only_dead_neurons_had_keeps_no_pixel() -> None:
    model: Any = mlp()
    with torch.no_grad():
        model[0].weight[[0, 2, 3, 4, 5], 7] = 0
    kill(model[2], (1,))
    slim = selected(model, torch.randn(4, 10))
    assert 7 not in slim[0].index.tolist()
    row = slim.report.layers[0]
    assert (row.dead, row.removed, row.stayed) == (1, 1, "")


def test_layers_behind_a_layer_norm_select_each_their_own_channels() -> None:
    model, tokens = block()
    slim = selected(model, tokens)
    widths = [slim.get_submodule(name).in_features for name in ("q", "k", "v", "up", "down")]
    assert widths == [9, 11, 1, 10, 20]
    assert slim.v.index.tolist() == [11] and type(slim.o) is Linear


def test_the_report_says_what_is_selected() -> None:
    slim = selected(pruned_mlp(), torch.randn(4, 10))
    row = slim.report.layers[0]
    assert row.after == "Linear 6->5, selects 6 of 10 inputs"
    assert (row.dead, row.removed, row.stayed) == (4, 4, "")
    assert "selects 6 of 10 inputs" in str(slim.report)
    assert slim.report.plan["select"] == {"0": [1, 2, 5, 6, 7, 8]}
    assert slim.report.after.parameters == 53


def test_without_being_asked_nothing_is_selected() -> None:
    slim = shrunk(pruned_mlp(), torch.randn(4, 10))
    assert type(slim[0]) is Linear and slim[0].in_features == 10
    assert dp.Plan.from_dict(slim.report.plan).select == {}
    assert "input or an output" in why(slim, "0")


def test_one_input_stays() -> None:
    model: Any = Linear(4, 3)
    kill(model, range(4))
    slim = selected(model, torch.randn(2, 4))
    assert isinstance(slim, dp.SelectLinear) and slim.index.tolist() == [0]
    again = selected(slim, torch.randn(2, 4))
    assert again.index.tolist() == [0]
    assert "selects 1 of 4" in again.report.layers[0].before


def test_a_number_selected_is_filled_up_with_dead_inputs() -> None:
    slim = selected(pruned_mlp(), torch.randn(4, 10), round_to=4)
    assert slim[0].index.tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert not slim[0].weight[:, 3].any()
    assert why(slim, "0") == "2: it fills the number selected"
    model: Any = mlp()
    kill(model[0], (0,))
    assert type(selected(model, torch.randn(4, 10), round_to=16)[0]) is Linear


def test_selecting_loses_nothing_where_live_channels_are_given_up() -> None:
    model: Any = Sequential(Linear(10, 16), ReLU(), Linear(16, 3))
    kill(model[0], (0, 3, 4))
    kill(model[2], range(7))
    x = torch.randn(4, 10)
    plain = dp.shrink(model, x, round_to=8, lossy=True, latency=False)
    slim: Any = dp.shrink(model, x, round_to=8, lossy=True, select_inputs=True, latency=False)
    assert slim[0].weight.shape == (8, 8)
    torch.testing.assert_close(slim(x), plain(x))


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32 - 1), share=st.sampled_from([0.1, 0.4, 0.8]))
def test_an_mlp_keeps_the_weights_that_are_counted(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    widths = [int(n) for n in rng.integers(2, 9, 4)]
    layers = [Linear(n, m).double() for n, m in itertools.pairwise(widths)]
    for layer in layers:
        dead = rng.random(layer.in_features) < share
        dead[rng.integers(layer.in_features)] = False
        kill(layer, np.flatnonzero(dead))
    model = Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])
    x = torch.randn(5, widths[0], dtype=torch.float64)

    slim = dp.shrink(model, x, select_inputs=True, latency=False)

    torch.testing.assert_close(slim(x), model(x), rtol=1e-12, atol=1e-12)
    rows, left = np.arange(widths[-1]), 0
    for layer in reversed(layers):
        columns = np.flatnonzero(layer.weight.detach().numpy()[rows].any(0))
        left += len(rows) * len(columns) + len(rows)
        rows = columns
    assert sum(p.numel() for p in slim.parameters()) == left


WITH_LAYERS_THAT_STAY = ("mlp", "lenet", "encoder_norm_first", "encoder_norm_last", "lstm_tagger")


@pytest.mark.parametrize("name", [*WITH_LAYERS_THAT_STAY, "hand_written_attention"])
@settings(max_examples=2, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32 - 1), share=st.sampled_from([0.3, 0.6]))
def test_every_network_of_the_zoo_selects_what_it_can(name: str, seed: int, share: float) -> None:
    torch.manual_seed(seed)
    model: Any = ZOO[name]().double().eval()
    damage(model, seed, share)
    example = model.example()
    example = example.double() if example.is_floating_point() else example
    slim: Any = dp.shrink(model, example, select_inputs=True, latency=False)
    for number in range(3):
        x = model.example().to(example) if number else example
        torch.testing.assert_close(slim(x), model(x), rtol=1e-9, atol=1e-9)
    for path, layer in slim.named_modules():
        if type(layer) is Linear and layer.in_features > 1:
            zero = not (layer.weight != 0).any(0).all()
            assert not zero or "selects none" in why(slim, path), path
    plan = dp.Plan.from_dict(json.loads(json.dumps(slim.report.plan)))
    dp.apply_plan(ZOO[name]().double(), plan).load_state_dict(slim.state_dict())


def test_what_was_selected_is_selected_from_again() -> None:
    x = torch.randn(4, 10)
    first = selected(pruned_mlp(), x)
    kill(first[0], (0, 3))
    kill(first[2], (2,))
    second = shrunk(first, x)
    assert second[0].index.tolist() == [2, 5, 7, 8] and second[0].weight.shape == (4, 4)
    assert type(second[0]) is dp.SelectLinear and second[0].in_features == 4
    third = selected(second, x)
    assert not dp.Plan.from_dict(third.report.plan).keep
    plans = [dp.Plan.from_dict(slim.report.plan) for slim in (first, second)]
    for whole in (plans[1].after(plans[0]), dp.Plan().after(plans[1].after(plans[0]))):
        again = dp.apply_plan(mlp(), whole)
        again.load_state_dict(second.state_dict())
        assert torch.equal(again(x), second(x))


def test_a_layer_selects_after_an_earlier_plan_has_cut_it() -> None:
    model, tokens = block()
    kill(model.down, range(7))
    first: Any = dp.shrink(model, tokens, latency=False)
    second = selected(first, tokens)
    plans = [dp.Plan.from_dict(slim.report.plan) for slim in (first, second)]
    again = dp.apply_plan(Block(), plans[1].after(plans[0])).eval()
    again.load_state_dict(second.state_dict())
    torch.testing.assert_close(again(tokens), model(tokens))
    assert again.get_parameter("up.weight").shape == (13, 10)


def test_a_bias_that_a_selecting_layer_gets_later_is_in_the_plan() -> None:
    def make() -> Any:
        return Sequential(Linear(5, 4), nn.Sigmoid(), Linear(4, 4, bias=False), LayerNorm(4))

    torch.manual_seed(0)
    model, x = make(), torch.randn(3, 5)
    kill(model[0], (1,))
    kill(model[2], (3,))
    first = selected(model, x)
    with torch.no_grad():
        first[0].weight[0] = 0  # sigmoid(bias) is constant
    second = shrunk(first, x)
    assert second[2].bias is not None and second[0].weight.shape == (2, 4)
    plans = [dp.Plan.from_dict(slim.report.plan) for slim in (first, second)]
    again = dp.apply_plan(make(), plans[1].after(plans[0]))
    again.load_state_dict(second.state_dict())
    torch.testing.assert_close(again(x), first(x))


def test_a_module_of_two_names_selects_under_both() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.more = Linear(6, 6), nn.ModuleList()
            self.more.append(self.a)
            self.norm = LayerNorm(6)

        def forward(self, x: Tensor) -> Tensor:
            return self.more[0](self.norm(self.a(x)))

    model, x = Twice(), torch.randn(3, 6)
    kill(model.a, (1, 4))
    slim = selected(model, x)
    assert slim.a is slim.more[0] and slim.a.in_features == 4
    kill(slim.a, (0,))
    again = shrunk(slim, x)
    whole = dp.Plan.from_dict(again.report.plan).after(dp.Plan.from_dict(slim.report.plan))
    fresh = dp.apply_plan(Twice(), whole)
    fresh.load_state_dict(again.state_dict())
    torch.testing.assert_close(fresh(x), slim(x))


def test_torchs_fused_encoder_runs_the_selecting_layer() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    kill(model.layers[1].get_submodule("linear1"), (0, 5))
    slim = selected(model, torch.randn(2, 3, 8))
    assert slim.layers[1].linear1.in_features == 6 and type(slim.layers[0].linear1) is Linear


def test_what_cannot_select_says_why() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.hooked, self.own = Linear(6, 6), Linear(6, 6), Own(6, 6)
            self.sized, self.free = Linear(6, 6), Linear(6, 6)
            self.hooked.register_forward_hook(lambda *_: None)

        def forward(self, x: Tensor) -> Tensor:
            x = x.view(-1, self.sized.in_features)
            y = self.fc(x) + self.fc.weight.sum() + self.hooked(x) + self.own(x)
            return y + self.sized(x) + self.free(x)

    class Own(Linear):
        """Linear by another name."""

    model = Reads()
    for layer in model.children():
        kill(layer, (1, 2))
    slim = selected(model, torch.randn(2, 6))
    assert "selects none: its weight is read by more than the layer itself" in why(slim, "fc")
    assert "selects none: it has hooks" in why(slim, "hooked")
    assert "selects none: Own may do more than Linear" in why(slim, "own")
    assert "selects none: the network does not run, or not alike," in why(slim, "sized")
    assert slim.free.in_features == 4 and slim.sized.in_features == 6


def test_a_head_tied_to_an_embedding_stays() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm, self.head = nn.Embedding(7, 6), LayerNorm(6), Linear(6, 7)
            self.head.weight = self.embed.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.norm(self.embed(tokens)))

    model = Tied()
    kill(model.head, (2,))
    slim = selected(model, torch.randint(0, 7, (2, 3)))
    assert "selects none: its weight is also embed.weight" in why(slim, "head")
    assert slim.head.weight is slim.embed.weight


def test_files_rebuild_a_network_that_selects(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    model, tokens = block()
    slim = selected(model, tokens)
    dp.save_slim(slim, tmp_path)
    again: Any = dp.load_slim(Block(), tmp_path).eval()
    assert again.q.in_features == 9
    assert torch.equal(again(tokens), slim(tokens))


def test_exported_programs_select_at_any_batch(tmp_path: Path) -> None:
    x = torch.randn(4, 10)
    slim = selected(pruned_mlp(), x)
    dp.save_program(slim, x, tmp_path / "slim.pt2")
    program = torch.export.load(tmp_path / "slim.pt2").module()
    more = torch.randn(7, 10)
    torch.testing.assert_close(program(more), slim(more))


def test_onnxruntime_selects_too(tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    slim = selected(pruned_mlp(), torch.randn(4, 10))
    assert dp.save_onnx(slim, torch.randn(1, 10), tmp_path / "slim.onnx") < 1e-5
    session = ort.InferenceSession(tmp_path / "slim.onnx")
    more = torch.randn(6, 10)
    (found,) = session.run(None, {session.get_inputs()[0].name: more.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), slim(more))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes_gradients_and_copies(dtype: torch.dtype) -> None:
    model = pruned_mlp().to(dtype)
    model[0].weight.requires_grad_(False)
    slim = selected(model, torch.randn(4, 10, dtype=dtype))
    assert slim[0].weight.dtype == dtype and not slim[0].weight.requires_grad
    assert slim[0].bias.requires_grad and slim[0].index.dtype == torch.int64
    x = torch.randn(10, dtype=dtype)
    assert torch.equal(copy.deepcopy(slim)(x), slim(x)) and slim(x).shape == (3,)


def test_making_one_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    dp.SelectLinear.of(Linear(1, 1, device="meta").to_empty(device="cpu"), [0])
    assert torch.equal(before, torch.get_rng_state())


class Shuffled(nn.Module):
    """Selects channels of a hidden layer by a buffer of its own."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.first, self.last, self.where = Linear(4, 6), Linear(5, 2), where
        self.order = nn.Buffer(torch.tensor([4, 0, 1, 1, 3]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        order = self.order + 1 if self.where == "computed" else self.order
        return self.last(x.index_select(-1, order % 6))


@pytest.mark.parametrize("where", ["own", "computed"])
def test_channels_selected_by_a_networks_own_buffer_stay_in_place(where: str) -> None:
    torch.manual_seed(0)
    model = Shuffled(where)
    kill(model.last, (1, 3))
    slim = shrunk(model, torch.randn(3, 4))
    assert slim.first.out_features == 6
    assert slim.last.in_features == 3 and len(slim.order) == 3
    assert "reads it by its index" in why(slim, "first") or not slim.report.layers[0].dead


def test_channels_selected_by_an_input_stay() -> None:
    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = Linear(4, 6), Linear(3, 2)

        def forward(self, x: Tensor, order: Tensor) -> Tensor:
            return self.last(self.first(x).index_select(-1, order))

    model = Given()
    kill(model.last, (1,))
    slim = shrunk(model, (torch.randn(2, 4), torch.tensor([5, 0, 2])))
    assert slim.first.out_features == 6 and slim.last.in_features == 3
    arguments = torch.randn(2, 4), torch.tensor([1, 1, 3])
    torch.testing.assert_close(run(slim, arguments), run(model, arguments))
