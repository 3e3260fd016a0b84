"""What is known of a tensor in the graph: the units of its axes, and entries that never change."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .units import RIGID, Ids, rigid


@dataclass(frozen=True, eq=False)
class Known:
    """Entries whose value does not depend on the network's input.

    Args:
        mask: bool, which entries are known; each axis has the tensor's length, or length one where
            all along it are alike.
        value: their values, of the mask's shape; meaningless elsewhere. Floats are float64. Both
            lie on the CPU, wherever the network does.
    """

    mask: Tensor
    value: Tensor

    @staticmethod
    def all(value: Tensor) -> "Known":
        """Every entry is known."""
        value = value.detach().cpu()
        value = value.double() if value.is_floating_point() else value
        return Known(torch.ones_like(value, dtype=torch.bool), value)

    def checked(self) -> "Known | None":
        """Without entries that are not finite; None if nothing is known."""
        mask = self.mask
        if self.value.is_floating_point():
            mask = mask & self.value.isfinite()
        return Known(mask, self.value) if bool(mask.any()) else None


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor in the graph.

    Args:
        shape: its shape.
        ids: for each axis, the units of its indices.
        known: what is known of its entries beforehand.
        data: the tensor itself, where it depends on parameters alone.
        name: of the parameter or buffer that it is, or "".
    """

    shape: tuple[int, ...]
    ids: tuple[Ids, ...]
    known: Known | None = None
    data: Tensor | None = field(default=None, repr=False)
    name: str = ""

    @staticmethod
    def rigid(shape: Sequence[int]) -> "Value":
        """A tensor of which nothing can go."""
        return Value(tuple(shape), tuple(rigid(n) for n in shape))

    def is_rigid(self) -> bool:
        """Whether nothing of it can go."""
        return all((ids == RIGID).all() for ids in self.ids)

    def facts(self) -> Known | None:
        """What is known of its entries."""
        if self.data is not None:
            return Known.all(self.data)
        return self.known

    def zeros(self, axis: int) -> np.ndarray:
        """Which slices along an axis are known to be zero."""
        return self.constant(axis) == 0

    def constant(self, axis: int) -> np.ndarray:
        """The value of the slices along an axis that are known to be all of one value; else NaN."""
        found = np.full(self.shape[axis], np.nan)
        facts = self.facts()
        if facts is None or not facts.value.is_floating_point():
            return found
        mask = facts.mask.movedim(axis, 0).flatten(1)
        value = facts.value.movedim(axis, 0).flatten(1)
        if not value.shape[1]:
            return found
        alike = mask.all(1) & (value == value[:, :1]).all(1)
        found[:] = torch.where(alike, value[:, 0], torch.nan).cpu().numpy()
        return found

    def with_axis(self, axis: int, ids: Ids) -> "Value":
        """The same with other units along an axis, of the same length."""
        places = list(self.ids)
        places[axis] = ids
        return replace(self, ids=tuple(places))


def along(axis: int, rank: int, mask: np.ndarray, value: np.ndarray) -> Known | None:
    """Facts that are the same for everything but the index along one axis."""
    shape = [-1 if i == axis else 1 for i in range(rank)]
    clean = np.where(mask, value, 0.0)
    facts = Known(torch.from_numpy(mask), torch.from_numpy(clean))
    return Known(facts.mask.reshape(shape), facts.value.reshape(shape)).checked()


def mapped(function: Callable[[Tensor], Tensor], facts: Known | None) -> Known | None:
    """Facts about the result of moving entries about."""
    if facts is None:
        return None
    return Known(function(facts.mask), function(facts.value)).checked()


def pointwise(
    function: Callable[..., Any], operation: str, args: Sequence[Any], kwargs: dict[str, Any]
) -> Known | None:
    """Facts about the result of a function of each entry.

    Args:
        function: on tensors and numbers.
        operation: its name: a product with a known zero is zero.
        args: `Value`s for tensors.
        kwargs: numbers.
    """
    values = [arg for arg in args if isinstance(arg, Value)]
    facts = [value.facts() for value in values]
    if operation in ("mul", "mul_") and len(values) == 2:
        known = [fact or _nothing(value) for fact, value in zip(facts, values, strict=True)]
        zero = [fact.mask & (fact.value == 0) for fact in known]
        mask = (known[0].mask & known[1].mask) | zero[0] | zero[1]
        product = torch.where(zero[0] | zero[1], 0.0, known[0].value * known[1].value)
        return Known(mask, product).checked()
    if any(fact is None for fact in facts) or not facts:
        return None
    present = [fact for fact in facts if fact is not None]
    mask = present[0].mask
    for fact in present[1:]:
        mask = mask & fact.mask
    supply = iter(present)
    given = [next(supply).value if isinstance(arg, Value) else arg for arg in args]
    result = function(*given, **kwargs)
    return Known(mask.expand(result.shape), result).checked()


def _nothing(value: Value) -> Known:
    shape = (1,) * len(value.shape)
    return Known(torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.float64))
