"""Refusals: every bad setting is named with its rule and its value."""

import math
from typing import Any


def require(ok: bool, name: str, rule: str, value: object) -> None:
    """Raise ``ValueError("name must be rule, got value")`` unless `ok`."""
    if not ok:
        raise ValueError(f"{name} must be {rule}, got {value!r}")


def is_real(value: Any) -> bool:
    """Whether `value` is a plain finite real number (no bool, no tensor)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: Any) -> bool:
    """Whether `value` is a whole number of at least one (no bool)."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
