"""A network as a graph of aten operations, each with the layer and the line it comes from.

`torch.export` is what sees everything: every operation that reads a tensor is a node, in-place
writes have become pure functions, and each node knows its shapes. A dependency graph that is
read off autograd misses reads by integer index, constants and recurrent layers.
"""

import re
import warnings
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind
from torch.nn.modules.conv import _ConvNd

from .inputs import Inputs
from .operations import CASTS, COPIES, is_known
from .select_linear import SelectLinear


class ShrinkError(RuntimeError):
    """A network that cannot be shrunk, or one that would not compute the same afterwards."""


@dataclass(frozen=True)
class Source:
    """What a placeholder of the graph stands for.

    Args:
        name: of the parameter or buffer, "" for a constant or an input.
        tensor: the tensor; None for an input of the network.
    """

    name: str
    tensor: Tensor | None


class Trace:
    """The graph of a model's run.

    Args:
        model: in eval mode.
        inputs: of the run.

    Raises:
        ShrinkError: torch.export cannot follow the network; the cause says where. Or a tensor's
            shape depends on numbers in other tensors; the message names what makes it.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        fast_path = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # one fused operator nobody can look into
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exported = torch.export.export(model, inputs.args, inputs.kwargs, strict=False)
                # Decomposing takes torch several times as long as tracing.
                calls = (n for n in exported.graph.nodes if n.op == "call_function")
                if any(map(_needs_decomposing, calls)):
                    exported = exported.run_decompositions({})
        except Exception as error:
            raise ShrinkError(
                f"torch.export cannot trace {type(model).__name__}: "
                f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            ) from error
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
        self.graph = exported.graph
        # The graph is free of side effects: a copy is what it copies, and what nobody reads is
        # nothing. Whether torch makes a copy depends on lengths.
        for node in reversed(self.graph.nodes):
            if node.op != "call_function":
                continue
            if _changes_nothing(node):
                source = node.args[0]
                assert isinstance(source, fx.Node)
                node.replace_all_uses_with(source)
            if not node.users:
                self.graph.erase_node(node)
        for node in self.calls:
            try:
                shapes_of(node)
            except RuntimeError as error:  # torch knows no length
                raise ShrinkError(
                    f"{type(model).__name__} has shapes that depend on data: {described(node)}"
                ) from error
        self.sources: dict[fx.Node, Source] = {}
        specs = exported.graph_signature.input_specs
        placeholders = [node for node in self.graph.nodes if node.op == "placeholder"]
        for node, spec in zip(placeholders, specs, strict=True):
            target = spec.target or ""
            if spec.kind == InputKind.PARAMETER:
                self.sources[node] = Source(target, model.get_parameter(target))
            elif spec.kind == InputKind.BUFFER:
                self.sources[node] = Source(target, model.get_buffer(target))
            elif spec.kind == InputKind.CONSTANT_TENSOR:
                constant = exported.constants[target]
                assert isinstance(constant, Tensor)
                self.sources[node] = Source("", constant)
            else:
                self.sources[node] = Source("", None)

        # Layers without a bias, which read one as soon as they have it.
        self.may_take_bias = {
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | _ConvNd)
            and module.bias is None
            and (type(module).__module__.startswith("torch.nn.") or type(module) is SelectLinear)
        }
        self.branches: dict[fx.Node, fx.GraphModule] = {}  # of `torch.cond` and its kin
        for node in self.graph.nodes:
            if node.op == "get_attr":
                branch = getattr(exported.graph_module, str(node.target))
                assert isinstance(branch, fx.GraphModule)
                self.branches[node] = branch

    @property
    def calls(self) -> list[fx.Node]:
        """The operations, in the order they run."""
        return [node for node in self.graph.nodes if node.op == "call_function"]


def _needs_decomposing(node: fx.Node) -> bool:
    """Whether an operation writes to what it reads, has a graph inside, or is not known."""
    if node.target is getitem:
        return False
    if not isinstance(node.target, torch._ops.OpOverload) or node.target._schema.is_mutable:
        return True
    if node.target is torch.ops.aten.tensor_split.indices:
        return True  # into slices: the places to cut at are indices, not lengths
    return node.target._can_decompose() and not is_known(operator(node))


def _changes_nothing(node: fx.Node) -> bool:
    """Whether the result is what the node reads: a copy, a cast to the dtype that it has."""
    if operator(node) not in CASTS:
        return operator(node) in COPIES
    source = node.args[0]
    assert isinstance(source, fx.Node)
    before, after = source.meta["val"], node.meta["val"]
    alike = before.dtype == after.dtype and before.device == after.device
    return alike and not is_random(node)


def shapes_of(node: fx.Node) -> list[tuple[int, ...] | None]:
    """The shapes of a node's results; None for one that is no tensor."""
    value = node.meta.get("val")
    values = value if isinstance(value, tuple | list) else [value]
    return [tuple(map(int, v.shape)) if isinstance(v, Tensor) else None for v in values]


def layer_of(node: fx.Node) -> str:
    """The name of the innermost module that runs the node; "" for the network itself."""
    stack = node.meta.get("nn_module_stack") or {}
    name = next(reversed(stack.values()))[0] if stack else ""
    return name.replace("L['self']", "").lstrip(".")


def is_within(node: fx.Node, layer: str) -> bool:
    """Whether this layer, or one inside it, runs the node."""
    own = layer_of(node)
    return not layer or own == layer or own.startswith(f"{layer}.")


def lines_of(node: fx.Node) -> list[tuple[str, int]]:
    """(file, line) of the calls that led to the node, outermost first."""
    found = re.findall(r'File "(.+?)", line (\d+)', node.meta.get("stack_trace") or "")
    return [(file, int(line)) for file, line in found]


def operator(node: fx.Node) -> str:
    """The node's operation without overload: "conv2d"; with its namespace if that is not aten."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return getattr(node.target, "__name__", str(node.target))
    namespace, name = node.target._schema.name.split("::")
    return name if namespace == "aten" else f"{namespace}::{name}"


def arguments(node: fx.Node) -> dict[str, Any]:
    """The node's arguments by their names, with what is left out at its default."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {**{str(place): arg for place, arg in enumerate(node.args)}, **node.kwargs}
    given = iter(node.args)
    found = {}
    for argument in node.target._schema.arguments:
        default = node.kwargs.get(argument.name, argument.default_value)
        found[argument.name] = default if argument.kwarg_only else next(given, default)
    return found


def is_random(node: fx.Node) -> bool:
    """Whether the node draws random numbers; dropout in evaluation, or of nothing, does not."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    if torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    given = arguments(node)
    return given.get("train") is not False and given.get("dropout_p", given.get("p")) != 0


def described(node: fx.Node) -> str:
    """A node for messages: "layer3.conv (conv2d)"."""
    return f"{layer_of(node) or 'the network itself'} ({operator(node)})"
