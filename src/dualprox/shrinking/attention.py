"""Attention whose number of heads is not tied to the width of its input."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kinds import check_kinds


class NarrowAttention(nn.Module):
    """`torch.nn.MultiheadAttention`, of which single heads can be removed.

    torch's own takes head size = width / heads for granted, in its code and in the fused path of
    its encoder. Parameters, arguments and results are the same, and so are the parameters' names.

    Args:
        attention: what it stands for; its parameters are shared, not copied.
    """

    # What torch's encoder asks its attention before it takes the fused path.
    _qkv_same_embed_dim = False

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        check_kinds(NarrowAttention.__init__, locals())
        super().__init__()
        self.embed_dim, self.head_dim = attention.embed_dim, attention.head_dim
        self.batch_first, self.dropout = attention.batch_first, attention.dropout
        self.in_proj_weight: Tensor | None = attention.in_proj_weight
        self.in_proj_bias: Tensor | None = attention.in_proj_bias
        self.q_proj_weight: Tensor | None = attention.q_proj_weight
        self.k_proj_weight: Tensor | None = attention.k_proj_weight
        self.v_proj_weight: Tensor | None = attention.v_proj_weight
        self.out_proj = attention.out_proj
        self.train(attention.training)

    @staticmethod
    def replaces(module: nn.Module) -> bool:
        """Whether it can stand for this module."""
        return (
            type(module) is nn.MultiheadAttention
            and module.bias_k is None
            and not module.add_zero_attn
        )

    @property
    def num_heads(self) -> int:
        """Heads that are left."""
        return self.out_proj.weight.shape[1] // self.head_dim

    def extra_repr(self) -> str:
        """Sizes."""
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, head_dim={self.head_dim}"

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Queries, keys and values, each (batch, positions, heads, head size)."""
        heads = (-1, self.head_dim)
        weights: list[Any] = [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight]
        if self.in_proj_weight is not None:
            weights = list(self.in_proj_weight.unflatten(0, (3, -1)).unbind(0))
        biases: list[Any] = [None, None, None]
        if self.in_proj_bias is not None:
            biases = list(self.in_proj_bias.unflatten(0, (3, -1)).unbind(0))
        return [
            F.linear(x, weight, bias).unflatten(-1, heads)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        ]

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `torch.nn.MultiheadAttention`."""
        batched = query.dim() == 3
        if not batched:
            query, key, value = (t.unsqueeze(0) for t in (query, key, value))
        elif not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = (t.transpose(1, 2) for t in self._project(query, key, value))
        mask = self._mask(q, k, key_padding_mask, attn_mask, batched)
        if is_causal and mask is None:
            length = q.shape[2], k.shape[2]
            mask = torch.full(length, float("-inf"), dtype=q.dtype, device=q.device).triu(1)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
            weights = torch.softmax(scores if mask is None else scores + mask, -1)
            mixed = F.dropout(weights, dropout, self.training) @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if not batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _mask(
        self,
        q: Tensor,
        k: Tensor,
        padding: Tensor | None,
        attn_mask: Tensor | None,
        batched: bool,
    ) -> Tensor | None:
        """One additive mask that broadcasts to (batch, heads, queries, keys)."""
        mask = None
        if attn_mask is not None:
            mask = _additive(attn_mask, q.dtype)
            if mask.dim() == 3:
                mask = mask.unflatten(0, (q.shape[0], -1))
        if padding is not None:
            padding = _additive(padding if batched else padding.unsqueeze(0), q.dtype)
            padding = padding.view(k.shape[0], 1, 1, k.shape[2])
            mask = padding if mask is None else mask + padding
        return mask


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))
