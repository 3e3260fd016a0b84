"""A linear layer that reads some of the inputs that it is given."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import require
from ..kinds import check_device, check_kinds


class SelectLinear(nn.Linear):
    """y = W x[index] + b: a linear layer that first selects the inputs that it needs.

    The state dict holds `weight`, of shape (out_features, in_features), `bias` if there is one,
    and `index`. What is not selected is not read: there, infinity or NaN has no effect.

    Args:
        of_features: inputs that it is given, >= 1.
        out_features: as in nn.Linear.
        index: which of them it reads, increasing; at least one. `in_features` is their number.
        bias: whether there is a bias.
        device: of the tensors.
        dtype: of weight and bias.

    Raises:
        ValueError: `index` is empty, not increasing or out of range.

    Example:
        >>> layer = nn.Linear(3, 2, bias=False)
        >>> with torch.no_grad():
        ...     _ = layer.weight.copy_(torch.tensor([[0.0, 2.0, 0.0], [1.0, 5.0, 0.0]]))
        >>> select = SelectLinear.of(layer, [0, 1])
        >>> select
        SelectLinear(in_features=2, out_features=2, bias=False, of_features=3)
        >>> select(torch.tensor([1.0, 1.0, 1.0]))
        tensor([2., 6.], grad_fn=...)
    """

    index: Tensor

    def __init__(
        self,
        of_features: int,
        out_features: int,
        index: Sequence[int],
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_kinds(SelectLinear.__init__, locals())
        check_device(device)
        for name, size in (("of_features", of_features), ("out_features", out_features)):
            require(0 <= size < 2**31, name, "an int from 0 to 2**31 - 1", size)
        index = list(index)
        rule = f"increasing indices >= 0 and < {of_features}, at least one"
        fits = bool(index) and index == sorted(set(index))
        require(fits and index[0] >= 0 and index[-1] < of_features, "index", rule, index)
        super().__init__(len(index), out_features, bias, device, dtype)
        self.of_features = of_features
        self.register_buffer("index", torch.tensor(index, dtype=torch.int64, device=device))

    @classmethod
    def of(cls, layer: nn.Linear, index: Sequence[int]) -> "SelectLinear":
        """The layer's weights for these inputs, bit for bit; no random numbers are drawn."""
        weight, bias = layer.weight, layer.bias
        shape: tuple[Any, ...] = (layer.in_features, layer.out_features, index, bias is not None)
        made = cls(*shape, device="meta", dtype=weight.dtype)
        made.index = torch.tensor(list(index), dtype=torch.int64, device=weight.device)
        kept = weight.detach().index_select(1, made.index)
        made.weight = nn.Parameter(kept, requires_grad=weight.requires_grad)
        if bias is not None:
            made.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        return made.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        """As nn.Linear, of (..., of_features)."""
        return F.linear(input.index_select(-1, self.index), self.weight, self.bias)

    def extra_repr(self) -> str:
        """As nn.Linear, and what it selects from."""
        return f"{super().extra_repr()}, of_features={self.of_features}"
