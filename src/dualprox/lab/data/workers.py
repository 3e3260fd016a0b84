"""Examples read by worker processes, ahead of the training that waits for them."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .layout import DataError


def default_workers() -> int:
    """As many processes as there are CPUs, at most 8."""
    return min(os.cpu_count() or 1, 8)


def read_batches(
    examples: Dataset[Any],
    batches: Sequence[Tensor],
    workers: int,
    collate: Callable[[list[Any]], Any] | None = None,
) -> Iterator[Any]:
    """Batches of examples, read a few batches ahead; the number of workers changes no bit.

    Args:
        examples: can be indexed and pickled; what it gives depends on the index alone.
        batches: the indices of each batch.
        workers: processes; 0 reads in this one.
        collate: a list of examples to a batch; None stacks tensors.

    Returns:
        An iterator; its processes end with it.

    Raises:
        DataError: from the iterator, as an example raised it.
    """
    loader = DataLoader(
        examples,
        batch_sampler=[batch.tolist() for batch in batches],
        num_workers=workers,
        collate_fn=collate,
        # Else it would draw from the random numbers that the network's dropout comes from.
        generator=torch.Generator(),
    )
    try:
        yield from loader
    except DataError as error:
        # From a worker it comes with the worker's traceback before it.
        raise DataError(str(error).rpartition("DataError: ")[2].strip()) from None
