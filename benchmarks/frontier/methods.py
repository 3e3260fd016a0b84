"""What a method is: settings in the order of trying, and a function that trains a network."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .tasks import Task
from .training import Clock

Setting = Mapping[str, Any]


@dataclass
class Outcome:
    """A trained network.

    Args:
        model: physically as small as the method makes it.
        clock: of all its training.
        nonzero: entries that are not zero, for methods that leave zeros where they are; else None.
        notes: what the method has to say, plain values.
    """

    model: nn.Module
    clock: Clock
    nonzero: int | None = None
    notes: dict[str, Any] = field(default_factory=dict)


# Task, seed, target size as a fraction of the parameters, setting.
Train = Callable[[Task, int, float, Setting], Outcome]


@dataclass(frozen=True)
class Method:
    """An entry of the benchmark.

    Args:
        name: as on the command line.
        train: the whole training of one network, in `task.epochs` epochs.
        settings: in the order in which tuning tries them, the method's default first.
        sized: whether it aims at a size; others run once for each seed.
        unstructured: whether its size counts entries that are not zero.
        packages: distributions that it needs, for the record.
        caveat: what must be said wherever its figures are shown.
    """

    name: str
    train: Train
    settings: tuple[Setting, ...]
    sized: bool = True
    unstructured: bool = False
    packages: tuple[str, ...] = ()
    caveat: str = ""


def parameters(model: nn.Module) -> int:
    """Entries of all parameters, shared ones once."""
    return sum(p.numel() for p in model.parameters())


def weighted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Linear layers and convolutions by name, in the order of their registration."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def largest_within(
    size_at: Callable[[float], float], target: float, low: float, high: float, steps: int = 10
) -> float:
    """The knob at which the size comes nearest to the target from below, by bisection.

    Args:
        size_at: size at a knob; does not grow with it.
        target: of the size.
        low: a knob that leaves too much.
        high: a knob that leaves no more than the target, or the most that there is.
        steps: evaluations of `size_at`.

    Example:
        >>> round(largest_within(lambda knob: 1 - knob, 0.3, 0.0, 1.0, steps=20), 4)
        0.7
    """
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (low, middle) if size_at(middle) <= target else (middle, high)
    return high


def split_epochs(epochs: int, *shares: float) -> list[int]:
    """Whole numbers of epochs in proportion to the shares, of that sum; each share > 0 gets one.

    Example:
        >>> split_epochs(10, 0.5, 0.5), split_epochs(8, 0.3, 0.4, 0.3), split_epochs(3, 0.9, 0.1)
        ([5, 5], [2, 4, 2], [2, 1])
    """
    parts = [max(1, round(share * epochs)) if share else 0 for share in shares]
    while sum(parts) != epochs:
        step = 1 if sum(parts) < epochs else -1
        parts[parts.index(max(parts))] += step
    return parts


@torch.no_grad()
def restored(model: nn.Module, values: Mapping[str, torch.Tensor]) -> nn.Module:
    """A copy of the model with the named parameters set."""
    copied = copy.deepcopy(model)
    own = dict(copied.named_parameters())
    for name, value in values.items():
        own[name].copy_(value)
    return copied
