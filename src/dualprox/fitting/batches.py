"""What a loader gives, and the loss of it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..shrinking.inputs import ExampleInput

Batch = Any
Loss = Callable[[Any, Any], Tensor]


def loss_of(model: nn.Module, batch: Batch, loss: Loss) -> tuple[Tensor, int]:
    """The loss of a batch, and how many examples it has."""
    inputs, targets = split_of(batch)
    device = next(model.parameters()).device
    inputs, targets = pytree.tree_map_only(
        Tensor, lambda tensor: tensor.to(device, non_blocking=True), (inputs, targets)
    )
    value = loss(outputs_of(model, inputs), targets)
    return value, len(pytree.tree_leaves(targets)[0])


def split_of(batch: Batch) -> tuple[Any, Any]:
    """Inputs and targets of a batch.

    Raises:
        TypeError: the batch is no pair.
    """
    if not (isinstance(batch, tuple | list) and len(batch) == 2):
        raise TypeError(
            f"the loader must give pairs (inputs, targets), got {type(batch).__name__}"
            + (f" of {len(batch)}" if isinstance(batch, tuple | list) else "")
        )
    return batch[0], batch[1]


def outputs_of(model: nn.Module, inputs: Any) -> Any:
    """The model's outputs: a tensor is its one argument, a tuple or list all, a mapping named."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def example_of(batch: Batch, model: nn.Module) -> ExampleInput:
    """The first two examples of a batch's inputs, where the model is."""
    device = next(model.parameters()).device

    def first(tensor: Tensor) -> Tensor:
        return (tensor[:2].detach() if tensor.dim() else tensor).to(device)

    return pytree.tree_map_only(torch.Tensor, first, split_of(batch)[0])
