"""What `factorize` leaves as it is, and what stays true of what it exchanges."""

import copy
import importlib
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from dualprox.shrinking.agreement import agreement, agreements
from dualprox.shrinking.factorize import LowRank
from dualprox.shrinking.inputs import Inputs
from dualprox.shrinking.replace import with_layers_exchanged
from low_rank import factorize, factorize_like, lenet, lower_rank_, quick


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
