"""One walk through the graph: each operation says what its units have to do with each other."""

from collections.abc import Mapping
from dataclasses import dataclass
from operator import getitem
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx
from torch.fx.node import map_arg

from .operations import CASTS, HANDLERS, POINTWISE
from .trace import Trace, arguments, described, is_random, layer_of, operator, shapes_of
from .units import Ids, Units, rigid
from .values import Known, Value, pointwise

_PLACEMENT = {"dtype", "layout", "device", "pin_memory", "memory_format"}
# Constants that a network's code makes in the size it needs.
_FACTORIES = {"zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "new_zeros"}
_FACTORIES |= {"new_ones", "new_full", "scalar_tensor"}
_SMALL = 2**16  # facts about larger constants are not worth their computation


@dataclass(frozen=True, eq=False)
class Doubt:
    """A place where a smaller network does not do what the larger one does.

    Args:
        node: of the larger network's graph.
        reason: for the report.
        axes: of the node's result, that must not change; None for all that it reads and writes.
    """

    node: fx.Node
    reason: str
    axes: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Product:
    """A layer that multiplies its input by a weight.

    Args:
        node: the product.
        weight: the layer's.
        inputs: the units that it reads, (parts, in), a part for each group of a convolution.
        outputs: the units that it writes, (parts, out).
        matrix: the weight as (parts, out, in, entries).
        live: where that is not zero, (parts, out, in).
        constants: the input's value where that is constant, else NaN; (parts, in).
        foldable: whether such an input may go into the layer's bias.
    """

    node: fx.Node
    weight: Value
    inputs: Ids
    outputs: Ids
    matrix: torch.Tensor
    live: NDArray[np.bool_]
    constants: NDArray[np.float64]
    foldable: bool


class Analysis:
    """The units of a traced network, the rules about them, and what is constant in it.

    Args:
        trace: the network.
        doubts: nodes of which axes must not change; the proof that a smaller network computes the
            same adds to them.
        fold: whether channels of constant value may go into the bias of the layer that reads them.
        narrow_norms: whether layer norms may look at fewer channels, as in `shrink`.
    """

    def __init__(
        self,
        trace: Trace,
        doubts: Mapping[fx.Node, Doubt],
        fold: bool = True,
        narrow_norms: bool = False,
    ) -> None:
        self.trace, self.doubts, self.fold = trace, doubts, fold
        self.narrow_norms = narrow_norms
        self.units = Units()
        self.values: dict[fx.Node, Any] = {}
        self.products: list[Product] = []
        self.group_units: dict[fx.Node, Ids] = {}  # of grouped convolutions and GroupNorm
        self.norm_units: dict[str, Ids] = {}  # by its weight, of a layer norm that may be narrowed
        self.equal_parts: list[list[Ids]] = []  # of axes that are cut into so many equal parts
        self._named: dict[str, Value] = {}
        self._tensors: dict[int, Value] = {}
        self._uses: dict[str, int] = {}  # of a tensor, by its first name
        for node in trace.sources:
            value = self.values[node] = self._placeholder(node)
            if value.name:
                self._uses[value.name] = self._uses.get(value.name, 0) + len(node.users)
        for name, uses in self._uses.items():
            if not uses:
                self.pin(self._named[name], "the run never reads it")
        for node in trace.graph.nodes:
            if node.op == "call_function":
                self.values[node] = self._call(node)
            elif node.op == "get_attr":
                self.values[node] = None
            elif node.op == "output":
                for value in self._values_in(node.args):
                    self.pin(value, "it is an output of the network")

    def tensor(self, name: str) -> Value | None:
        """The parameter or buffer of this name; None if the network never reads it."""
        return self._named.get(name)

    @property
    def tensors(self) -> dict[str, Value]:
        """The parameters and buffers that the network reads, by name."""
        return self._named

    def owns_bias(self, node: fx.Node, weight: Value, bias: Value | None) -> bool:
        """Whether weight and bias are those of one layer that is applied once, by this node.

        A layer of torch that has no bias can get one, if it runs the node itself.
        """
        layer, _, leaf = weight.name.rpartition(".")
        if leaf != "weight" or self._uses.get(weight.name) != 1:
            return False
        if sum(value is weight for value in self._named.values()) > 1:
            return False  # tied
        if bias is None:
            runs_it = layer_of(node) == layer and "bias" in arguments(node)
            return runs_it and layer in self.trace.may_take_bias
        own = f"{layer}.bias".removeprefix(".")
        return bias.name == own and self._uses.get(own) == 1

    def pin(self, value: Value, reason: str, axes: Any = None) -> None:
        """All units of these axes (default all) stay."""
        for axis in range(len(value.shape)) if axes is None else axes:
            self.units.pin(value.ids[axis], reason)

    def _placeholder(self, node: fx.Node) -> Value:
        source = self.trace.sources[node]
        if source.tensor is None or not source.name:
            shape = shapes_of(node)[0]
            value = Value.rigid(shape if shape is not None else ())
            return value if source.tensor is None else _with_data(value, source.tensor)
        # Tied parameters are one tensor under several names.
        known = self._tensors.get(id(source.tensor))
        if known is None:
            shape = tuple(source.tensor.shape)
            ids = tuple(self.fresh(length) for length in shape)
            known = Value(shape, ids, None, source.tensor.detach(), source.name)
            self._tensors[id(source.tensor)] = known
        self._named[source.name] = known
        return known

    def fresh(self, length: int) -> Ids:
        """Units of an axis; what has one index alone cannot lose it."""
        return self.units.fresh(length) if length > 1 else rigid(length)

    def _values_in(self, args: Any) -> list[Value]:
        found: list[Value] = []

        def look(node: fx.Node) -> fx.Node:
            value = self.values[node]
            found.extend(
                v for v in (value if isinstance(value, list) else [value]) if v is not None
            )
            return node

        map_arg(args, look)
        return found

    def _call(self, node: fx.Node) -> Any:
        operation = operator(node)
        args: Any = map_arg(node.args, lambda n: self.values[n])
        kwargs: Any = map_arg(dict(node.kwargs), lambda n: self.values[n])
        if node.target is getitem:
            return getitem(*args)
        doubt = self.doubts.get(node)
        if doubt is not None and doubt.axes is None:
            for value in self._values_in((node.args, node.kwargs)):
                self.pin(value, doubt.reason)
        handler = HANDLERS.get(operation)
        is_pointwise = operation in POINTWISE or (
            isinstance(node.target, torch._ops.OpOverload)
            and torch.Tag.pointwise in node.target.tags
        )
        if is_random(node):
            result = self.opaque(node)
        elif operation in _FACTORIES:
            result = self._factory(node)
        elif handler is not None:
            result = handler(self, node, *args, **kwargs)
        elif is_pointwise:
            result = self._pointwise(node, operation, args, kwargs)
        else:
            result = self.opaque(node)
        if doubt is not None:
            for value in result if isinstance(result, list) else [result]:
                if value is not None:
                    self.pin(value, doubt.reason, doubt.axes)
        return self._evaluated(node, args, kwargs, result)

    def _evaluated(self, node: fx.Node, args: Any, kwargs: Any, result: Any) -> Any:
        """The result with its data, where it depends on parameters alone."""
        inputs = self._values_in((node.args, node.kwargs))
        if not inputs or any(value.data is None for value in inputs) or is_random(node):
            return result
        assert callable(node.target)
        with torch.no_grad():
            data = node.target(*_data_of(args), **_data_of(kwargs))
        if isinstance(result, Value):
            return _with_data(result, data)
        pairs = zip(result, data, strict=True)
        return [None if value is None else _with_data(value, one) for value, one in pairs]

    def _factory(self, node: fx.Node) -> Value:
        shape = shapes_of(node)[0]
        assert shape is not None
        ids = tuple(self.fresh(length) for length in shape)
        operation = operator(node)
        number: Any = 0.0 if "zeros" in operation else 1.0
        if "full" in operation or operation == "scalar_tensor":
            number = node.args[-1]
        if not isinstance(number, int | float | bool):
            return Value(shape, ids)
        dtype = node.meta["val"].dtype
        dtype = torch.float64 if dtype.is_floating_point else dtype
        return Value(shape, ids, Known.all(torch.full((1,) * len(shape), number, dtype=dtype)))

    def _pointwise(
        self, node: fx.Node, operation: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Value:
        shape = shapes_of(node)[0]
        assert shape is not None
        numbers = {key: value for key, value in kwargs.items() if key not in _PLACEMENT}
        values = [arg for arg in (*args, *numbers.values()) if isinstance(arg, Value)]
        result = self.matched(values, shape, described(node))
        large = any(v.data is not None and v.data.numel() > _SMALL for v in values)
        known = None
        if operation in CASTS:
            dtype = node.meta["val"].dtype
            dtype = torch.float64 if dtype.is_floating_point else dtype
            facts = values[0].known
            known = None if facts is None else Known(facts.mask, facts.value.to(dtype))
        elif not large and not any(isinstance(number, Value) for number in numbers.values()):
            assert callable(node.target)
            known = pointwise(node.target, operation, args, numbers)
        return Value(shape, result.ids, known)

    def matched(self, values: list[Value], shape: tuple[int, ...], reader: str) -> Value:
        """The tensors broadcast to one shape, so that their units go together."""
        ids: list[Ids] = []
        for axis in range(-len(shape), 0):
            length = shape[axis]
            found: Ids | None = None
            for value in values:
                if len(value.shape) < -axis:
                    continue
                if value.shape[axis] != length:
                    self.pin(value, f"{reader} broadcasts it", [axis])
                elif found is None or length == 1:
                    found = value.ids[axis]
                else:
                    self.units.same(found, value.ids[axis])
            ids.append(rigid(length) if found is None else found)
        return Value(shape, tuple(ids))

    def opaque(self, node: fx.Node) -> Any:
        """An operation that nobody has described: all that it reads stays."""
        inputs = self._values_in((node.args, node.kwargs))
        for value in inputs:
            self.pin(value, f"{described(node)} reads it in a way unknown here")
        make = self.fresh if inputs else rigid
        results: list[Value | None] = []
        for shape in shapes_of(node):
            made = None if shape is None else Value(shape, tuple(map(make, shape)))
            if made is not None:
                self.pin(made, f"{described(node)} makes it in a way unknown here")
            results.append(made)
        several = isinstance(node.meta.get("val"), tuple | list)
        return results if several else results[0]


def _with_data(value: Value, data: torch.Tensor) -> Value:
    return Value(value.shape, value.ids, None, data.detach(), value.name)


def _data_of(args: Any) -> Any:
    if isinstance(args, Value):
        return args.data
    if isinstance(args, tuple | list):
        return type(args)(_data_of(arg) for arg in args)
    if isinstance(args, dict):
        return {key: _data_of(value) for key, value in args.items()}
    return args
