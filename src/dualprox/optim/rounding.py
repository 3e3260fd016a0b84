"""What rounding does to the numbers that a step leaves; docs/math.md has the bounds.

Subnormal numbers, which decay leaves behind and most CPUs take many times longer for, become zero.
Of a parameter narrower than float32 the state keeps a `remainder`: what the iterate is beyond it.
"""

from typing import Any

import torch
from torch import Tensor

from ..sharding import local
from .bundle import Bundle

REMAINDER = "remainder"
_REMAINDER_DTYPE = torch.bfloat16  # 8 more digits, at two bytes, over float32's range


def flush_(*tensors: Tensor) -> None:
    """Zero the subnormal numbers of tensors or bundles, in place; NaN stays.

    Half precision keeps its own, which are no slower: computations widen them.
    """
    bundled: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        given: Any = tensor
        if tensor.dtype == torch.float16:
            continue
        if isinstance(given, Bundle):
            bundled.setdefault(tensor.dtype, []).extend(given.parts)
            continue
        numbers = torch.finfo(tensor.dtype)
        largest_subnormal = numbers.tiny * (1 - numbers.eps)
        torch.ops.aten.hardshrink.out(local(tensor), largest_subnormal, out=local(tensor))
    for alike in bundled.values():
        Bundle(alike).flush_()


def new_remainder(param: Tensor) -> dict[str, Tensor]:
    """The state entry of a parameter narrower than float32: zeros; empty for others."""
    if torch.promote_types(param.dtype, torch.float32) == param.dtype:
        return {}
    zeros = torch.zeros_like(param, dtype=_REMAINDER_DTYPE, requires_grad=False)
    return {REMAINDER: zeros}


def iterate(param: Tensor, state: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    """The iterate in `dtype`: the parameter itself, or a new tensor with the remainder."""
    if REMAINDER not in state:
        return param.to(dtype)
    return param.to(dtype) + state[REMAINDER].to(dtype)


def set_iterate_(param: Tensor, state: dict[str, Tensor], value: Tensor) -> None:
    """Give the iterate a value, which the parameter rounds."""
    if value is not param:
        param.copy_(value)
    if REMAINDER in state:
        state[REMAINDER].copy_(value - param.to(value.dtype))


def settle_(param: Tensor, state: dict[str, Tensor], *names: str) -> None:
    """`flush_` the iterate, and what the state has under these names, at the end of a step."""
    rest = [state[REMAINDER]] if REMAINDER in state else []
    flush_(param, *rest, *(state[name] for name in names))
