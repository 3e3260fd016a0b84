"""Whether arguments are of the kinds that their annotations say."""

import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .checks import shown

_NUMBERS = (int, np.integer), (int, float, np.integer, np.floating)
_WORDS = {
    bool: "a bool",
    int: "a whole number",
    float: "a number",
    str: "a text",
    torch.Tensor: "a tensor",
    nn.Module: "a module",
    type(None): "None",
}


def check_kinds(owner: Any, values: Mapping[str, Any]) -> None:
    """Raise for a value that is not of the kind that its annotation says.

    Numbers may be numpy's; a bool is no number, and nothing else is a bool.

    Args:
        owner: an annotated function, whose first line gives its ``locals()``, or a dataclass.
        values: by the names of parameters or fields; other names do not matter.

    Raises:
        TypeError: a value is of another kind.
        ValueError: it is a number, but not of the kind that is asked for, or a lazy module that
            has not been run yet.
    """
    known = {f.name: f.type for f in fields(owner)} if is_dataclass(owner) else None
    for name, kind in (known or owner.__annotations__).items():
        if name == "return" or name not in values:
            continue
        value = values[name]
        if not fits(value, kind):
            wanted = any(each in (bool, int, float) for each in (kind, *typing.get_args(kind)))
            error = ValueError if wanted and isinstance(value, int | float) else TypeError
            raise error(f"{name} must be {described(kind)}, got {shown(value)}")
        if isinstance(value, nn.Module):
            lazy = [path for path, param in value.named_parameters() if is_lazy(param)]
            if lazy:
                rule = "must have been run once, for it is lazy"
                raise ValueError(f"{name} {rule}, got {shown(value)} without its {lazy[0]}")


def check_device(device: torch.device | str | None) -> None:
    """Raise ValueError for a device that torch does not know."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device must be one of torch's, got {shown(device)}: {reason}") from None


def as_tuple(value: Any) -> Any:
    """A list as a tuple, anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of the kind that an annotation says; of one in quotes anything is.

    Which of the texts of a `Literal` it is does not matter.

    Example:
        >>> fits((1, 2), tuple[int, ...]), fits((1, True), tuple[int, ...]), fits(1, float | None)
        (True, False, True)
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, each) for each in args)
    if origin is Literal:
        return any(type(value) is type(each) for each in args)
    if kind in (int, float):
        return isinstance(value, _NUMBERS[kind is float]) and not isinstance(value, bool)
    if origin is Callable or kind is Callable:
        return callable(value)
    whole = type(None) if kind is None else origin or kind
    if kind is Any or not isinstance(whole, type) or isinstance(kind, TypeVar):
        return True
    # An array without axes has __iter__ and cannot be iterated.
    if not isinstance(value, whole) or (whole is Iterable and getattr(value, "ndim", 1) == 0):
        return False
    return _parts_fit(value, whole, args)


def _parts_fit(value: Any, whole: type, args: tuple[Any, ...]) -> bool:
    """Whether the parts of a container of the right kind are of the right kinds."""
    if not args or isinstance(value, range):
        return True
    if issubclass(whole, Mapping):
        return all(fits(k, args[0]) and fits(v, args[1]) for k, v in value.items())
    if whole is tuple and args[-1] is not Ellipsis:
        return len(value) == len(args) and all(map(fits, value, args))
    if issubclass(whole, Collection):
        return not isinstance(value, str | bytes) and all(fits(each, args[0]) for each in value)
    return True


def described(kind: Any) -> str:
    """The kind as a person would say it.

    Example:
        >>> described(tuple[int, ...] | None), described(Literal["a", "b"])
        ('a tuple of whole numbers or None', "'a' or 'b'")
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(described, args)))
    if origin is Literal:
        return " or ".join(map(repr, args))
    if kind in _WORDS or kind is None:
        return _WORDS[type(None) if kind is None else kind]
    name = getattr(origin or kind, "__name__", "value")
    name = name if origin is None else name.lower()
    article = "an" if name[0].lower() in "aeiou" else "a"
    if origin is None or not args or Any in args or isinstance(args[0], str | TypeVar | list):
        return f"{article} {name}"
    if issubclass(origin, Mapping):
        return f"{article} {name} of {_plural(args[0])} to {_plural(args[1])}"
    if origin is tuple and args[-1] is not Ellipsis:
        return f"{article} {name} of {len(args)} {_plural(args[0])}"
    return f"{article} {name} of {_plural(args[0])}"


def _plural(kind: Any) -> str:
    parts = described(kind).split(" or ")
    return " or ".join(f"{part.removeprefix('a ').removeprefix('an ')}s" for part in parts)
