"""Which inputs linear layers need not read, of those that have to stay."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import nn

from .inputs import Inputs
from .plan import with_inputs_selected
from .replace import reasons_to_stay
from .sameness import agrees
from .select_linear import SelectLinear


@dataclass(frozen=True)
class Selection:
    """What linear layers select.

    Args:
        kept: every name of a layer that selects -> the inputs that it reads.
        dead: name of a layer -> inputs that it has no weight for, before it selects.
        stays: name of a layer with such inputs that does not select -> why not.
    """

    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dead: Mapping[str, int] = field(default_factory=dict)
    stays: Mapping[str, str] = field(default_factory=dict)


def live_inputs(layer: nn.Module, round_to: int) -> tuple[list[int], int] | None:
    """The inputs that a linear layer has to read, and how many it has no weight for.

    Args:
        layer: any module.
        round_to: the first dead inputs fill their number up to a multiple of this.

    Returns:
        None if it is not linear, or has a weight for every input, or must read all to fill up.
    """
    weight = layer._parameters.get("weight")
    if not isinstance(layer, nn.Linear) or isinstance(layer, SelectLinear):
        return None
    if weight is None or weight.is_meta or not weight.numel():
        return None
    live = (weight.detach() != 0).any(0)
    dead = (~live).nonzero().flatten().tolist()
    kept = live.nonzero().flatten().tolist()
    missing = max(1, -(-len(kept) // round_to) * round_to) - len(kept)
    if len(dead) <= missing:
        return None
    return sorted([*kept, *dead[:missing]]), len(dead)


def selection_of(model: nn.Module, inputs: Inputs, round_to: int = 1) -> Selection:
    """What the linear layers of a network may leave unread.

    Args:
        model: the network; untouched.
        inputs: of one run.
        round_to: the number of inputs that a layer selects is a multiple of this, or all.
    """
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    found = {
        name: (layer, *inputs_found)
        for name, layer in model.named_modules()
        if (inputs_found := live_inputs(layer, round_to)) is not None
    }
    layers = {name: layer for name, (layer, _, _) in found.items()}
    stays = {
        name: reason
        for name, reason in reasons_to_stay(model, layers, (nn.Linear,), inputs).items()
        if reason
    }
    wanted = {name: tuple(found[name][1]) for name in layers if name not in stays}

    def under_all_names(kept: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        return {other: kept[name] for name in kept for other in names[id(layers[name])]}

    if wanted and not agrees(model, with_inputs_selected(model, under_all_names(wanted)), inputs):
        able: dict[str, tuple[int, ...]] = {}
        for name, kept in wanted.items():
            tried = able | {name: kept}
            if agrees(model, with_inputs_selected(model, under_all_names(tried)), inputs):
                able = tried
            else:
                stays[name] = "the network does not run, or not alike, with a narrower weight"
        wanted = able
    dead = {name: count for name, (_, _, count) in found.items()}
    return Selection(under_all_names(wanted), dead, stays)


def why_not_selecting(model: nn.Module, weights: Iterable[str], inputs: Inputs) -> dict[str, str]:
    """Name of a parameter -> why a layer that reads with it cannot select; empty: it can.

    Args:
        model: the network; untouched.
        weights: names of parameters.
        inputs: of one run.
    """
    layers: dict[str, nn.Module] = {}
    reasons: dict[str, str] = {}
    for name in weights:
        layer, _, leaf = name.rpartition(".")
        module = model.get_submodule(layer)
        if leaf == "weight":
            layers[layer] = module
        else:
            reasons[name] = f"it is {leaf} of {type(module).__name__}"
    for layer, reason in reasons_to_stay(model, layers, (nn.Linear,), inputs).items():
        reasons[f"{layer}.weight".removeprefix(".")] = reason
    return reasons
