import copy
import io
import json
import pickle
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import dualprox as dp
from dualprox.shrinking.measure import count_macs
from dualprox.shrinking.sparse_layers import SemiStructuredLinear, SparseLinear, is_two_in_four

quick: dict[str, Any] = {"latency": False, "seconds": 0.02}


def sparsify(*args: Any, **kwargs: Any) -> Any:
    """Of a type that lets a test look into the layers."""
    return dp.sparsify(*args, **(quick | kwargs))


def thinned(layer, zeros, seed=0):
    """The layer with this share of its entries zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.mul_(torch.rand(layer.weight.shape, generator=generator) >= zeros)
    return layer


def network() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        thinned(nn.Linear(1000, 1200), 0.99),
        nn.ReLU(),
        thinned(nn.Linear(1200, 30), 0.55),
        nn.ReLU(),
        nn.Linear(30, 10),
    )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_sparse_layer_computes_what_scipy_does(data):
    draw = data.draw
    out, inside = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    zeros = draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    layer = nn.Linear(inside, out, bias=draw(st.booleans()), dtype=dtype)
    thinned(layer, zeros, seed=draw(st.integers(0, 99)))
    lead = draw(st.sampled_from([(), (1,), (4,), (2, 3)]))
    x = torch.randn(*lead, inside, dtype=dtype)
    sparse = SparseLinear.of(layer)
    matrix = scipy.sparse.csr_matrix(layer.weight.detach().numpy())
    assert len(sparse.values) == matrix.nnz
    assert torch.equal(sparse.weight, layer.weight)
    expected = (matrix @ x.double().numpy().reshape(-1, inside).T).T.reshape(*lead, out)
    if layer.bias is not None:
        expected = expected + layer.bias.detach().numpy()
    found = sparse(x)
    assert found.is_contiguous() and found.dtype == dtype
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-5, rtol=1e-5)


def test_only_what_is_faster_becomes_sparse():
    model = network()
    x = torch.randn(64, 1000)
    sparse = sparsify(model, x, seconds=0.2)
    first, second, last = sparse.report.layers
    assert isinstance(sparse[0], SparseLinear) and isinstance(sparse[2], nn.Linear)
    zeros = int((model[0].weight == 0).sum())
    assert (first.dead, first.removed, first.stayed) == (zeros, zeros, "")
    assert first.after.startswith("CSR is ") and first.after.endswith("x faster at 99% zeros")
    assert first.parameters_after == 1_200_000 - zeros + 1200
    assert second.removed == 0 and second.stayed.endswith("at 55% zeros")
    assert (
        "slower" in second.stayed
        or "within the spread" in second.stayed
        or "bytes" in (second.stayed)
    )
    assert (last.dead, last.stayed) == (0, "")
    torch.testing.assert_close(sparse(x), model(x), rtol=1e-4, atol=1e-5)
    assert sparse.report.after.bytes < sparse.report.before.bytes / 5
    assert 0 < sparse.report.max_abs_diff < 1e-5
    assert isinstance(model[0], nn.Linear) and not hasattr(model, "report")


def test_every_layer_that_gets_smaller_becomes_sparse_on_request():
    model = network()
    x = torch.randn(1, 1000)
    sparse = sparsify(model, x, faster_only=False)
    kinds = [type(layer) for layer in sparse]
    assert kinds == [SparseLinear, nn.ReLU, SparseLinear, nn.ReLU, nn.Linear]
    second = sparse.report.layers[1]
    assert second.after.startswith("CSR is ") and second.removed == second.dead
    dense = thinned(nn.Linear(64, 64), 0.3)
    refused: Any = sparsify(nn.Sequential(dense), torch.randn(2, 64), faster_only=False)
    assert type(refused[0]) is nn.Linear
    assert refused.report.layers[0].stayed == "CSR takes no fewer bytes at 30% zeros"


def test_products_with_zeros_that_are_left_out_are_not_counted():
    layer = thinned(nn.Linear(50, 40), 0.8)
    nonzeros = int((layer.weight != 0).sum())
    for bias in (True, False):
        sparse = SparseLinear.of(layer)
        if not bias:
            sparse.bias = None
        assert count_macs(sparse, torch.randn(6, 50)) == nonzeros
        assert count_macs(sparse, torch.randn(6, 3, 50)) == 3 * nonzeros


def test_sparse_weights_travel_as_json_and_plain_tensors():
    model = network()
    sparse = sparsify(model, torch.randn(2, 1000), faster_only=False)
    file = io.BytesIO()
    torch.save(sparse.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert all(value.layout is torch.strided for value in state.values())
    fresh = dp.sparsify_like(network(), json.loads(json.dumps(sparse.report.plan)))
    fresh.load_state_dict(state)
    x = torch.randn(3, 1000)
    for other in (fresh, copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse))):
        assert torch.equal(other(x), sparse(x))
    assert pickle.loads(pickle.dumps(sparse)).report == sparse.report
    assert file.tell() < 4 * 1_200_000 / 10


def test_a_layer_that_the_example_does_not_run_stays():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used = nn.Linear(64, 64)
            self.idle = thinned(nn.Linear(64, 64), 0.99)

        def forward(self, x):
            return self.used(x)

    x = torch.randn(2, 64)
    assert sparsify(Idle(), x).report.layers[1].stayed == "the example does not run it"
    sparse = sparsify(Idle(), x, faster_only=False)
    assert isinstance(sparse.idle, SparseLinear)
    assert sparse.report.layers[1].after == "CSR at 99% zeros, not timed"


def test_tied_hooked_and_foreign_layers_stay():
    tied = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    tied[1].weight = thinned(tied[0], 0.99).weight
    hooked = thinned(nn.Linear(64, 64), 0.99)
    hooked.register_forward_hook(lambda module, args, output: -output)
    conv = nn.Conv1d(64, 64, 1)
    with torch.no_grad():
        conv.weight.zero_()
    model = nn.Sequential(tied, hooked, nn.Unflatten(0, (-1, 1)), nn.Flatten(0, 1))
    sparse = sparsify(model, torch.randn(2, 64), faster_only=False)
    stayed = [layer.stayed for layer in sparse.report.layers]
    also = ["its weight is also 0.1.weight", "its weight is also 0.0.weight"]
    assert stayed == [*also, "it has hooks"]
    report = sparsify(conv, torch.randn(2, 64, 3), faster_only=False).report
    assert report.layers[0].stayed == "it is none of Linear" and report.layers[0].dead == 64 * 64


@pytest.mark.filterwarnings("ignore:enable_nested_tensor|The PyTorch API of nested tensors")
def test_an_encoder_runs_its_sparse_layers():
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
    thinned(block.linear1, 0.9)
    x = torch.randn(2, 5, 32)
    sparse = sparsify(block, x, faster_only=False)
    assert isinstance(sparse.linear1, SparseLinear)
    with torch.inference_mode():
        torch.testing.assert_close(sparse.eval()(x), block.eval()(x), rtol=1e-4, atol=1e-5)


def test_gradients_pass_through_a_sparse_layer():
    layer = thinned(nn.Linear(6, 4), 0.5)
    sparse, x = SparseLinear.of(layer), torch.randn(3, 6)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    sparse(ours).square().sum().backward()
    layer(theirs).square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_plan_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"plan must be one of sparsify .*, got 'factorize'"):
        dp.sparsify_like(network(), {"change": "factorize", "layers": {}})
    plan: Any = {"change": "sparsify", "layers": {"1": {"format": "CSR", "nonzeros": 3}}}
    with pytest.raises(ValueError, match="plan: '1' must be a Linear, got ReLU"):
        dp.sparsify_like(network(), plan)
    plan = {"change": "sparsify", "layers": {"0": {"format": "COO"}}}
    with pytest.raises(
        ValueError, match="plan: format of '0' must be \"CSR\" or \"2:4\", got 'COO'"
    ):
        dp.sparsify_like(network(), plan)
    plan = {"change": "sparsify", "layers": {"0": {"format": "CSR", "nonzeros": -1}}}
    with pytest.raises(
        ValueError, match="plan: nonzeros of '0' must be a count of entries, got -1"
    ):
        dp.sparsify_like(network(), plan)


def two_in_four(out, inside, dtype, seed=0):
    """A layer with at most two of four neighbours not zero, and now and then fewer."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(inside, out).to(dtype)
    order = torch.rand(out, inside // 4, 4, generator=generator).argsort(-1)
    keep = (order < 2) & (torch.rand(order.shape, generator=generator) < 0.9)
    with torch.no_grad():
        layer.weight.mul_(keep.view(out, inside))
    return layer


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_the_two_four_form_holds_every_entry(out, fours, seed):
    layer = two_in_four(out, 4 * fours, torch.bfloat16, seed)
    assert is_two_in_four(layer.weight)
    packed = SemiStructuredLinear.of(layer)
    assert torch.equal(packed.weight, layer.weight)
    fresh = SemiStructuredLinear(4 * fours, out, dtype=torch.bfloat16)
    assert not fresh.weight.any()
    fresh.load_state_dict(packed.state_dict())
    assert torch.equal(fresh.weight, layer.weight)
    assert packed.values.numel() == layer.weight.numel() // 2
    layer.weight.data[0, :3] = 1.0
    assert not is_two_in_four(layer.weight)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_two_four_form_runs_on_tensor_cores(dtype):
    model = nn.Sequential(two_in_four(256, 512, dtype), nn.ReLU(), nn.Linear(256, 64).to(dtype))
    model = model.cuda()
    x = torch.randn(128, 512, device="cuda", dtype=dtype)
    packed = SemiStructuredLinear.of(model[0])  # pyright: ignore
    torch.testing.assert_close(packed(x), model[0](x), rtol=2e-2, atol=2e-2)
    sparse = sparsify(model, x, faster_only=False)
    torch.testing.assert_close(sparse(x), model(x), rtol=2e-2, atol=2e-2)
    fresh = dp.sparsify_like(model, sparse.report.plan)
    fresh.load_state_dict(sparse.state_dict())
    assert torch.equal(fresh(x), sparse(x))
    assert torch.equal(copy.deepcopy(sparse)(x), sparse(x))
