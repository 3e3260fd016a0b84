"""What the fuzz tests share: bad values, and the law of a call that is given one.

A call with a bad value works, or raises ValueError or TypeError with the name of the parameter, the
value or its type, and the rule; whatever it was given is then as it was, bit by bit.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import dualprox as dp
from dualprox.checks import plain, shown


class Unprintable:
    """Whose repr raises."""

    def __repr__(self) -> str:
        raise RuntimeError("no words")


class Truthless:
    """Neither true nor false."""

    def __bool__(self) -> bool:
        raise RuntimeError("no truth")


# Makers: iterators and modules must be new for every call.
BAD_VALUES: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "true": lambda: True,
    "false": lambda: False,
    "zero": lambda: 0,
    "one": lambda: 1,
    "two": lambda: 2,
    "minus one": lambda: -1,
    "past int64": lambda: 2**63,
    "past float": lambda: 10**400,
    "past digits": lambda: -(10**5000),
    "zero point": lambda: 0.0,
    "half": lambda: 0.5,
    "minus half": lambda: -0.5,
    "one and a half": lambda: 1.5,
    "huge": lambda: 1e308,
    "subnormal": lambda: 5e-324,
    "nan": lambda: math.nan,
    "inf": lambda: math.inf,
    "minus inf": lambda: -math.inf,
    "complex": lambda: 1j,
    "decimal": lambda: Decimal("0.5"),
    "fraction": lambda: Fraction(1, 2),
    "empty text": lambda: "",
    "text": lambda: "x",
    "digit": lambda: "1",
    "long text": lambda: "x\n" * 10_000,
    "bytes": lambda: b"x",
    "empty list": list,
    "list": lambda: [1],
    "list of none": lambda: [None],
    "list of texts": lambda: ["x"],
    "nested list": lambda: [[1]],
    "empty tuple": tuple,
    "pair": lambda: (1, -1),
    "pair of nan": lambda: (math.nan, math.nan),
    "triple": lambda: (0.5, 0.5, 0.5),
    "empty dict": dict,
    "dict": lambda: {"x": 1},
    "dict of numbers": lambda: {1: 2},
    "dict of none": lambda: {"x": None},
    "dict of dicts": lambda: {"x": {"y": {}}},
    "set": lambda: {1},
    "range": lambda: range(3),
    "iterator": lambda: iter([1]),
    "generator": lambda: (x for x in ("x",)),
    "object": object,
    "unprintable": Unprintable,
    "truthless": Truthless,
    "type": lambda: int,
    "function": lambda: len,
    "float32": lambda: np.float32(0.5),
    "float64": lambda: np.float64(0.5),
    "nan of numpy": lambda: np.float32("nan"),
    "int64": lambda: np.int64(2),
    "bool of numpy": lambda: np.bool_(True),
    "0-dim array": lambda: np.array(0.5),
    "array": lambda: np.array([1.0, np.nan]),
    "array of objects": lambda: np.array([None]),
    "0-dim tensor": lambda: torch.tensor(0.5),
    "0-dim int tensor": lambda: torch.tensor(2),
    "0-dim nan": lambda: torch.tensor(math.nan),
    "tensor": lambda: torch.tensor([1.0, 2.0]),
    "empty tensor": lambda: torch.tensor([]),
    "int tensor": lambda: torch.ones(2, 2, dtype=torch.int64),
    "complex tensor": lambda: torch.ones(2, 2, dtype=torch.complex64),
    "meta tensor": lambda: torch.ones(2, 2, device="meta"),
    "sparse tensor": lambda: torch.eye(2).to_sparse(),
    "list of tensors": lambda: [torch.ones(2, 2)],
    "linear": lambda: nn.Linear(2, 2),
    "module": nn.Module,
    "lazy module": lambda: nn.LazyLinear(2),
    "meta module": lambda: nn.Linear(2, 2, device="meta"),
    "class of modules": lambda: nn.Linear,
    "penalty": lambda: dp.L1(0.1),
    "constraint": lambda: dp.NonNegative(),
    "solver": dp.Exact,
    "plan": dp.Plan,
    "slices": dp.Slices,
    "sgd": lambda: torch.optim.SGD([nn.Parameter(torch.ones(2, 2))], lr=0.1),
    "rmda": lambda: dp.RMDA([nn.Parameter(torch.ones(2, 2))]),
}


def _children(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [*value, *value.values()]
    if isinstance(value, Sequence | set) and not isinstance(value, str | bytes):
        return list(value)
    return []


# What a message says of a value that holds nothing.
NOTHING = ("got none", "got None", "got no ", "nothing", "got []", "got ()", "only one of them has")


def words_for(value: Any) -> Iterator[str]:
    """What a message may call a value: itself or its type, or those of something in it."""
    yield shown(plain(value))
    yield type(value).__name__
    if isinstance(value, Tensor):
        yield str(tuple(value.shape))
        yield str(value.dtype)
        if value.dim() == 0 and not value.is_meta:
            yield shown(value.item())
    if isinstance(value, Iterator | bytes | np.ndarray | Tensor | nn.Module):
        yield "got"  # what was in it
        yield "matches no"
    if isinstance(value, str):
        yield shown(list(value))
    for child in _children(value):
        yield from words_for(child)


@dataclass(frozen=True)
class Broken(Exception):
    """How a call broke the law."""

    what: str


def try_call(
    call: Callable[..., Any],
    given: dict[str, Any],
    bad: Sequence[str],
    may_raise: tuple[type[Exception], ...] = (),
) -> str:
    """Call it, and return "works" or the message of its refusal.

    Args:
        call: what is tried.
        given: its keyword arguments.
        bad: the names of those that are bad.
        may_raise: exceptions that its docstring has besides ValueError and TypeError.

    Raises:
        Broken: the call broke the law.
    """
    before = {name: snapshot(value) for name, value in given.items()}
    try:
        call(**given)
    except may_raise as error:
        message = str(error)
    except (ValueError, TypeError) as error:
        message = str(error)
        # Rules that join parameters may name the other one.
        named = [name for name in given if name in message]
        if not named:
            raise Broken(f"{type(error).__name__} does not name {bad}: {message[:200]}") from error
        words = [word for name in named for word in words_for(given[name])]
        if not any(word in message for word in (*words, *NOTHING)):
            raise Broken(f"{type(error).__name__} shows no value: {message[:200]}") from error
        if len(message) > 4000:
            raise Broken(f"a message of {len(message)} letters") from error
    except Exception as error:
        raise Broken(f"{type(error).__name__}: {str(error)[:200]}") from error
    else:
        return "works"
    for name, value in given.items():
        if not same(before[name], snapshot(value)):
            raise Broken(f"{name} was changed by a call that failed: {message[:200]}")
    return message


def snapshot(value: Any) -> Any:
    """All that a failed call must not change of a module, an optimizer, or a list of groups."""
    if isinstance(value, nn.Module):
        return [
            (name, type(module), module.training, _copied(module._parameters | module._buffers))
            for name, module in value.named_modules()
        ]
    if isinstance(value, torch.optim.Optimizer):
        groups = [
            {name: part if name == "penalty" else _copied(part) for name, part in group.items()}
            for group in value.param_groups
        ]
        return [groups, [_copied(state) for state in value.state.values()]]
    if isinstance(value, Tensor) or type(value) in (list, dict, tuple):
        return _copied(value)
    return None


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        is_lazy = isinstance(value, nn.UninitializedParameter)
        return value if is_lazy or value.layout is not torch.strided else value.detach().clone()
    if type(value) in (list, tuple):
        return [_copied(part) for part in value]
    if isinstance(value, dict):
        return {name: _copied(part) for name, part in value.items()}
    return value


def same(first: Any, second: Any) -> bool:
    """Whether two snapshots are equal, bit by bit."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        if first is second or first.is_meta:
            return True
        alike = first.shape == second.shape and first.dtype == second.dtype
        return alike and torch.equal(first.nan_to_num(7.25), second.nan_to_num(7.25))
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, tuple) and isinstance(second, tuple):
        return len(first) == len(second) and all(map(same, first, second))
    if is_dataclass(first) and type(first) is type(second):
        return all(getattr(first, f.name) is getattr(second, f.name) for f in fields(first))
    alike = type(first) is type(second) and first == second
    return first is second or bool(alike) or bool(first != first)
