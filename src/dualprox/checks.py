"""Refusals: every bad setting is named with its rule and its value."""

import sys
from dataclasses import fields
from typing import Any

import numpy as np

_MOST = 200  # letters of a value in a message


def require(ok: bool, name: str, rule: str, value: object) -> None:
    """Raise ``ValueError("name must be rule, got value")`` unless `ok`."""
    if not ok:
        raise ValueError(f"{name} must be {rule}, got {shown(value)}")


def require_kind(kind: Any, rule: str, **values: Any) -> None:
    """Raise ``TypeError("name must be rule, got value")`` unless all values are of a kind.

    Args:
        kind: as isinstance takes it.
        rule: what a value has to be, in words.
        values: by their names.
    """
    for name, value in values.items():
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be {rule}, got {shown(value)}")


def shown(value: object) -> str:
    r"""A value in a message: its repr on one line, cut where it is long; else its type.

    Example:
        >>> shown("x" * 1000)[-5:], shown("one\nline")
        ('x...', "'one\\nline'")
    """
    try:
        text = " ".join(repr(value).split())
    except Exception:  # of a foreign object, or of a number of thousands of digits
        return f"an object of type {type(value).__name__}"
    return text if len(text) <= _MOST else f"{text[:_MOST]}..."


def is_real(value: Any) -> bool:
    """Whether `value` is a finite real number, Python's or numpy's (no bool, no tensor)."""
    number = isinstance(value, int | float | np.integer | np.floating)
    return number and not isinstance(value, bool) and bool(abs(value) <= sys.float_info.max)


def is_count(value: Any) -> bool:
    """Whether `value` is a whole number of at least one, Python's or numpy's (no bool)."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole and bool(value >= 1)


def is_seed(value: Any) -> bool:
    """Whether `value` is a whole number that every generator of torch takes as its seed."""
    return (is_count(value) or (type(value) is int and value == 0)) and value < 2**63


def plain(value: Any) -> Any:
    """A number of numpy as Python's, which a checkpoint can hold; anything else as it is."""
    return value.item() if isinstance(value, np.integer | np.floating) else value


def make_plain(settings: Any) -> None:
    """`plain` for every field of a frozen dataclass, in place; for its ``__post_init__``.

    Whole numbers past 64 bits, which torch does not multiply by, become floats where these belong.
    """
    for field in fields(settings):
        value = plain(getattr(settings, field.name))
        if field.type is float and type(value) is int and is_real(value) and abs(value) >= 2**63:
            value = float(value)
        if isinstance(value, int | float):
            object.__setattr__(settings, field.name, value)
