"""Transformer-XL: attention term by term, memory against long segments, published sizes."""

import math
from typing import Any

import pytest
import torch
from torch import nn

import dualprox as dp
from dualprox.lab.models import TransformerXL
from dualprox.lab.models.transformer_xl import (
    AdaptiveSoftmax,
    RelativeAttention,
    encoded_distances,
)


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def words(length, tokens=30, batch=2):
    generator = torch.Generator().manual_seed(3)
    return torch.randint(tokens, (batch, length), generator=generator)


def small(layers=2, **settings) -> Any:
    """Random in everything, so that no term of the attention is small."""
    torch.manual_seed(0)
    settings = {"heads": 2, "inner": 12, "cutoffs": (8, 17), **settings}
    model = TransformerXL(30, 8, layers=layers, **settings).double().eval()
    for seed, param in enumerate(model.parameters()):
        param.data += 0.5 * random(*param.shape, seed=seed)
    return model


def term_by_term(attention, x, memory, u, v):
    """The definition (Dai et al., section 3.3, equation of A_rel), one pair of places at a time."""
    state = attention.state_dict()
    width, heads = x.shape[-1], attention.heads
    head = width // heads
    w_q, w_k, w_v = (
        state["queries_keys_values.weight"][i * width : (i + 1) * width] for i in range(3)
    )
    w_r = state["distances.weight"]
    out = torch.zeros_like(x)
    for b in range(len(x)):
        places = torch.cat((memory[b], x[b]))
        for i in range(x.shape[1]):
            at = len(memory[b]) + i
            for h in range(heads):
                rows = slice(h * head, (h + 1) * head)
                q = w_q[rows] @ places[at]
                scores = []
                for j in range(at + 1):
                    angles = [(at - j) / 10_000 ** (2 * k / width) for k in range(width // 2)]
                    distance = torch.tensor(
                        [math.sin(a) for a in angles] + [math.cos(a) for a in angles],
                        dtype=torch.float64,
                    )
                    content, position = w_k[rows] @ places[j], w_r[rows] @ distance
                    scores.append(q @ content + q @ position + u[h] @ content + v[h] @ position)
                weights = torch.stack(scores).div(head**0.5).softmax(0)
                out[b, i, rows] = sum(a * (w_v[rows] @ places[j]) for j, a in enumerate(weights))
    return out @ state["out.weight"].T


@pytest.mark.parametrize(("length", "remembered"), [(1, 0), (1, 4), (5, 0), (5, 3), (3, 7)])
def test_relative_attention_is_its_definition(length, remembered):
    attention = RelativeAttention(12, 3).double()
    for seed, param in enumerate(attention.parameters()):
        param.data = random(*param.shape, seed=seed)
    x, memory = random(2, length, 12, seed=10), random(2, remembered, 12, seed=11)
    u, v = random(3, 4, seed=12), random(3, 4, seed=13)
    encoding = encoded_distances(remembered + length, x)
    ours = attention(x, memory, encoding, u, v)
    torch.testing.assert_close(ours, term_by_term(attention, x, memory, u, v))


@pytest.mark.parametrize("lengths", [(4, 4, 4), (7, 5), (1, 1, 10)])
def test_segments_with_memory_are_one_long_segment(lengths):
    model = small(memory_length=12)
    text = words(13)
    together, _ = model(text[:, :-1], text[:, 1:])
    memory, apart, start = None, [], 0
    for length in lengths:
        end = start + length
        losses, memory = model(text[:, start:end], text[:, start + 1 : end + 1], memory)
        apart.append(losses)
        start = end
    torch.testing.assert_close(torch.cat(apart, 1), together)
    forgotten, _ = model(text[:, 4:12], text[:, 5:13])
    assert not torch.allclose(forgotten, together[:, 4:])


def test_memory_keeps_the_last_places_and_no_gradients():
    model = small(layers=1, memory_length=3)
    text = words(12)
    first, memory = model.hidden(text[:, :2])
    assert memory.shape == (1, 2, 2, 8) and not memory.requires_grad and first.requires_grad
    _, memory = model.hidden(text[:, 2:7], memory)
    assert memory.shape == (1, 2, 3, 8)
    ours, _ = model.hidden(text[:, 7:], memory)
    # One layer remembers embeddings alone, which know nothing of what came before them.
    theirs, _ = model.hidden(text[:, 4:])
    torch.testing.assert_close(ours, theirs[:, 3:])
    _, nothing = small(memory_length=0).hidden(text)
    assert nothing.shape == (2, 2, 0, 8)


def test_a_layer_adds_what_it_computes_to_its_input_and_then_norms():
    model = small(layers=1)
    layer = model.layers[0]
    x, text = model.embedding.weight[words(5)] * 8**0.5, words(5)
    encoding = encoded_distances(5, x)
    mixed = layer.attention(x, x[:, :0], encoding, model.u, model.v)
    inner = layer.norm1(x + mixed)
    expected = layer.norm2(inner + layer.down(torch.relu(layer.up(inner))))
    torch.testing.assert_close(model.hidden(text)[0], expected)


def test_the_softmax_is_torchs_adaptive_softmax():
    ours = AdaptiveSoftmax(6, 20, (5, 11)).double()
    for seed, param in enumerate(ours.parameters()):
        param.data = random(*param.shape, seed=seed)
    vectors, hidden = random(20, 6, seed=7), random(40, 6, seed=8)
    theirs = nn.AdaptiveLogSoftmaxWithLoss(6, 20, [5, 11], div_value=1.0, head_bias=True).double()
    theirs.head.weight.data = torch.cat((vectors[:5], ours.clusters.data))
    theirs.head.bias.data = torch.cat((ours.bias.data[:5], ours.cluster_bias.data))
    for tail, start, end in zip(theirs.tail, (5, 11), (11, 20), strict=True):
        assert isinstance(tail, nn.Sequential)
        tail[0] = nn.Identity()
        tail[1] = nn.Linear(6, end - start).double()
        tail[1].weight.data, tail[1].bias.data = vectors[start:end], ours.bias.data[start:end]
    targets = torch.arange(20).repeat(2)
    torch.testing.assert_close(ours(hidden, targets, vectors), -theirs(hidden, targets).output)
    one = hidden[:1].expand(20, 6)
    total = ours(one, torch.arange(20), vectors).neg().exp().sum()
    torch.testing.assert_close(total, torch.ones((), dtype=torch.float64))


def test_no_cutoffs_make_an_ordinary_softmax():
    model = small(cutoffs=())
    text = words(6)
    scores = model.hidden(text)[0] @ model.embedding.weight.T + model.softmax.bias
    losses, _ = model(text, text)
    expected = nn.functional.cross_entropy(scores.transpose(1, 2), text, reduction="none")
    torch.testing.assert_close(losses, expected)


@pytest.mark.parametrize(("cutoffs", "got"), [((5, 5), "(5, 5)"), ((30,), "(30,)"), ((0,), "(0,)")])
def test_cutoffs_that_make_an_empty_cluster_are_refused(cutoffs, got):
    with pytest.raises(ValueError, match=r"cutoffs must be increasing ints .* 29, got"):
        small(cutoffs=cutoffs)


def test_widths_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="width must be a multiple of heads = 3 and of 2, got 8"):
        small(heads=3)
    with pytest.raises(ValueError, match="memory_length must be >= 0, got -1"):
        small(memory_length=-1)


def test_sizes_are_the_published_ones():
    """151 M (Dai et al., table 1) and 192 M, the base model that was trained with RAMDA.

    They differ in width: 410 with 10 heads and 2100 inner units against 512, 8 and 2048.
    """
    with torch.device("meta"):
        base = TransformerXL()
        standard = TransformerXL(width=410, heads=10, inner=2100)
    words, width, inner, layers = 267_735, 512, 2048, 16
    layer = 5 * width**2 + 2 * width * inner + inner + width + 4 * width
    softmax = words + 3 * (width + 1)
    count = words * width + layers * layer + 2 * width + softmax
    assert count == sum(p.numel() for p in base.parameters()) == 191_950_298
    assert sum(p.numel() for p in standard.parameters()) == 151_107_538


def test_every_linear_layer_is_penalized_and_nothing_else():
    rows = dp.param_groups(small(), dp.GroupLasso(1e-4)).rows
    penalized = {row.name.removeprefix("layers.") for row in rows if row.penalty is not None}
    parts = ("attention.queries_keys_values", "attention.distances", "attention.out", "up", "down")
    assert penalized == {f"{layer}.{part}.weight" for layer in (0, 1) for part in parts}
    assert all(row.penalty in (None, dp.GroupLasso(1e-4)) for row in rows)


def test_every_weight_learns_and_starts_small():
    torch.manual_seed(0)
    model: Any = TransformerXL(2000, 64, layers=2, heads=4, inner=128, cutoffs=(1000,), dropout=0.1)
    for name, std in (("embedding.weight", 0.02), ("layers.1.up.weight", 0.02)):
        assert float(model.get_parameter(name).detach().std()) == pytest.approx(std, rel=0.05)
    assert float(model.layers[0].norm1.weight.detach().mean()) == pytest.approx(1.0, abs=0.01)
    text = words(21, 2000, batch=4)
    losses, memory = model(text[:, :20], text[:, 1:])
    frequent = text[:, 1:] < 1000  # of 1001 in the head; others of 1000 in addition
    assert float(losses.detach()[frequent].mean()) == pytest.approx(math.log(1001), rel=0.05)
    assert float(losses.detach()[~frequent].mean()) == pytest.approx(
        math.log(1001 * 1000), rel=0.05
    )
    model(text[:, :20], text[:, 1:], memory)[0].mean().backward()
    for name, param in model.named_parameters():
        assert param.grad is not None and float(param.grad.abs().sum()) > 0, name
