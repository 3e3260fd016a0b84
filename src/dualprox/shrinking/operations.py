"""Which operations are known, by name, and what registers what they do."""

from collections.abc import Callable
from typing import Any

Handler = Callable[..., Any]
HANDLERS: dict[str, Handler] = {}

# Copies, of the same bits or of another dtype; dropout in evaluation is one.
COPIES = {"clone", "contiguous", "alias", "detach", "lift_fresh_copy"}
CASTS = {"_to_copy", "to", "dropout", "alpha_dropout", "feature_dropout"}
# Floating point operations that torch does not mark as pointwise, and are.
POINTWISE = {"hardswish", "where", *CASTS}


def handles(*operations: str) -> Callable[[Handler], Handler]:
    """Register what an operation does to units."""

    def register(handler: Handler) -> Handler:
        for operation in operations:
            HANDLERS[operation] = handler
        return handler

    return register


def is_known(operation: str) -> bool:
    """Whether an operation need not be decomposed into others."""
    return operation in HANDLERS or operation in POINTWISE or operation in COPIES
