"""Whether two models compute the same, up to rounding."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .inputs import Inputs, undisturbed

# Times what one rounding of each changed weight does to the outputs.
ALLOWANCE = 32


def real_outputs(output: Any) -> list[Tensor]:
    """The floating-point tensors of what a model returned, however deep they lie."""
    found = []
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, Tensor):
            if leaf.is_floating_point() or leaf.is_complex():
                found.append(leaf)
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            values = (getattr(leaf, field.name) for field in dataclasses.fields(leaf))
            found += [tensor for value in values for tensor in real_outputs(value)]
    return found


def largest_difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Max |a - b| over all entries; NaN agrees with NaN, and what has no counterpart is far off."""
    if [a.shape for a in ours] != [b.shape for b in theirs]:
        return torch.inf
    largest = 0.0
    for a, b in zip(ours, theirs, strict=True):
        same = (a == b) | (a.isnan() & b.isnan())
        apart = torch.where(same, 0.0, (a - b).abs()).nan_to_num(nan=torch.inf, posinf=torch.inf)
        largest = max(largest, float(apart.max())) if apart.numel() else largest
    return largest


@contextlib.contextmanager
def one_rounding_off(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Meanwhile, every entry of these parameters is off by a random part of one rounding.

    They are exchanged by hand: torch.func.functional_call does not put back the parameters of a
    module that has two names.
    """
    generator = torch.Generator().manual_seed(0)
    places = []
    for name in names:
        path, _, leaf = name.rpartition(".")
        places.append((model.get_submodule(path)._parameters, leaf, model.get_parameter(name)))
    try:
        for parameters, leaf, exact in places:
            noise = 2 * torch.rand(exact.shape, generator=generator, dtype=torch.float64) - 1
            change = 1 + torch.finfo(exact.dtype).eps * noise.to(exact.device)
            near = (exact.detach().double() * change).to(exact.dtype)
            parameters[leaf] = nn.Parameter(near, requires_grad=False)
        yield
    finally:
        for parameters, leaf, exact in places:
            parameters[leaf] = exact


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How far the outputs of two models are apart.

    Args:
        difference: the largest, in absolute value.
        allowed: the largest that rounding explains.
    """

    difference: float
    allowed: float

    def __bool__(self) -> bool:
        return self.difference <= self.allowed


def agreement(
    before: nn.Module, after: nn.Module, inputs: Inputs, changed: Iterable[str]
) -> Agreement:
    """Run both models, in evaluation mode and on the same random numbers, and compare.

    What rounding explains is measured: 32 times what changing each entry of the `changed` weights
    by up to one rounding does to the outputs of `before`, and 32 roundings of the largest output.
    So a network that amplifies rounding is not blamed for it.

    Args:
        before: the reference.
        after: what stands in for it.
        inputs: of both.
        changed: names of the parameters of `before` that `after` holds in another form.

    Raises:
        ValueError: `before` returns no floating-point tensor.
    """
    with undisturbed(before):
        reference = real_outputs(inputs.run(before))
    with undisturbed(after):
        ours = real_outputs(inputs.run(after))
    with undisturbed(before), one_rounding_off(before, changed):
        nearby = real_outputs(inputs.run(before))
    if not reference:
        raise ValueError("the model must return a floating-point tensor, got none to compare")
    rounding = largest_difference(reference, nearby)
    for output in reference:
        finite = output[output.isfinite()]
        if finite.numel():
            largest = float(finite.abs().max())
            rounding = max(rounding, torch.finfo(output.dtype).eps * largest)
    return Agreement(largest_difference(reference, ours), ALLOWANCE * rounding)


def agreements(
    before: nn.Module, after: nn.Module, inputs: Inputs, changed: Iterable[str]
) -> Iterator[Agreement]:
    """The agreement on the inputs, then on two random ones, less those that `before` refuses."""
    changed = list(changed)
    yield agreement(before, after, inputs, changed)
    for seed in (1, 2):
        random = inputs.at_random(torch.Generator().manual_seed(seed))
        try:
            with undisturbed(before):
                random.run(before)
        except Exception:  # whatever a model says to inputs that it does not like
            continue
        yield agreement(before, after, random, changed)
