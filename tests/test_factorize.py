import copy
import io
import json
import pickle

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import dualprox as dp
from dualprox.penalties.low_rank import rounding_level
from dualprox.shrinking.factorize import LowRank
from low_rank import factorize, factorize_like, lenet, lower_rank_, quick


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
