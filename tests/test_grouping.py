import pytest
import torch
from torch import nn

import dualprox as dp

LASSO = dp.GroupLasso(0.1)


def penalties(groups):
    """Names to penalties."""
    return {row.name: row.penalty for row in groups.rows}


def inputs_matter(module, weight, penalty, x, kill):
    """Zero one group of the weight; which input channels the output still depends on."""
    with torch.no_grad():
        view = penalty.slices.view(weight)
        dead = torch.zeros_like(penalty.slices.norm(view)).flatten()
        dead[kill] = 1
        mask = dead.view_as(penalty.slices.norm(view)).expand_as(view).bool()
        view[mask] = 0
        base = module(x)
        matter = []
        for channel in range(x.shape[1]):
            changed = x.clone()
            changed[:, channel] += 1
            matter.append(not torch.equal(module(changed), base))
    return matter


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(6, 4), (2, 6)),
        (nn.Conv1d(6, 4, 3), (2, 6, 7)),
        (nn.Conv2d(6, 4, 3), (2, 6, 5, 5)),
        (nn.Conv3d(6, 4, 2), (2, 6, 3, 3, 3)),
        (nn.Conv2d(6, 9, 3, groups=3), (2, 6, 5, 5)),
        (nn.Conv2d(6, 6, 3, groups=6), (2, 6, 5, 5)),
        (nn.Conv2d(6, 12, 3, groups=6), (2, 6, 5, 5)),
        (nn.ConvTranspose1d(6, 4, 3), (2, 6, 7)),
        (nn.ConvTranspose2d(6, 4, 3), (2, 6, 5, 5)),
        (nn.ConvTranspose3d(6, 4, 2, groups=2), (2, 6, 3, 3, 3)),
    ],
    ids=str,
)
def test_a_dead_group_is_an_input_channel_that_nothing_reads(module, shape):
    torch.manual_seed(0)
    penalty = penalties(dp.param_groups(module, LASSO))["weight"]
    assert isinstance(penalty, dp.GroupLasso)
    assert penalty.structure(module.weight).total() == 6
    matter = inputs_matter(module, module.weight, penalty, torch.randn(shape), kill=4)
    assert matter == [True, True, True, True, False, True]


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(6, 4),
        nn.Conv2d(6, 4, 3, groups=2),
        nn.ConvTranspose2d(6, 4, 3, groups=2),
        nn.ConvTranspose1d(6, 4, 3),
    ],
    ids=str,
)
def test_by_output_a_dead_group_is_an_output_channel_that_is_its_bias(module):
    torch.manual_seed(0)
    penalty = penalties(dp.param_groups(module, LASSO, by="output"))["weight"]
    assert isinstance(penalty, dp.GroupLasso)
    view = penalty.slices.view(module.weight.data)
    norms = penalty.slices.norm(view)
    assert norms.numel() == 4
    mask = torch.zeros(4)
    mask[2] = 1
    view[mask.view_as(norms).expand_as(view).bool()] = 0
    x = torch.randn(2, 6, *([5] * (module.weight.dim() - 2)))
    constant = [bool((channel == channel.flatten()[0]).all()) for channel in module(x).unbind(1)]
    assert constant == [False, False, True, False]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_grouped_by_inputs_in_both_matrices(kind):
    torch.manual_seed(0)
    module = kind(5, 3, num_layers=2, bidirectional=True)
    found = penalties(dp.param_groups(module, LASSO))
    weights = [name for name in found if name.startswith("weight")]
    assert len(weights) == 8 and all(found[name] == LASSO for name in weights)
    assert all(found[name] is None for name in found if name.startswith("bias"))
    with torch.no_grad():
        for name in ("weight_ih_l0", "weight_ih_l0_reverse"):
            getattr(module, name)[:, 2] = 0
    x = torch.randn(4, 1, 5)
    changed = x.clone()
    changed[..., 2] += 1
    assert torch.equal(module(x)[0], module(changed)[0])


def test_recurrent_cells_and_output_groups_of_recurrent_layers():
    cell = nn.LSTMCell(5, 3)
    assert penalties(dp.param_groups(cell, LASSO))["weight_hh"] == LASSO
    model = nn.ModuleDict({"rnn": nn.GRU(5, 3), "head": nn.Linear(3, 2)})
    groups = dp.param_groups(model, LASSO, by="output")
    assert penalties(groups)["rnn.weight_ih_l0"] is None
    assert "its outputs are not slices" in str(groups)


def test_attention_heads_die_as_blocks():
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 4, batch_first=True)
    found = penalties(dp.param_groups(module, LASSO, heads=True))
    assert found["in_proj_weight"] == LASSO
    assert found["out_proj.weight"] == dp.GroupLasso(0.1, block=2)
    assert found["in_proj_bias"] is None and found["out_proj.bias"] is None
    with torch.no_grad():
        module.out_proj.weight[:, 4:6] = 0
        x = torch.randn(1, 3, 8)
        before = module(x, x, x)[0]
        module.in_proj_weight[20:22] += 1  # the values of head 2
        assert torch.equal(module(x, x, x)[0], before)
    assert penalties(dp.param_groups(module, LASSO))["out_proj.weight"] == LASSO


def test_attention_with_other_key_sizes_and_whole_transformer_layers():
    cross = nn.MultiheadAttention(8, 2, kdim=5, vdim=6)
    found = penalties(dp.param_groups(cross, LASSO))
    for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
        assert found[name] == LASSO
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    found = penalties(dp.param_groups(layer, LASSO))
    live = [name for name, penalty in found.items() if penalty is not None]
    assert live == [
        "self_attn.in_proj_weight",
        "self_attn.out_proj.weight",
        "linear1.weight",
        "linear2.weight",
    ]


def test_hugging_face_conv1d_is_known_by_name_and_grouped_by_its_first_axis():
    kind = type("Conv1D", (nn.Module,), {"__module__": "transformers.pytorch_utils"})
    module = kind()
    module.weight = nn.Parameter(torch.ones(6, 4))
    module.bias = nn.Parameter(torch.ones(4))
    assert penalties(dp.param_groups(module, LASSO)) == {
        "weight": dp.GroupLasso(0.1, axis=0),
        "bias": None,
    }


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.body = nn.Linear(4, 4)
        self.again = nn.Linear(4, 4)
        self.again.weight = self.body.weight
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight


def test_tied_weights_come_once_and_embeddings_win():
    groups = dp.param_groups(Tied(), LASSO)
    found = penalties(groups)
    assert found["body.weight"] == LASSO and "again.weight" not in found
    assert found["embedding.weight"] is None
    assert "tied: embedding.weight = head.weight; Embedding" in str(groups)
    count = sum(len(group["params"]) for group in groups)
    assert count == len(list(Tied().parameters()))


def small_net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)
    )


def test_include_and_exclude_take_patterns_and_types():
    def penalized(**kwargs):
        found = penalties(dp.param_groups(small_net(), LASSO, **kwargs))
        return [name for name, penalty in found.items() if penalty is not None]

    assert penalized() == ["0.weight", "4.weight"]
    assert penalized(include=["0"]) == ["0.weight"]
    assert penalized(include=["4.*"]) == ["4.weight"]
    assert penalized(exclude=["4.weight"]) == ["0.weight"]
    assert penalized(exclude=[nn.Linear]) == ["0.weight"]
    assert penalized(include=[nn.Linear], exclude=["0.*"]) == ["4.weight"]


@pytest.mark.parametrize("selector", ["5.weight", nn.LSTM])
def test_a_selector_that_matches_nothing_is_an_error(selector):
    with pytest.raises(ValueError, match="matches no parameter"):
        dp.param_groups(small_net(), LASSO, include=[selector])
    with pytest.raises(ValueError, match="matches no parameter"):
        dp.param_groups(small_net(), LASSO, exclude=[selector])
    with pytest.raises(ValueError, match="'oops' matches no parameter"):
        dp.param_groups(small_net(), {"0.*": LASSO, "oops": LASSO})


def test_penalties_by_pattern_and_axes_of_own_modules():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel = nn.Parameter(torch.ones(3, 5))
            self.net = small_net()

    model = Own()
    found = penalties(
        dp.param_groups(model, {"*.0.weight": dp.L1(0.3), "*": LASSO}, axes={"kernel": 0})
    )
    assert found["net.0.weight"] == dp.L1(0.3)
    assert found["net.4.weight"] == LASSO
    assert found["kernel"] == dp.GroupLasso(0.1, axis=0)
    assert penalties(dp.param_groups(model, LASSO))["kernel"] is None


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="the penalty must keep their defaults"):
        dp.param_groups(small_net(), dp.GroupLasso(0.1, axis=0))
    with pytest.raises(ValueError, match="by must be 'input' or 'output', got 'rows'"):
        dp.param_groups(small_net(), LASSO, by="rows")  # pyright: ignore
    with pytest.raises(ValueError, match="nothing in the model is penalized"):
        dp.param_groups(nn.BatchNorm1d(3), LASSO)
    with pytest.raises(TypeError, match="must be a list of patterns"):
        dp.param_groups(small_net(), LASSO, include="0")


def test_the_printout_tells_what_is_penalized_and_why_the_rest_is_free():
    model = small_net()
    model[4].weight.requires_grad_(False)
    lines = str(dp.param_groups(model, dp.NuclearNorm(0.2))).splitlines()
    assert lines[0].split() == ["parameter", "shape", "penalty"]
    assert lines[1].split() == ["0.weight", "8x3x3x3", "NuclearNorm(strength=0.2)"]
    assert lines[3].split() == ["1.weight", "8", "free", "BatchNorm2d"]
    assert lines[5].split()[-1] == "frozen"
