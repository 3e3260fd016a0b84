"""Small recurrent networks and transformers, with their channels written out by hand."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Linear

from oracles.channels import Channels, Wire, Wires
from zoo import Net

WIDTH, HEADS, SIZE = 6, 3, 2


class Tagger(Net):
    """Words in, a tag for each out."""

    def __init__(self, kind: Any, **options) -> None:
        super().__init__()
        self.words, self.middle = nn.Embedding(9, 5), Linear(5, 6)
        self.memory = kind(6, 4, batch_first=True, **options)
        self.head = Linear(4 * (1 + self.memory.bidirectional), 3)

    def forward(self, x):
        return self.head(self.memory(torch.relu(self.middle(self.words(x))))[0])

    def example(self):
        return torch.randint(9, (2, 7))

    def count(self, c):
        table = self.words.weight
        x = [Wire(u, None if table[:, i].any() else 0.0) for i, u in enumerate(c.units(5))]
        c.tensor(9, [w.unit for w in x])
        x = c.each(c.linear(x, self.middle), torch.relu)
        c.pin(c.linear(c.recurrent(x, self.memory), self.head))


def norm_count(c: Channels, x: Wires, layer: nn.Module) -> Wires:
    assert isinstance(layer.weight, Tensor)
    bias = getattr(layer, "bias", None)
    return c.norm_over_all(x, layer.weight, bias)


def attention_count(c: Channels, query: Wires, source: Wires, layer: nn.Module) -> Wires:
    """Torch's attention: one matrix for queries, keys and values."""
    assert isinstance(layer, nn.MultiheadAttention)
    matrix, bias = layer.in_proj_weight, layer.in_proj_bias
    assert matrix is not None
    return heads_count(
        c, (query, source, source), matrix, bias, layer.out_proj, layer.num_heads, fused=True
    )


def heads_count(
    c: Channels,
    sources: tuple[Wires, Wires, Wires],
    matrix: Tensor,
    bias: Tensor | None,
    out: Linear,
    heads: int,
    *,
    fused: bool,
) -> Wires:
    """Three projections of which whole heads go, mixed over positions, and one more."""
    width = len(matrix) // 3
    units = c.heads(heads, width // heads)
    projected = []
    for i, x in enumerate(sources):
        rows = slice(i * width, (i + 1) * width)
        part = None if bias is None else bias[rows]
        made = c.product(x, matrix[rows].unsqueeze(-1), part, owner=not fused)
        c.tie([w.unit for w in made], units)
        projected.append(made)
    for x in {id(x): x for x in sources}.values():
        share = sum(source is x for source in sources)
        c.tensor(units * share, [w.unit for w in x])
        if x is not sources[0]:
            c.tie([w.unit for w in x], [w.unit for w in sources[0]])
    if bias is not None:
        c.tensor(units * 3)
    return c.linear(c.only_zeros(projected[2]), out)


def feed_forward_count(c: Channels, x: Wires, layer: nn.Module) -> Wires:
    function = layer.activation
    return c.linear(c.each(c.linear(x, layer.linear1), function), layer.linear2)  # pyright: ignore


class Encoder(Net):
    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 7, activation="gelu", batch_first=True, norm_first=norm_first
        )
        self.enter, self.head = Linear(4, WIDTH), Linear(WIDTH, 3)
        self.stack = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x):
        return self.head(self.stack(self.enter(x)))

    def example(self):
        return torch.randn(2, 5, 4)

    def count(self, c):
        x = c.linear(c.input(4), self.enter)
        for layer in self.stack.layers:
            assert isinstance(layer, nn.TransformerEncoderLayer)
            if layer.norm_first:
                y = norm_count(c, x, layer.norm1)
                x = c.add(x, attention_count(c, y, y, layer.self_attn))
                y = norm_count(c, x, layer.norm2)
                x = c.add(x, feed_forward_count(c, y, layer))
            else:
                y = attention_count(c, x, x, layer.self_attn)
                x = norm_count(c, c.add(x, y), layer.norm1)
                x = norm_count(c, c.add(x, feed_forward_count(c, x, layer)), layer.norm2)
        c.pin(c.linear(x, self.head))


class Decoder(Net):
    """Attends to what an encoder made of the same input."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.enter, self.head = Linear(4, WIDTH), Linear(WIDTH, 3)
        self.memory = nn.Sequential(Linear(4, 5), nn.ReLU(), Linear(5, WIDTH))
        self.layer = nn.TransformerDecoderLayer(
            WIDTH, HEADS, 7, activation="gelu", batch_first=True, norm_first=norm_first
        )

    def forward(self, x):
        hidden = torch.full((x.shape[1], x.shape[1]), float("-inf")).triu(1).to(x)
        return self.head(self.layer(self.enter(x), self.memory(x), tgt_mask=hidden))

    def example(self):
        return torch.randn(2, 5, 4)

    def count(self, c):
        given, layer = c.input(4), self.layer
        x = c.linear(given, self.enter)
        memory = c.linear(c.each(c.linear(given, self.memory[0]), torch.relu), self.memory[2])
        if layer.norm_first:
            y = norm_count(c, x, layer.norm1)
            x = c.add(x, attention_count(c, y, y, layer.self_attn))
            y = norm_count(c, x, layer.norm2)
            x = c.add(x, attention_count(c, y, memory, layer.multihead_attn))
            x = c.add(x, feed_forward_count(c, norm_count(c, x, layer.norm3), layer))
        else:
            x = norm_count(c, c.add(x, attention_count(c, x, x, layer.self_attn)), layer.norm1)
            y = attention_count(c, x, memory, layer.multihead_attn)
            x = norm_count(c, c.add(x, y), layer.norm2)
            x = norm_count(c, c.add(x, feed_forward_count(c, x, layer)), layer.norm3)
        c.pin(c.linear(x, self.head))


class RootMeanSquare(nn.Module):
    """RMSNorm as Llama's code writes it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class HandWritten(Net):
    """Attention with fused queries, keys and values, and a gated feed-forward layer."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        self.enter = Linear(4, WIDTH)
        self.norms = nn.ModuleList([RootMeanSquare(WIDTH), nn.RMSNorm(WIDTH)])
        self.qkv, self.out = Linear(WIDTH, 3 * HEADS * SIZE), Linear(HEADS * SIZE, WIDTH)
        self.gate, self.up = Linear(WIDTH, 7, bias=False), Linear(WIDTH, 7, bias=False)
        self.down, self.head = Linear(7, WIDTH, bias=False), Linear(WIDTH, 3)

    def forward(self, x):
        x = self.enter(x)
        batch, positions, _ = x.shape
        qkv = self.qkv(self.norms[0](x)).view(batch, positions, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = torch.softmax(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5, -1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, positions, -1))
        y = self.norms[1](x)
        return self.head(x + self.down(F.silu(self.gate(y)) * self.up(y)))

    def example(self):
        return torch.randn(2, 5, 4)

    def count(self, c):
        x = c.linear(c.input(4), self.enter)
        y = norm_count(c, x, self.norms[0])
        y = heads_count(c, (y, y, y), self.qkv.weight, self.qkv.bias, self.out, HEADS, fused=False)
        x = c.add(x, y)
        y = norm_count(c, x, self.norms[1])
        y = c.mul(c.each(c.linear(y, self.gate), F.silu), c.linear(y, self.up))
        c.pin(c.linear(c.add(x, c.linear(y, self.down)), self.head))


SEQUENTIAL: dict[str, Callable[[], Net]] = {
    "lstm_tagger": lambda: Tagger(nn.LSTM),
    "gru_tagger": lambda: Tagger(nn.GRU),
    "lstm_both_ways_two_layers": lambda: Tagger(nn.LSTM, bidirectional=True, num_layers=2),
    "encoder_norm_first": lambda: Encoder(True),
    "encoder_norm_last": lambda: Encoder(False),
    "decoder_norm_first": lambda: Decoder(True),
    "decoder_norm_last": lambda: Decoder(False),
    "hand_written_attention": HandWritten,
}
