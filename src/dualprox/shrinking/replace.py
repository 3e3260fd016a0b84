"""Which layers can be exchanged for others, and a copy of the model in which they are."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ..checks import shown
from .inputs import Inputs, undisturbed
from .select_linear import SelectLinear

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def layers_with_matrices(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that themselves own a parameter of two axes or more, each by its first name."""
    found = {}
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if parametrize.is_parametrized(module):
            own += list(module.get_submodule("parametrizations").parameters())
        # A parametrization's own weights belong to the layer that it parametrizes.
        if any(param.dim() >= 2 for param in own) and "parametrizations" not in name.split("."):
            found[name] = module
    return found


def describe(layer: nn.Module) -> str:
    """A layer in a few words.

    Example:
        >>> describe(nn.Linear(784, 512)), describe(nn.Conv2d(64, 128, 3, groups=2))
        ('Linear 784->512', 'Conv2d 64->128 3x3 groups 2')
    """
    if isinstance(layer, SelectLinear):
        selects = f"selects {layer.in_features} of {layer.of_features} inputs"
        return f"Linear {layer.in_features}->{layer.out_features}, {selects}"
    if isinstance(layer, nn.Linear):
        return f"{type(layer).__name__} {layer.in_features}->{layer.out_features}"
    if isinstance(layer, nn.modules.conv._ConvNd):
        kernel = "x".join(map(str, layer.kernel_size))
        groups = f" groups {layer.groups}" if layer.groups > 1 else ""
        channels = f"{layer.in_channels}->{layer.out_channels}"
        return f"{type(layer).__name__} {channels} {kernel}{groups}"
    return type(layer).__name__


def own_parameters(layer: nn.Module) -> int:
    """The entries of a layer's parameters, without those of the layers in it."""
    whole = parametrize.is_parametrized(layer)
    return sum(param.numel() for param in layer.parameters(recurse=whole))


def why_not_exchanged(layer: nn.Module, kinds: tuple[type[nn.Module], ...]) -> str:
    """What speaks against another module in place of this one; empty: nothing.

    Args:
        layer: any module.
        kinds: the classes that can be exchanged; a subclass may do more than they do.
    """
    if parametrize.is_parametrized(layer):
        return "its weight is parametrized"
    if type(layer) not in kinds:
        base = next((kind for kind in kinds if isinstance(layer, kind)), None)
        if base is not None:
            return f"{type(layer).__name__} may do more than {base.__name__}"
        return f"it is none of {', '.join(kind.__name__ for kind in kinds)}"
    if layer._parameters.get("weight") is None:
        return "its weight is computed"
    if "forward" in layer.__dict__:
        return "its forward was replaced"
    if any(getattr(layer, name, None) for name in _HOOKS):
        return "it has hooks"
    weight = layer._parameters["weight"]
    if type(weight) is not nn.Parameter:
        return f"its weight is a {type(weight).__name__}"
    if not weight.is_floating_point() or weight.layout is not torch.strided or weight.is_meta:
        return f"its weight is {weight.dtype} {weight.layout} on {weight.device}"
    if weight.numel() == 0:
        return "its weight is empty"
    if not bool(weight.isfinite().all()):
        return "its weight is not finite"
    return ""


def tied_weights(model: nn.Module) -> dict[int, str]:
    """By id of each module whose weight is another's parameter too: the name of that parameter."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for prefix, module in model.named_modules():
        for name, param in module.named_parameters(prefix, recurse=False, remove_duplicate=False):
            if param.numel() and param.layout is torch.strided and not param.is_meta:
                owners.setdefault(param.data_ptr(), []).append((module, name))
    return {
        id(module): next(name for other, name in found if other is not module)
        for found in owners.values()
        if len({id(module) for module, _ in found}) > 1
        for module, _ in found
    }


class _Readers(TorchFunctionMode):
    """Notes which weights are used while their layer does not run."""

    def __init__(self, owners: Mapping[int, nn.Module]) -> None:
        super().__init__()
        self.owners = owners
        self.running: list[nn.Module] = []
        self.found: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # What is no tensor, such as the dtype, an exchanged layer can tell as well.
        if any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(result)):
            for leaf in pytree.tree_leaves((args, kwargs)):
                owner = self.owners.get(id(leaf))
                if owner is not None and owner not in self.running:
                    self.found.add(id(owner))
        return result


def read_elsewhere(model: nn.Module, layers: Iterable[nn.Module], inputs: Inputs) -> set[int]:
    """Ids of the layers whose weight something else than their own forward uses in a run.

    Torch's fused transformer kernels are left out of this run: they read the weights of plain
    layers, and take the ordinary way where there are others.
    """
    layers = list(layers)
    readers = _Readers({id(layer.weight): layer for layer in layers})
    fused = torch.backends.mha.get_fastpath_enabled()
    with undisturbed(model):
        hooks = []
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            for layer in layers:
                enter = layer.register_forward_pre_hook(
                    lambda module, _: readers.running.append(module)
                )
                leave = layer.register_forward_hook(lambda *_: readers.running.pop() and None)
                hooks += [enter, leave]
            with readers:
                inputs.run(model)
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
            for hook in hooks:
                hook.remove()
    return readers.found


def reasons_to_stay(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    kinds: tuple[type[nn.Module], ...],
    inputs: Inputs | None,
) -> dict[str, str]:
    """By name, what speaks against exchanging a layer in this model; empty: nothing.

    Args:
        model: the layers are in it.
        layers: to be exchanged.
        kinds: the classes that can be exchanged.
        inputs: of a run in which to see who reads the weights; None: it is not looked for.
    """
    ties = tied_weights(model)
    reasons = {}
    for name, layer in layers.items():
        reasons[name] = why_not_exchanged(layer, kinds)
        if not reasons[name] and id(layer) in ties:
            reasons[name] = f"its weight is also {ties[id(layer)]}"
    if inputs is not None:
        able = [layer for name, layer in layers.items() if not reasons[name]]
        readers = read_elsewhere(model, able, inputs)
        for name, layer in layers.items():
            if id(layer) in readers:
                reasons[name] = "its weight is read by more than the layer itself"
    return reasons


def entries_of(plan: Mapping[str, Any], keys: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
    """What a plan says of layers, each with these keys.

    Raises:
        ValueError: it does not.
    """
    layers = plan.get("layers")
    ok = isinstance(layers, Mapping) and all(
        isinstance(entry, Mapping) and all(key in entry for key in keys)
        for entry in layers.values()
    )
    if not ok or layers is None:
        raise ValueError(f"plan must have layers with {', '.join(keys)}, got {shown(layers)}")
    return layers


def with_layers_exchanged(model: nn.Module, exchange: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of the model in which every reference to a named layer is one to the new layer.

    Whatever name, list or dict of the model leads to the old layer leads to the new one in the
    copy. All else is copied; nothing of the named layers is. Encoder layers run the new layers,
    where torch's fused kernel would run their weights.
    """
    memo: dict[int, Any] = {id(model.get_submodule(name)): new for name, new in exchange.items()}
    for name, new in exchange.items():
        new.train(model.get_submodule(name).training)
    made = copy.deepcopy(model, memo)
    new_ones = {id(new) for new in exchange.values()}
    for module in made.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            if any(id(child) in new_ones for child in module.children()):
                module.activation_relu_or_gelu = 0  # torch's sign for: no fused kernel
    return made
