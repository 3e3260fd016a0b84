"""Inputs that a model can be run on, and running it without leaving a trace."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

ExampleInput = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


@dataclass(frozen=True)
class Inputs:
    """The arguments of one run of a model; the batch is axis 0.

    Args:
        args: positional arguments.
        kwargs: keyword arguments.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, example_input: ExampleInput) -> "Inputs":
        """One tensor, a tuple or list of positional arguments, or a mapping of keyword arguments.

        Raises:
            ValueError: it is none of these, or holds no tensor with an axis.
        """
        if isinstance(example_input, Tensor):
            found = cls((example_input,), {})
        elif isinstance(example_input, Mapping):
            found = cls((), dict(example_input))
        elif isinstance(example_input, tuple | list):
            found = cls(tuple(example_input), {})
        else:
            raise ValueError(
                "example_input must be a tensor, a tuple of arguments or a dict of keyword "
                f"arguments, got {type(example_input).__name__}"
            )
        if not found._batched():
            raise ValueError(
                f"example_input must be or hold a tensor with an axis, got {example_input!r}"
            )
        return found

    def tensors(self) -> list[Tensor]:
        """All tensors, however deep they lie in lists, tuples and dicts."""
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def _batched(self) -> list[Tensor]:
        return [tensor for tensor in self.tensors() if tensor.dim() > 0]

    @property
    def batch_size(self) -> int:
        """The length of axis 0 of the first tensor that has one."""
        return self._batched()[0].shape[0]

    def _map(self, change: Any) -> "Inputs":
        args, kwargs = pytree.tree_map_only(Tensor, change, (self.args, self.kwargs))
        return Inputs(args, kwargs)

    def at_batch(self, size: int) -> "Inputs":
        """The first `size` examples, again from the first one where there are fewer.

        Tensors are cut or repeated along axis 0 where that is as long as the first tensor's.

        Example:
            >>> Inputs.of(torch.tensor([1, 2, 3])).at_batch(5).args
            (tensor([1, 2, 3, 1, 2]),)
        """
        length = self.batch_size

        def resize(tensor: Tensor) -> Tensor:
            if tensor.dim() == 0 or tensor.shape[0] != length:
                return tensor
            return tensor[torch.arange(size, device=tensor.device) % length]

        return self._map(resize)

    def at_random(self, generator: torch.Generator) -> "Inputs":
        """Other inputs of the same kind.

        Real numbers are normal with the example's mean and deviation; whole numbers are those of
        the example in another order, so that indices stay in range; booleans, which say what is
        padding, stay as they are.
        """

        def draw(tensor: Tensor) -> Tensor:
            if tensor.is_floating_point() and tensor.numel() > 0:
                wide = tensor.detach().double().cpu()
                noise = torch.randn(wide.shape, generator=generator, dtype=wide.dtype)
                drawn = wide.mean() + wide.std(correction=0) * noise
                return drawn.to(tensor)
            if tensor.dtype == torch.bool or tensor.is_complex():
                return tensor
            order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
            return tensor.flatten()[order].view(tensor.shape)

        return self._map(draw)

    def in_float64(self) -> "Inputs":
        """The same real numbers in float64."""
        return self._map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)

    def run(self, model: nn.Module) -> Any:
        """What the model returns."""
        return model(*self.args, **self.kwargs)

    def try_on(self, model: nn.Module) -> Any:
        """The same, of a model that has not been run on them yet.

        Raises:
            ValueError: it cannot be.
        """
        try:
            return self.run(model)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a foreign model raises whatever it likes
            raise ValueError(
                f"example_input must be what the model takes, got shapes "
                f"{', '.join(str(tuple(tensor.shape)) for tensor in self.tensors())} and "
                f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            ) from error


@contextmanager
def undisturbed(*models: nn.Module, seed: int = 0) -> Iterator[None]:
    """Run models in evaluation mode, without gradients, on fixed random numbers.

    On exit their training flags, attributes, and buffers, and torch's random numbers, are what
    they were.
    """
    modules = list(dict.fromkeys(module for model in models for module in model.modules()))
    attributes = [(module, dict(module.__dict__)) for module in modules]
    entries = [(module._buffers, dict(module._buffers)) for module in modules]
    buffers = {id(b): b for _, found in entries for b in found.values() if b is not None}
    values = [(buffer, buffer.detach().clone()) for buffer in buffers.values()]
    devices = {tensor.device for model in models for tensor in model.parameters()}
    cuda = [device for device in devices if device.type == "cuda"]
    with torch.random.fork_rng(cuda), torch.inference_mode():
        torch.manual_seed(seed)
        try:
            for module in modules:
                module.training = False
            yield
        finally:
            for module, found in attributes:
                module.__dict__.clear()
                module.__dict__.update(found)
            for mapping, found in entries:
                mapping.clear()
                mapping.update(found)
            with torch.inference_mode(False), torch.no_grad():
                for buffer, value in values:
                    if not torch.equal(buffer, value):
                        buffer.copy_(value)
