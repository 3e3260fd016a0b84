"""Whether two models compute the same, up to rounding."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .inputs import Inputs, undisturbed
from .replace import with_layers_exchanged

# Times what one rounding of each changed weight does to the outputs. Decompositions are computed
# in float64, where they are good for some dozens of roundings: seen were 45, in float32 4.
ALLOWANCE, FLOAT64_ALLOWANCE = 32, 1024


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

    What rounding explains is measured: 32 times (in float64 1024 times) what changing each entry
    of the `changed` weights by up to one rounding does to the outputs of `before`, or as many
    roundings of the largest output. So a network that amplifies rounding is not blamed for it.

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
    in_float64 = all(output.dtype == torch.float64 for output in reference)
    allowance = FLOAT64_ALLOWANCE if in_float64 else ALLOWANCE
    return Agreement(largest_difference(reference, ours), allowance * rounding)


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


def require_agreement(name: str, found: Agreement) -> float:
    """The difference of the outputs.

    Raises:
        RuntimeError: it is more than rounding explains; the message names the layer.
    """
    if not found:
        raise RuntimeError(
            f"{name or 'the model'}: outputs differ by {found.difference:.3g} after exchanging, "
            f"rounding explains {found.allowed:.3g}"
        )
    return found.difference


def require_agreements(
    model: nn.Module, made: nn.Module, inputs: Inputs, exchange: Mapping[str, nn.Module]
) -> float:
    """The largest difference of the outputs of two models, over the inputs and random ones.

    Args:
        model: the reference.
        made: the model in which the named layers are exchanged.
        inputs: of both.
        exchange: the new layers, by the names of the old ones.

    Raises:
        RuntimeError: it is more than rounding explains; the message names a layer at fault.
    """
    weights = {name: f"{name}.weight".lstrip(".") for name in exchange}
    found = list(agreements(model, made, inputs, weights.values()))
    if not all(found):
        for name, weight in weights.items():
            alone = with_layers_exchanged(model, {name: exchange[name]})
            for one in agreements(model, alone, inputs, [weight]):
                require_agreement(name, one)
    return max(require_agreement("", one) for one in found)
