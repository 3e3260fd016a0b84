"""A fit on disk."""

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..files import load_tensors, write_atomically


def save(path: Path, state: dict[str, Any]) -> None:
    """Put a state in the place of the one before, which stays until this one is whole."""
    write_atomically(path, lambda file: torch.save(state, file))


def load(path: Path) -> dict[str, Any]:
    """The state that `save` wrote, on the CPU; nothing in the file is run.

    Raises:
        ValueError: it is damaged, or no state of a fit.
    """
    with reading(path):
        state = load_tensors(path)
        if not (isinstance(state, dict) and isinstance(state.get("fit"), dict)):
            raise ValueError("is no checkpoint of a fit")
        return state


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what torch and Python raise for a file with other values into a ValueError.

    A ValueError of this library is to go on the sentence that begins with the path.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.filename:  # torch raises it for damaged files, too
            raise
        reason = str(error).partition("\n")[0]
        if isinstance(error, ValueError) and reason.startswith("is "):
            raise ValueError(f"checkpoint {path} {reason}") from None
        told = f"{type(error).__name__}: {reason}"
        raise ValueError(f"checkpoint {path} is damaged: {told}") from error


def state_of(loader: Any) -> Any:
    """What a loader says of where it is; None if it says nothing."""
    return loader.state_dict() if _has_state(loader) else None


def set_state_of(loader: Any, state: Any) -> None:
    """Put a loader where `state_of` was asked."""
    if _has_state(loader) and state is not None:
        loader.load_state_dict(state)


def _has_state(loader: Any) -> bool:
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


def rng() -> dict[str, Any]:
    """The random states of Python, numpy and torch, of the CPU and the CUDA devices in use."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    numpys: Any = np.random.get_state(legacy=True)
    name, keys, *rest = numpys
    return {
        "cpu": torch.get_rng_state(),
        "cuda": cuda,
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
    }


def set_rng(state: dict[str, Any]) -> None:
    """Go back to `rng`; on a machine with other devices only what both have."""
    torch.set_rng_state(state["cpu"])
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    for number, own in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(own, number)
