import copy
import importlib
import io
import json
import pickle
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import dualprox as dp
from dualprox.shrinking.agreement import agreement, agreements
from dualprox.shrinking.factorize import LowRank, rounding_level
from dualprox.shrinking.inputs import Inputs
from dualprox.shrinking.replace import with_layers_exchanged

quick: dict[str, Any] = {"batch_sizes": (2,), "seconds": 0.01}


def factorize(*args: Any, **kwargs: Any) -> Any:
    """Of a type that lets a test look into the layers."""
    return dp.factorize(*args, **kwargs)


def factorize_like(*args: Any) -> Any:
    return dp.factorize_like(*args)


def lower_rank_(layer: Any, rank, rows="out", seed=0) -> Any:
    """Give a layer a weight of this rank, made in its own dtype from random factors."""
    generator = torch.Generator().manual_seed(seed)
    weight = layer.weight.data
    shape = weight.shape if rows == "out" else (weight.shape[1], weight.shape[0], *weight.shape[2:])
    matrix = weight.new_empty(shape).flatten(1)
    wide = torch.promote_types(weight.dtype, torch.float32)
    left = torch.randn(matrix.shape[0], rank, generator=generator).to(wide)
    right = torch.randn(rank, matrix.shape[1], generator=generator).to(wide)
    product = (left @ right / matrix.shape[1] ** 0.5).view(shape)
    weight.copy_(product if rows == "out" else product.transpose(0, 1))
    return layer


def lenet() -> Any:
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 8, 5, padding=2),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(8, 16, 3, stride=2, padding="valid"),
            norm=nn.BatchNorm2d(16),
            relu2=nn.ReLU(),
            flatten=nn.Flatten(),
            fc1=nn.Linear(16 * 9, 60),
            relu3=nn.ReLU(),
            fc2=nn.Linear(60, 10),
        )
    )


@pytest.fixture
def thin_lenet():
    torch.manual_seed(0)
    model = lenet()
    lower_rank_(model.conv2, 3)
    lower_rank_(model.fc1, 7)
    return model, factorize(model, torch.randn(3, 1, 16, 16), **quick)


def test_a_network_of_low_rank_becomes_thinner(thin_lenet):
    model, thin = thin_lenet
    report = thin.report
    rows = {layer.name: layer for layer in report.layers}
    assert [rows[name].removed for name in ("conv1", "conv2", "fc1", "fc2")] == [0, 13, 53, 0]
    assert thin.conv2[0].weight.shape == (3, 8, 3, 3) and thin.conv2[1].weight.shape[2:] == (1, 1)
    assert thin.fc1[0].weight.shape == (7, 144) and thin.fc1[0].bias is None
    assert torch.equal(thin.fc1[1].bias, model.fc1.bias)
    saved = (16 * 72 - 3 * (16 + 72)) + (60 * 144 - 7 * (60 + 144))
    assert report.before.parameters - report.after.parameters == saved
    assert sum(p.numel() for p in thin.parameters()) == report.after.parameters
    assert rows["conv2"].parameters_after == 3 * (16 + 72) + 16
    places = 3 * 3
    conv = places * (16 * 72 - 3 * (16 + 72))
    assert report.before.macs - report.after.macs == conv + 60 * 144 - 7 * (60 + 144)
    assert 0 < report.max_abs_diff < 1e-5
    assert "rank 7" in str(report) and "latency, batch 2" in str(report)


def test_the_original_stays_as_it_was(thin_lenet):
    model, thin = thin_lenet
    before = copy.deepcopy(model.state_dict())
    again = factorize(model, torch.randn(3, 1, 16, 16), **quick)
    assert model.training and isinstance(model.fc1, nn.Linear) and not hasattr(model, "report")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    ours = {p.data_ptr() for p in model.parameters()}
    assert not ours & {p.data_ptr() for p in thin.parameters()}
    assert again.training and again.conv2.training
    assert again.report.plan == thin.report.plan


def test_random_numbers_go_on_as_if_nothing_had_been():
    model = lower_rank_(nn.Linear(9, 8), 1)
    x = torch.randn(2, 9)
    before = torch.get_rng_state()
    factorize(model, x, **quick)
    assert torch.equal(torch.get_rng_state(), before)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_factorized_linear_layer_computes_what_numpy_does(data):
    draw = data.draw
    out, inside = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    rank = draw(st.integers(0, min(out, inside)))
    generator = np.random.default_rng(draw(st.integers(0, 1000)))
    # Small whole numbers: the matrix is exact in float32, and so is its rank.
    factors = generator.integers(-3, 4, (out, rank)), generator.integers(-3, 4, (rank, inside))
    matrix = (factors[0] @ factors[1]).astype(np.float64)
    bias = generator.normal(size=out)
    x = generator.normal(size=(5, inside))
    layer = nn.Linear(inside, out, bias=draw(st.booleans()))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(matrix))
        if layer.bias is not None:
            layer.bias.copy_(torch.from_numpy(bias))
    expected = x @ matrix.T + (bias if layer.bias is not None else 0.0)
    thin = factorize(layer, torch.from_numpy(x).float(), latency=False)
    found = thin(torch.from_numpy(x).float()).detach().numpy()
    scale = np.abs(matrix).sum() + 1
    np.testing.assert_allclose(found, expected, atol=1e-5 * scale, rtol=0)
    true_rank = int(np.linalg.matrix_rank(matrix)) if matrix.any() else 0
    pays = max(true_rank, 1) * (out + inside) < out * inside
    assert isinstance(thin, LowRank) == pays
    if pays:
        assert thin[0].weight.shape == (max(true_rank, 1), inside)
        assert thin.report.layers[0].dead == min(out, inside) - true_rank


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_factorized_convolution_computes_what_scipy_does(data):
    draw = data.draw
    axes = draw(st.integers(1, 3))
    out, inside = draw(st.integers(4, 8)), draw(st.integers(4, 8))
    kernel = [draw(st.integers(1, 3)) for _ in range(axes)]
    rows = draw(st.sampled_from(["out", "in"]))
    stride = draw(st.integers(1, 2))
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    layer = kind(inside, out, kernel, stride=stride, padding=1).double()
    lower_rank_(layer, draw(st.integers(1, 2)), rows, seed=draw(st.integers(0, 99)))
    x = torch.randn(2, inside, *[5] * axes, dtype=torch.float64)
    thin = factorize(layer, x, latency=False)
    weight, padded = layer.weight.detach().numpy(), F.pad(x, [1] * 2 * axes).numpy()
    strided = (slice(None, None, stride),) * axes
    expected = np.empty((2, out, *layer(x).shape[2:]))
    for example in range(2):
        for o in range(out):
            parts = [
                scipy.signal.correlate(padded[example, i], weight[o, i], mode="valid")
                for i in range(inside)
            ]
            expected[example, o] = np.sum(parts, axis=0)[strided] + layer.bias[o].item()
    found = thin(x).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-12, rtol=0)
    matrices = [weight.reshape(out, -1)]
    if np.prod(kernel) > 1:
        matrices.append(weight.swapaxes(0, 1).reshape(inside, -1))
    fewest = min(np.linalg.matrix_rank(matrix) * sum(matrix.shape) for matrix in matrices)
    assert isinstance(thin, LowRank) == (fewest < weight.size)
    expected_entries = min(fewest, weight.size) + out
    assert sum(p.numel() for p in thin.parameters()) == expected_entries


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("rows", ["out", "in"])
@pytest.mark.parametrize("padding", ["same", 2])
def test_every_padding_is_kept(mode, rows, padding):
    layer = nn.Conv2d(8, 8, 3, padding=padding, padding_mode=mode, dilation=2, dtype=torch.float64)
    lower_rank_(layer, 2, rows)
    x = torch.randn(2, 8, 6, 7, dtype=torch.float64)
    thin = factorize(layer, x, latency=False)
    assert isinstance(thin, LowRank) and thin.rows == rows
    torch.testing.assert_close(thin(x), layer(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(thin.weight, layer.weight, rtol=1e-12, atol=1e-12)
    assert (thin.padding, thin.in_channels, thin.groups) == (layer.padding, 8, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(40, 60), (300, 200), (20, 500)])
def test_rank_is_found_in_every_dtype(shape, dtype):
    layer = nn.Linear(shape[1], shape[0], dtype=dtype)
    lower_rank_(layer, 5)
    thin = factorize(layer, torch.randn(3, shape[1], dtype=dtype), latency=False)
    assert isinstance(thin, LowRank) and thin.rank == 5
    assert thin[0].weight.dtype == dtype


@pytest.mark.parametrize("shape", [(60, 90), (200, 150), (256, 512)])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_what_the_prox_kept_is_kept_and_what_it_zeroed_is_dropped(shape, share):
    torch.manual_seed(0)
    matrix = torch.randn(shape) + 3 * torch.randn(shape[0], 1) @ torch.randn(1, shape[1])
    exact = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    threshold = float(np.quantile(exact, share))
    shrunk = dp.NuclearNorm(1.0).prox(matrix, threshold).double()
    s = np.linalg.svd(shrunk.numpy(), compute_uv=False)
    found = int((s > rounding_level(shrunk, torch.float32)).sum())
    # The prox of float32 cannot tell on which side of the threshold these fall.
    unsure = 1e-5 * exact[0]
    assert (exact > threshold + unsure).sum() <= found <= (exact > threshold - unsure).sum()


def test_the_structured_point_of_a_training_run_is_factorized():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 50), nn.ReLU(), nn.Linear(50, 5))
    opt = dp.RMDA(dp.param_groups(model, dp.NuclearNorm(0.2)), lr=0.1, momentum=0.9)
    x, y = torch.randn(64, 40), torch.randint(5, (64,))
    for _ in range(60):
        opt.zero_grad()
        F.cross_entropy(model(x), y).backward()
        opt.step()
    with opt.structured():
        weight = model.get_parameter("0.weight")
        rank = np.linalg.matrix_rank(weight.detach().double().numpy(), tol=1e-5)
        scores = model(x).detach()
        thin = factorize(model, x, **quick)
    assert 0 < rank < 20 and thin[0].rank == rank
    torch.testing.assert_close(thin(x), scores)


def test_a_layer_of_zeros_keeps_its_bias():
    layer = nn.Linear(6, 5)
    nn.init.zeros_(layer.weight)
    thin = factorize(layer, torch.randn(3, 6), latency=False)
    assert thin.rank == 1 and thin.report.layers[0].dead == 5
    assert torch.equal(thin(torch.randn(3, 6)), layer.bias.expand(3, 5))


def stays(model, *args, **kwargs):
    """The reasons for which layers stay, when nothing may be exchanged."""
    thin = factorize(model, *args, latency=False, **kwargs)
    assert not any(isinstance(module, LowRank) for module in thin.modules())
    return {layer.name: layer.stayed for layer in thin.report.layers}


def test_full_rank_stays_without_a_word_and_low_savings_with_one():
    torch.manual_seed(0)
    assert stays(nn.Linear(8, 8)) == {"": ""}
    assert stays(lower_rank_(nn.Linear(8, 8), 5)) == {
        "": "two layers of rank 5 have no fewer parameters"
    }


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.head = nn.Linear(8, 12)
        lower_rank_(self.head, 1)
        self.embedding.weight = self.head.weight

    def forward(self, ids):
        return self.head(self.embedding(ids))


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = lower_rank_(nn.Linear(8, 8), 1)

    def forward(self, x):
        return self.layer(x) + F.linear(x, self.layer.weight.T)


class Asker(Reader):
    def forward(self, x):
        return self.layer(x.to(self.layer.weight.dtype).view(-1, self.layer.in_features))


class Scaled(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


def test_tied_weights_stay():
    reasons = stays(Tied(), torch.tensor([[1, 2]]))
    assert reasons["head"] == "its weight is also embedding.weight"
    assert reasons["embedding"] == "it is none of Linear, Conv1d, Conv2d, Conv3d"
    assert stays(Tied())["head"] == "its weight is also embedding.weight"


def test_a_weight_read_from_outside_its_layer_stays():
    reason = "its weight is read by more than the layer itself"
    assert stays(Reader(), torch.randn(2, 8)) == {"layer": reason}
    x = torch.randn(2, 8)
    unseen = factorize(Reader())
    assert isinstance(unseen.layer, LowRank)
    model = Reader()
    torch.testing.assert_close(factorize(model)(x), model(x))


def test_a_layer_that_is_only_asked_about_itself_is_factorized():
    assert isinstance(factorize(Asker(), torch.randn(2, 8), latency=False).layer, LowRank)


def test_layers_that_may_do_more_than_torchs_own_stay():
    scaled = lower_rank_(Scaled(8, 8), 1)
    assert stays(scaled) == {"": "Scaled may do more than Linear"}
    assert factorize(scaled).report.layers[0].dead == 7

    hooked = lower_rank_(nn.Linear(8, 8), 1)
    hooked.register_forward_hook(lambda module, args, output: -output)
    assert stays(hooked) == {"": "it has hooks"}

    replaced: Any = lower_rank_(nn.Linear(8, 8), 1)
    replaced.forward = lambda x: x
    assert stays(replaced) == {"": "its forward was replaced"}

    grouped = lower_rank_(nn.Conv2d(8, 8, 3, groups=2), 1)
    assert stays(grouped) == {"": "it is grouped"}

    nan = lower_rank_(nn.Linear(8, 8), 1)
    nan.weight.data[0, 0] = torch.nan
    assert stays(nan) == {"": "its weight is not finite"}

    attention = nn.MultiheadAttention(8, 2)
    lower_rank_(attention.out_proj, 1)
    reason = "NonDynamicallyQuantizableLinear may do more than Linear"
    assert stays(attention)["out_proj"] == reason


def test_parametrized_layers_stay():
    layer = parametrizations.weight_norm(lower_rank_(nn.Linear(8, 8), 1))
    assert stays(nn.Sequential(layer)) == {"0": "its weight is parametrized"}


class Shared(nn.Module):
    """One layer under two names, in a list torch does not see, and again at the top."""

    def __init__(self):
        super().__init__()
        self.one = lower_rank_(nn.Linear(8, 8), 2)
        self.blocks = nn.ModuleList([nn.Sequential(self.one, nn.ReLU())])
        self.hidden = [self.one]

    def forward(self, x):
        return self.hidden[0](self.blocks[0](self.one(x)))


def test_a_shared_layer_is_exchanged_wherever_it_is_known():
    model: Any = Shared()
    x = torch.randn(3, 8)
    thin = factorize(model, x, latency=False)
    assert thin.one is thin.blocks[0][0] is thin.hidden[0] and isinstance(thin.one, LowRank)
    assert [layer.name for layer in thin.report.layers] == ["one"]
    torch.testing.assert_close(thin(x), model(x))
    fresh = factorize_like(Shared(), thin.report.plan)
    fresh.load_state_dict(thin.state_dict())
    assert torch.equal(fresh(x), thin(x))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor|The PyTorch API of nested tensors")
@pytest.mark.parametrize("padded", [False, True])
def test_feed_forward_layers_of_an_encoder_are_factorized(padded):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 40, batch_first=True)
    model: Any = nn.TransformerEncoder(layer, 2)
    for block in model.layers:
        lower_rank_(block.linear1, 3)
        lower_rank_(block.linear2, 4)
    padding = torch.arange(6) >= torch.tensor([[6], [4]]) if padded else None
    example = {"src": torch.randn(2, 6, 16), "src_key_padding_mask": padding}
    thin = factorize(model, example, **quick)
    for block in thin.layers:
        assert (block.linear1.rank, block.linear2.rank) == (3, 4)
    model.eval()
    thin.eval()
    last, ran = thin.layers[1].linear2, []
    last.__dict__["forward"] = lambda x: ran.append(x) or LowRank.forward(last, x)
    with torch.inference_mode():
        torch.testing.assert_close(thin(**example), model(**example), rtol=1e-4, atol=1e-5)
    assert ran


def test_factorized_weights_travel_as_json_and_tensors(thin_lenet):
    _, thin = thin_lenet
    file = io.BytesIO()
    torch.save(thin.state_dict(), file)
    file.seek(0)
    plan = json.loads(json.dumps(thin.report.plan))
    fresh = factorize_like(lenet(), plan)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(2, 1, 16, 16)
    assert torch.equal(fresh.eval()(x), thin.eval()(x))
    untrained = factorize_like(lenet(), plan)
    assert untrained.fc1[0].weight.std() > 0 and untrained.fc1[1].bias.abs().max() < 1
    assert copy.deepcopy(thin).report == pickle.loads(pickle.dumps(thin)).report == thin.report


def test_a_plan_that_does_not_fit_is_refused(thin_lenet):
    plan = thin_lenet[1].report.plan
    with pytest.raises(ValueError, match=r"plan: 'conv2' must be .*, got no layer"):
        factorize_like(nn.Sequential(nn.Linear(2, 2)), plan)
    with pytest.raises(ValueError, match=r"plan must be one of factorize .* got None"):
        factorize_like(lenet(), {})
    entry = {"change": "factorize", "layers": {"fc1": {"rank": 0, "rows": "out"}}}
    with pytest.raises(ValueError, match="plan: rank of 'fc1' must be an int >= 1, got 0"):
        factorize_like(lenet(), entry)


def test_trainable_and_frozen_parameters_stay_so():
    layer = lower_rank_(nn.Linear(8, 8), 1)
    layer.weight.requires_grad_(False)
    thin = factorize(layer)
    assert [p.requires_grad for p in thin.parameters()] == [False, False, True]
    factorize(lower_rank_(nn.Linear(8, 8), 1))(torch.randn(2, 8)).sum().backward()


def test_a_difference_beyond_rounding_is_named(monkeypatch):
    module = importlib.import_module("dualprox.shrinking.factorize")
    real = module._low_rank_layer

    def slightly_wrong(layer, split):
        made = real(layer, split)
        if isinstance(layer, nn.Conv2d):
            made[1].weight.data.mul_(1 + 1e-4)
        return made

    model = lenet()
    lower_rank_(model.conv2, 3)
    lower_rank_(model.fc1, 7)
    monkeypatch.setattr(module, "_low_rank_layer", slightly_wrong)
    with pytest.raises(RuntimeError, match="conv2: outputs differ by"):
        factorize(model, torch.randn(3, 1, 16, 16), latency=False)


class Peeker(nn.Module):
    """Does something else with a layer that is not torch's own."""

    def __init__(self):
        super().__init__()
        self.first = lower_rank_(nn.Linear(8, 8), 1)
        self.second = lower_rank_(nn.Linear(8, 8), 1)

    def forward(self, x):
        return self.first(x) + (self.second(x) if type(self.second) is nn.Linear else 0)


def test_a_model_that_looks_at_the_kind_of_a_layer_is_refused():
    with pytest.raises(RuntimeError, match="second: outputs differ by"):
        factorize(Peeker(), torch.randn(2, 8), latency=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_agreement_allows_rounding_and_nothing_much_larger(dtype):
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(6)]
    model = nn.Sequential(*blocks).to(dtype)
    inputs = Inputs.of(torch.randn(5, 64, dtype=dtype))
    names = [f"{i}.0.weight" for i in range(6)]
    eps = torch.finfo(dtype).eps
    for factor, alike in ((0.5, True), (1e5, False)):
        other: Any = copy.deepcopy(model)
        with torch.no_grad():
            other[0][0].weight.add_(factor * eps * other[0][0].weight.norm() / 8)
        assert all(agreements(model, other, inputs, names)) == alike
    assert not agreement(model, nn.Sequential(model, nn.Flatten(0)), inputs, names)


def test_the_copy_shares_nothing_with_the_model():
    model = lenet()
    new = nn.Linear(60, 10)
    other: Any = with_layers_exchanged(model, {"fc2": new})
    assert other.fc2 is new and model.fc2 is not new
    shared = {id(module) for module in model.modules()} & {id(m) for m in other.modules()}
    assert not shared
