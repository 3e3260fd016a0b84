"""Transformer-XL: a language model that remembers the segments before."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...checks import require


class RelativeAttention(nn.Module):
    """Causal attention over memory and segment that knows distances, not positions.

    The score of query i and key j, i - j >= 0 places behind it, is

        ((q_i + u) . k_j + (q_i + v) . r_(i-j)) / sqrt(head width),

    where r is a Linear function of a sinusoidal encoding of the distance.

    Args:
        width: of the stream, a multiple of `heads`.
        heads: how many; each is width / heads wide.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries_keys_values = nn.Linear(width, 3 * width, bias=False)
        self.distances = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, memory: Tensor, encoding: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """What each place of the segment gathers from itself and from what came before.

        Args:
            x: (batch, length, width), the segment.
            memory: (batch, remembered, width), what came before it.
            encoding: (remembered + length, width), of the distances in falling order down to 0.
            u: (heads, head width), the bias of a query on contents.
            v: (heads, head width), the bias of a query on distances.

        Returns:
            (batch, length, width).
        """
        length = x.shape[1]
        projected = self.queries_keys_values(torch.cat((memory, x), dim=1))
        q, k, value = (self._split(part) for part in projected.chunk(3, dim=-1))
        q = q[:, :, -length:]
        r = self._split(self.distances(encoding))
        by_distance = shifted((q + v[:, None]) @ r.transpose(-1, -2))
        scale = (x.shape[2] // self.heads) ** -0.5
        ahead = torch.ones(by_distance.shape[-2:], dtype=torch.bool, device=x.device)
        ahead = ahead.triu(1 + memory.shape[1])
        bias = (by_distance * scale).masked_fill(ahead, -math.inf)
        mixed = functional.scaled_dot_product_attention(
            q + u[:, None], k, value, attn_mask=bias, scale=scale
        )
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _split(self, projected: Tensor) -> Tensor:
        """(..., places, width) to (..., heads, places, head width)."""
        return projected.unflatten(-1, (self.heads, -1)).transpose(-2, -3)


def shifted(scores: Tensor) -> Tensor:
    """Scores by distance to scores by key: row i of n rows moves n - 1 - i places to the left.

    Args:
        scores: (..., n, keys), column c for the distance keys - 1 - c.

    Returns:
        (..., n, keys), column j for key j; what is ahead of a query is arbitrary.

    Source: Dai et al., arXiv:1901.02860, appendix B.
    """
    rows, columns = scores.shape[-2:]
    # With one more column, n places further on in a flat row lie one row down, n - 1 to the right.
    flat = functional.pad(scores, (1, 0)).flatten(-2)
    return flat[..., rows:].unflatten(-1, (rows, columns))


class Layer(nn.Module):
    """Attention and a feed-forward layer, each with dropout and a norm after its shortcut."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.attention = RelativeAttention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor, encoding: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """The next layer's stream; shapes as in `RelativeAttention`."""
        x = self.norm1(x + self.dropout(self.attention(x, memory, encoding, u, v)))
        inner = self.dropout(self.up(x).relu())
        return self.norm2(x + self.dropout(self.down(inner)))


class AdaptiveSoftmax(nn.Module):
    """Log-likelihood of words, frequent ones first: a head, then a cluster for each tail.

    The head scores the words before the first cutoff and the clusters; a word of a cluster costs
    the cluster and the word within it. Word scores take the vectors of an embedding.

    Args:
        width: of the hidden states.
        tokens: how many words.
        cutoffs: where each cluster begins, increasing, between 1 and tokens - 1; may be empty.

    Source: Grave et al., arXiv:1609.04309, section 4.
    """

    def __init__(self, width: int, tokens: int, cutoffs: tuple[int, ...]) -> None:
        super().__init__()
        self.edges = (0, *cutoffs, tokens)
        rising = all(a < b for a, b in pairwise(self.edges))
        rule = f"increasing ints between 1 and tokens - 1 = {tokens - 1}"
        require(rising, "cutoffs", rule, cutoffs)
        self.clusters = nn.Parameter(torch.empty(len(cutoffs), width).normal_(std=0.02))
        self.cluster_bias = nn.Parameter(torch.zeros(len(cutoffs)))
        self.bias = nn.Parameter(torch.zeros(tokens))

    def forward(self, hidden: Tensor, targets: Tensor, vectors: Tensor) -> Tensor:
        """Minus the log-likelihood of each target.

        Args:
            hidden: (places, width).
            targets: (places,), int64 below `tokens`.
            vectors: (tokens, width), the embedding.

        Returns:
            (places,), in the order of `targets`.
        """
        first = self.edges[1]
        weight = torch.cat((vectors[:first], self.clusters))
        bias = torch.cat((self.bias[:first], self.cluster_bias))
        head = functional.linear(hidden, weight, bias).log_softmax(-1)
        losses = -head.gather(1, targets.clamp(max=first - 1)[:, None])[:, 0]
        for cluster, (start, end) in enumerate(pairwise(self.edges[1:])):
            places = ((targets >= start) & (targets < end)).nonzero()[:, 0]
            tail = functional.linear(hidden[places], vectors[start:end], self.bias[start:end])
            within = functional.cross_entropy(tail, targets[places] - start, reduction="none")
            losses = losses.index_copy(0, places, within - head[places, first + cluster])
        return losses


class TransformerXL(nn.Module):
    """A causal language model with relative positions and a memory of the segments before.

    Its settings are those of the base model on WikiText-103; the softmax and the embedding share
    their vectors. Weights start from N(0, 0.02^2), norms from N(1, 0.02^2), biases from 0.

    Args:
        tokens: how many words, the frequent ones first.
        width: of the stream, a multiple of `heads` and of 2.
        layers: how many.
        heads: of each layer's attention.
        inner: width of the feed-forward layers.
        cutoffs: where each cluster of the softmax begins; empty for an ordinary softmax.
        dropout: rate on everything but attention weights.
        memory_length: places that are remembered, >= 0.

    Source: Dai et al., arXiv:1901.02860, section 3; as trained in arXiv:2403.14398, table 4.

    Example:
        >>> model = TransformerXL(50, 8, layers=2, heads=2, inner=16, cutoffs=(20,))
        >>> text = torch.arange(14).view(1, 14)
        >>> losses, memory = model(text[:, :6], text[:, 1:7])
        >>> losses, memory = model(text[:, 6:12], text[:, 7:13], memory)
        >>> losses.shape, memory.shape
        (torch.Size([1, 6]), torch.Size([2, 1, 12, 8]))
    """

    def __init__(
        self,
        tokens: int = 267_735,
        width: int = 512,
        *,
        layers: int = 16,
        heads: int = 8,
        inner: int = 2048,
        cutoffs: tuple[int, ...] = (19_997, 39_997, 199_997),
        dropout: float = 0.1,
        memory_length: int = 192,
    ) -> None:
        super().__init__()
        fits = width % heads == 0 and width % 2 == 0
        require(fits, "width", f"a multiple of heads = {heads} and of 2", width)
        require(memory_length >= 0, "memory_length", ">= 0", memory_length)
        self.memory_length = memory_length
        self.embedding = nn.Embedding(tokens, width)
        self.u = nn.Parameter(torch.empty(heads, width // heads).normal_(std=0.02))
        self.v = nn.Parameter(torch.empty(heads, width // heads).normal_(std=0.02))
        self.layers = nn.ModuleList(Layer(width, heads, inner, dropout) for _ in range(layers))
        self.softmax = AdaptiveSoftmax(width, tokens, cutoffs)
        self.dropout = nn.Dropout(dropout)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.LayerNorm):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def hidden(self, tokens: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What the network makes of a segment, before the softmax.

        Args:
            tokens: (batch, length), int64.
            memory: as returned for the segment before; None at the start of a text.

        Returns:
            The last layer's output, (batch, length, width), and the new memory: the inputs of
            every layer, (layers, batch, remembered, width), without gradients.
        """
        width = self.embedding.embedding_dim
        x = self.dropout(self.embedding(tokens) * width**0.5)
        nothing = x.new_zeros(len(self.layers), len(x), 0, width)
        before = nothing if memory is None else memory
        encoding = self.dropout(encoded_distances(before.shape[2] + x.shape[1], x))
        inputs = []
        for layer, remembered in zip(self.layers, before, strict=True):
            inputs.append(x.detach())
            x = layer(x, remembered, encoding, self.u, self.v)
        seen = torch.cat((before, torch.stack(inputs)), dim=2)
        return self.dropout(x), seen[:, :, max(0, seen.shape[2] - self.memory_length) :]

    def forward(
        self, tokens: Tensor, targets: Tensor, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The loss of every word to be guessed, and what to remember.

        Args:
            tokens: (batch, length), int64.
            targets: (batch, length), the words that follow each.
            memory: as returned for the segment before; None at the start of a text.

        Returns:
            Minus the log-likelihoods of the targets, (batch, length), and the new memory,
            (layers, batch, remembered, width).
        """
        hidden, memory = self.hidden(tokens, memory)
        losses = self.softmax(hidden.flatten(0, 1), targets.flatten(), self.embedding.weight)
        return losses.view(targets.shape), memory


def encoded_distances(count: int, like: Tensor) -> Tensor:
    """Sines, then cosines, of the distances count - 1, ..., 0 at falling frequencies.

    Args:
        count: how many.
        like: (..., width), whose dtype and device the result has.

    Returns:
        (count, width).

    Source: Vaswani et al., arXiv:1706.03762, section 3.5, sines and cosines not interleaved.
    """
    width = like.shape[-1]
    wide = torch.promote_types(like.dtype, torch.float32)  # bfloat16 would round distances
    distances = torch.arange(count - 1, -1, -1, device=like.device, dtype=wide)
    frequencies = 10_000.0 ** (torch.arange(0, width, 2, device=like.device, dtype=wide) / -width)
    angles = distances[:, None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=1).to(like.dtype)
