"""What is left of a network, in plain words and numbers, and how to cut a network down to it."""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import write_text
from ..kinds import check_kinds
from .attention import NarrowAttention
from .replace import with_layers_exchanged
from .select_linear import SelectLinear

_FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """Which indices of which tensors stay; all that is needed to build the slim architecture.

    Args:
        keep: name of a parameter or buffer -> axis -> the indices that stay, in order.
        attributes: name of a module -> attribute -> its new value: widths, groups, heads.
        biases: names of modules that get a bias they did not have.
        attention: names of `nn.MultiheadAttention` modules that become `NarrowAttention`.
        select: names of `nn.Linear` modules that become `SelectLinear` -> which of the inputs that
            are left they read, in order; a module of several names stands under all of them.
    """

    keep: Mapping[str, Mapping[int, tuple[int, ...]]] = field(default_factory=dict)
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    biases: tuple[str, ...] = ()
    attention: tuple[str, ...] = ()
    select: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_kinds(type(self), vars(self))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "format": _FORMAT,
            "keep": {
                name: {str(axis): list(kept) for axis, kept in axes.items()}
                for name, axes in self.keep.items()
            },
            "attributes": {name: dict(values) for name, values in self.attributes.items()},
            "biases": list(self.biases),
            "attention": list(self.attention),
            "select": {name: list(kept) for name, kept in self.select.items()},
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Plan":
        """The plan that `to_dict` wrote.

        Raises:
            ValueError: it is no plan, or of another format.
        """
        if isinstance(values, Mapping) and "change" in values:
            change = values["change"]
            raise ValueError(
                f"plan must be one of shrink, got one of {change}: {change}_like takes it"
            )
        if not isinstance(values, Mapping) or values.get("format") != _FORMAT:
            found = values.get("format") if isinstance(values, Mapping) else type(values).__name__
            raise ValueError(f"plan must be of format {_FORMAT}, got {found!r}")
        try:
            return Plan(
                keep={
                    str(name): {int(axis): _indices(name, kept) for axis, kept in axes.items()}
                    for name, axes in values["keep"].items()
                },
                attributes={
                    str(name): _plain(name, attributes)
                    for name, attributes in values["attributes"].items()
                },
                biases=tuple(map(str, values["biases"])),
                attention=tuple(map(str, values["attention"])),
                select={
                    str(name): _indices(name, kept)
                    for name, kept in values.get("select", {}).items()
                },
            )
        except (KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"plan is damaged: {type(error).__name__}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON; an older file stays whole until the new one is."""
        write_text(Path(path), json.dumps(self.to_dict()))

    @staticmethod
    def load(path: str | Path) -> "Plan":
        """Read a plan that `save` wrote."""
        return Plan.from_dict(read_plan(path))

    def cuts(self) -> dict[str, dict[int, tuple[int, ...]]]:
        """`keep`, with what selecting layers leave of their weights."""
        cuts = {name: dict(axes) for name, axes in self.keep.items()}
        for layer, kept in self.select.items():
            _cut_again(cuts.setdefault(_path(layer, "weight"), {}), 1, kept)
        return cuts

    def after(self, earlier: "Plan") -> "Plan":
        """The plan from the network that `earlier` began with, by way of its result, to ours."""
        keep = {name: dict(axes) for name, axes in earlier.keep.items()}
        select = dict(earlier.select)
        # A layer that selects already is cut along the inputs that it selects.
        narrower = {_path(layer, "weight"): layer for layer in earlier.select}
        indices = {_path(layer, "index") for layer in earlier.select}
        for name, axes in self.keep.items():
            for axis, kept in axes.items():
                if name in narrower and axis == 1:
                    before = select[narrower[name]]
                    select[narrower[name]] = tuple(before[i] for i in kept)
                elif name not in indices:
                    _cut_again(keep.setdefault(name, {}), axis, kept)
        attributes = {name: dict(values) for name, values in earlier.attributes.items()}
        for name, values in self.attributes.items():
            chosen = {"in_features"} if name in earlier.select else set()
            own = attributes.setdefault(name, {})
            own.update({key: value for key, value in values.items() if key not in chosen})
        return Plan(
            keep,
            attributes,
            tuple(dict.fromkeys((*earlier.biases, *self.biases))),
            tuple(dict.fromkeys((*earlier.attention, *self.attention))),
            {**select, **self.select},
        )


def _path(layer: str, leaf: str) -> str:
    return f"{layer}.{leaf}".removeprefix(".")


def _cut_again(axes: dict[int, tuple[int, ...]], axis: int, kept: tuple[int, ...]) -> None:
    """Keep these of the indices that are left of an axis, in place."""
    before = axes.get(axis)
    axes[axis] = kept if before is None else tuple(before[i] for i in kept)


def read_plan(path: str | Path) -> Any:
    """The content of a file that a plan was written to.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a plan: {error}") from error


def _indices(name: str, kept: Any) -> tuple[int, ...]:
    indices = tuple(kept)
    if not all(type(i) is int and i >= 0 for i in indices) or list(indices) != sorted(set(indices)):
        raise ValueError(f"plan must keep increasing indices >= 0, got {kept!r:.60} for {name}")
    return indices


def _plain(name: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    for attribute, value in attributes.items():
        parts = value if isinstance(value, list | tuple) else [value]
        # Nothing but sizes: a plan must not be able to replace a method or a module.
        if not all(type(part) is int for part in parts):
            raise ValueError(f"plan must set sizes, got {value!r} for {name}.{attribute}")
    return dict(attributes)


def apply_plan(model: nn.Module, plan: Plan | Mapping[str, Any]) -> nn.Module:
    """A copy of `model` cut down to what the plan keeps; the original is untouched.

    Given a freshly made network of the architecture that was shrunk, it makes one that the slim
    network's ``state_dict`` can be loaded into.

    Args:
        model: of the architecture that the plan was made for.
        plan: a `Plan`, or what ``shrink(...).report.plan`` holds, or what JSON made of it.

    Returns:
        A new module of the same class, with the same names of parameters.

    Raises:
        ValueError: a name or an index of the plan is not in the model.

    Example:
        >>> import torch, dualprox as dp
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> plan = dp.Plan(keep={"0.weight": {0: (0, 2)}, "0.bias": {0: (0, 2)},
        ...                      "1.weight": {1: (0, 2)}},
        ...                attributes={"0": {"out_features": 2}, "1": {"in_features": 2}})
        >>> dp.apply_plan(model, plan)
        Sequential(
          (0): Linear(in_features=4, out_features=2, bias=True)
          (1): Linear(in_features=2, out_features=2, bias=True)
        )
    """
    check_kinds(apply_plan, locals())
    if not isinstance(plan, Plan):
        plan = Plan.from_dict(plan)
    try:
        return _cut_down(model, plan)
    except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError) as error:
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise ValueError(f"plan must fit the model, {type(model).__name__}: {reason}") from error


def _cut_down(model: nn.Module, plan: Plan) -> nn.Module:
    slim = copy.deepcopy(model)
    modules = dict(slim.named_modules(remove_duplicate=False))
    for name in (*plan.attributes, *plan.biases, *plan.attention, *plan.select):
        if name not in modules:
            raise ValueError(f"plan must fit the model, which has no module {name!r}")
    slim = widen(slim, plan.attention)
    cut: dict[int, Tensor] = {}
    kept_alive = []
    modules = dict(slim.named_modules(remove_duplicate=False))
    done: set[tuple[int, str]] = set()
    for name, axes in plan.keep.items():
        owner, leaf, tensor = _find(modules, name)
        if (id(owner), leaf) in done:
            continue  # another name of the same module
        done.add((id(owner), leaf))
        for axis, kept in axes.items():
            if axis >= tensor.dim() or (kept and kept[-1] >= tensor.shape[axis]):
                raise ValueError(
                    f"plan must fit the model: {name} has shape {tuple(tensor.shape)}, "
                    f"the plan keeps indices up to {max(kept, default=0)} of axis {axis}"
                )
        if id(tensor) not in cut:
            kept_alive.append(tensor)
            cut[id(tensor)] = narrowed(tensor, axes)
        setattr(owner, leaf, cut[id(tensor)])
    # Tied parameters have more names than the plan mentions.
    for module in slim.modules():
        for leaf, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and id(tensor) in cut:
                setattr(module, leaf, cut[id(tensor)])
    for name, values in plan.attributes.items():
        for attribute, value in values.items():
            old = getattr(modules[name], attribute, None)
            if type(old) is tuple:
                value = tuple(value)
            if type(old) is not type(value):
                raise ValueError(f"plan must fit the model: {name}.{attribute} is {old!r}")
            setattr(modules[name], attribute, value)
    for name in plan.biases:
        weight = modules[name].weight
        assert isinstance(weight, Tensor)
        width = getattr(modules[name], "out_features", None) or modules[name].out_channels
        bias = torch.zeros(int(width), dtype=weight.dtype, device=weight.device)  # pyright: ignore
        modules[name].bias = nn.Parameter(bias, requires_grad=weight.requires_grad)
    return with_inputs_selected(slim, plan.select) if plan.select else slim


def with_inputs_selected(model: nn.Module, select: Mapping[str, tuple[int, ...]]) -> nn.Module:
    """A copy of the model in which the named linear layers read these of their inputs alone.

    Raises:
        ValueError: a name is not that of an nn.Linear, or an index is out of its range.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    made: dict[int, SelectLinear] = {}
    for name, kept in select.items():
        layer = modules.get(name)
        if type(layer) is not nn.Linear:
            found = "nothing" if layer is None else type(layer).__name__
            raise ValueError(f"plan must fit the model: {name} must be a Linear, got {found}")
        if not kept or kept[-1] >= layer.in_features:
            raise ValueError(
                f"plan must fit the model: {name} has {layer.in_features} inputs, the plan "
                f"selects {f'up to number {kept[-1]}' if kept else 'none'}"
            )
        made.setdefault(id(layer), SelectLinear.of(layer, kept))
    return with_layers_exchanged(model, {name: made[id(modules[name])] for name in select})


def _find(modules: Mapping[str, nn.Module], name: str) -> tuple[nn.Module, str, Tensor]:
    path, _, leaf = name.rpartition(".")
    owner = modules.get(path)
    tensor = getattr(owner, leaf, None)
    if owner is None or not isinstance(tensor, Tensor):
        raise ValueError(f"plan must fit the model, which has no tensor {name!r}")
    return owner, leaf, tensor


def narrowed(tensor: Tensor, axes: Mapping[int, Any]) -> Tensor:
    """A copy of the indices that stay along each axis; a parameter stays a parameter."""
    small = tensor.detach()
    for axis, kept in axes.items():
        small = small.index_select(axis, torch.as_tensor(kept, device=small.device))
    small = small.clone(memory_format=torch.preserve_format)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(small, requires_grad=tensor.requires_grad)
    return small


def widen(model: nn.Module, names: Any = None) -> nn.Module:
    """`model`, in place, with modules that can lose heads in place of torch's attention.

    Args:
        model: changed in place, and returned, unless it is itself such a module.
        names: of the modules; None for all that can be replaced.
    """
    for name, module in list(model.named_modules()):
        if NarrowAttention.replaces(module) and (names is None or name in names):
            assert isinstance(module, nn.MultiheadAttention)
            if not name:
                return NarrowAttention(module)
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, NarrowAttention(module))
    return model
