"""Many tensors that take the same operations, so that a step launches each operation once.

A network has many more biases and norms than large weights, and on a GPU each of them costs as
many launches as a large weight does. Here is the part of a tensor's methods that the steps of
this package are written in, for a list of tensors at once, by torch's `_foreach` functions: an
`update` is written once, for one tensor, and given a bundle it steps all of its parameters.
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ..sharding import Cut, is_sharded, local

# Public, whatever its functions' names say: torch.optim's own foreach=True is written in them.
_torch: Any = torch

# How much one bundle may hold, counted in float32. A step makes a few temporary tensors as large
# as the bundle, which so stay a few times this, whatever the model. Larger tensors go alone: they
# keep a device busy anyway. On the CPU only Python's share is saved, and temporaries that leave
# the cache would cost more than that.
_MOST_BYTES = {"cpu": 2**18}
_MOST_BYTES_ELSEWHERE = 2**24


class Bundle:
    """Tensors of one dtype and device, with the methods of a tensor that a step needs.

    Numbers in a method's arguments are shared by all tensors; bundles are matched tensor by
    tensor. `item`, and the truth value, are those of every tensor: only for equal counters. What
    is done to a sharded tensor is done to the part that this process has.

    Args:
        tensors: any, sharded or not; no copies.
        cuts: how tensors are sharded of which the parts are given instead.
    """

    def __init__(self, tensors: Sequence[Tensor], cuts: Sequence[Cut | None] | None = None) -> None:
        self.parts = [local(tensor) for tensor in tensors]
        self._whole = list(tensors) if cuts is None else None
        self._cuts = cuts or [Cut.of(t) if is_sharded(t) else None for t in tensors]

    def _of(self, parts: Sequence[Tensor]) -> "Bundle":
        """A bundle of tensors that are cut like these."""
        return Bundle(parts, self._cuts)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors; no copies."""
        if self._whole is None:
            pairs = zip(self.parts, self._cuts, strict=True)
            self._whole = [part if cut is None else cut.joined(part) for part, cut in pairs]
        return self._whole

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.tensors)

    @property
    def dtype(self) -> torch.dtype:
        """The tensors' dtype."""
        return self.parts[0].dtype

    def item(self) -> float:
        """The value of the first; the others have the same."""
        return self.parts[0].item()

    def __bool__(self) -> bool:
        return bool(self.parts[0])

    def fill_(self, value: float) -> "Bundle":
        """As `Tensor.fill_`."""
        for part in self.parts:
            part.fill_(value)
        return self

    def zero_(self) -> "Bundle":
        """As `Tensor.zero_`."""
        _torch._foreach_zero_(self.parts)
        return self

    def to(self, dtype: torch.dtype) -> "Bundle":
        """As `Tensor.to`: itself, if it is of this dtype."""
        if dtype == self.dtype:
            return self
        return self._of([torch.empty_like(part, dtype=dtype) for part in self.parts]).copy_(self)

    def copy_(self, other: "Bundle") -> "Bundle":
        """As `Tensor.copy_`."""
        _torch._foreach_copy_(self.parts, other.parts)
        return self

    def add_(self, other: "Bundle | float", alpha: float = 1) -> "Bundle":
        """As `Tensor.add_`."""
        if isinstance(other, Bundle):
            _torch._foreach_add_(self.parts, other.to(self.dtype).parts, alpha=alpha)
        else:
            _torch._foreach_add_(self.parts, other * alpha)
        return self

    __iadd__ = add_

    def addcmul_(self, first: "Bundle", second: "Bundle", value: float) -> "Bundle":
        """As `Tensor.addcmul_`."""
        _torch._foreach_addcmul_(self.parts, first.parts, second.parts, value=value)
        return self

    def lerp_(self, end: "Bundle", weight: float) -> "Bundle":
        """As `Tensor.lerp_`."""
        _torch._foreach_lerp_(self.parts, end.parts, weight)
        return self

    def mul_(self, other: float) -> "Bundle":
        """As `Tensor.mul_`."""
        _torch._foreach_mul_(self.parts, other)
        return self

    def div_(self, other: float) -> "Bundle":
        """As `Tensor.div_`."""
        _torch._foreach_div_(self.parts, other)
        return self

    def clamp_min_(self, other: "Bundle") -> "Bundle":
        """As `Tensor.clamp_min_`."""
        _torch._foreach_clamp_min_(self.parts, other.parts)
        return self

    def clamp_max_(self, high: float) -> "Bundle":
        """As `Tensor.clamp_max_`."""
        _torch._foreach_clamp_max_(self.parts, high)
        return self

    def flush_(self) -> "Bundle":
        """Zero the subnormal numbers, in few launches: multiplied by 0, all others by 1."""
        kept = _torch._foreach_abs(self.parts)
        _torch._foreach_div_(kept, torch.finfo(self.dtype).tiny)
        _torch._foreach_trunc_(kept)
        _torch._foreach_clamp_max_(kept, 1)
        _torch._foreach_mul_(self.parts, kept)
        return self

    def clamp(self, low: float, high: float) -> "Bundle":
        """As `Tensor.clamp`."""
        clamped = _torch._foreach_clamp_min(self.parts, low)
        _torch._foreach_clamp_max_(clamped, high)
        return self._of(clamped)

    def sqrt(self) -> "Bundle":
        """As `Tensor.sqrt`."""
        return self._of(_torch._foreach_sqrt(self.parts))

    def pow(self, exponent: float) -> "Bundle":
        """As `Tensor.pow`."""
        return self._of(_torch._foreach_pow(self.parts, exponent))

    def __neg__(self) -> "Bundle":
        return self._of(_torch._foreach_neg(self.parts))

    def __sub__(self, other: "Bundle") -> "Bundle":
        return self._of(_torch._foreach_sub(self.parts, other.parts))

    def __mul__(self, other: "Bundle | float") -> "Bundle":
        return self._of(_torch._foreach_mul(self.parts, _operand(other)))

    __rmul__ = __mul__

    def __truediv__(self, other: "Bundle | float") -> "Bundle":
        return self._of(_torch._foreach_div(self.parts, _operand(other)))

    def __add__(self, other: "Bundle | float") -> "Bundle":
        return self._of(_torch._foreach_add(self.parts, _operand(other)))

    __radd__ = __add__


def _operand(other: "Bundle | float") -> Any:
    return other.parts if isinstance(other, Bundle) else other


def as_tensor(tensors: Sequence[Tensor]) -> Tensor:
    """The tensor, if it is one, or a bundle: what is written for a tensor takes either."""
    return tensors[0] if len(tensors) == 1 else cast(Tensor, Bundle(tensors))


def tensors_of(tensor: Tensor) -> list[Tensor]:
    """The tensors of a bundle, or the one tensor."""
    given: Any = tensor
    return given.tensors if isinstance(given, Bundle) else [tensor]


def part_of(value: Any, index: int) -> Any:
    """A bundle's tensor; anything else is shared by all of them."""
    return value.tensors[index] if isinstance(value, Bundle) else value


def bundles(
    params: Sequence[Tensor], states: Sequence[dict[str, Tensor]], counters: Sequence[str]
) -> Iterator[list[int]]:
    """Which parameters can be stepped together: the indices, bundle by bundle.

    They share dtypes, device and the values of their counters, which lie on the CPU, so that
    comparing them does not wait for a device. Tensor subclasses go alone.
    """
    values = torch.stack([state[name] for state in states for name in counters]).tolist()
    width = len(counters)
    open_: dict[Any, tuple[list[int], int]] = {}
    for index, (param, state) in enumerate(zip(params, states, strict=True)):
        most = _MOST_BYTES.get(param.device.type, _MOST_BYTES_ELSEWHERE)
        size = 4 * param.numel()
        if size > most or type(param) not in (Tensor, torch.nn.Parameter):
            yield [index]
            continue
        assert param.grad is not None
        key = (
            param.device,
            param.dtype,
            param.grad.dtype,
            *(value.dtype for name, value in state.items() if name not in counters),
            *values[index * width : (index + 1) * width],
        )
        members, total = open_.get(key, ([], 0))
        if total + size > most:
            yield members
            members, total = [], 0
        open_[key] = ([*members, index], total + size)
    for members, _ in open_.values():
        yield members
