"""Products with weights: which input each output reads, and what is constant afterwards."""

import string
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from .analysis import Analysis, Product
from .operations import handles
from .trace import described, shapes_of
from .units import Grid, Ids, Read, rigid
from .values import Known, Value, along


def note_product(
    a: Analysis,
    node: fx.Node,
    x: Value,
    axis: int,
    weight: Value,
    bias: Value | None,
    inputs: Ids,
    outputs: Ids,
    matrix: Tensor,
    foldable: bool,
) -> np.ndarray:
    """Note a product; return what its outputs are where they are constant, without bias.

    Args:
        a: the analysis.
        node: the product.
        x: what it reads, along `axis`.
        axis: of x.
        weight: the layer's.
        bias: the layer's.
        inputs: (parts, in) units, with a part for each group of a grouped convolution.
        outputs: (parts, out) units.
        matrix: (parts, out, in, entries).
        foldable: whether a constant input adds the same to all entries of an output.
    """
    constants = x.constant(axis).reshape(inputs.shape)
    live = (matrix != 0).any(-1).cpu().numpy()
    excused = constants == 0
    own = foldable and a.fold and a.owns_bias(node, weight, bias)
    if own:
        excused = ~np.isnan(constants)
    reads = live & ~excused[:, None, :]
    a.units.rules.append(Read(inputs, outputs, reads, f"{described(node)} reads it"))
    a.products.append(Product(node, weight, inputs, outputs, matrix, live, constants, own))
    # A row is constant if everything that it reads is.
    known = ~np.isnan(constants) if foldable else constants == 0
    rows = shifts_of(matrix, np.where(known, constants, 0.0))
    rows[(live & ~known[:, None, :]).any(-1)] = np.nan
    return rows.reshape(-1)


def shifts_of(matrix: Tensor, constants: np.ndarray) -> np.ndarray:
    """What constant inputs (parts, in) add to the outputs (parts, out) of a product."""
    total = np.zeros(matrix.shape[:2])
    for part, column in zip(*np.nonzero(constants), strict=True):
        weights = matrix[part, :, column].detach().double().sum(-1).cpu().numpy()
        total[part] += weights * constants[part, column]
    return total


def _constant_outputs(
    shape: tuple[int, ...], axis: int, rows: np.ndarray, bias: Value | None
) -> Known | None:
    if bias is not None:
        if bias.data is None:
            return None
        rows = rows + bias.data.detach().double().cpu().numpy()
    return along(axis, len(shape), ~np.isnan(rows), rows)


@handles("linear")
def linear(a: Analysis, node: fx.Node, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """X W^T + b over the last axis."""
    shape = shapes_of(node)[0]
    assert shape is not None
    axis = len(x.shape) - 1
    a.units.same(x.ids[-1], weight.ids[-1])
    out_ids = weight.ids[0] if len(weight.shape) == 2 else rigid(1)
    if bias is not None:
        a.units.same(out_ids, bias.ids[0])
    known = None
    if weight.data is None:
        a.pin(x, f"{described(node)} computes its weight from the input", [axis])
    else:
        matrix = weight.data.reshape(1, -1, x.shape[-1], 1)
        rows = note_product(
            a, node, x, axis, weight, bias, x.ids[-1][None], out_ids[None], matrix, True
        )
        if len(weight.shape) == 2:
            known = _constant_outputs(shape, len(shape) - 1, rows, bias)
    ids = (*x.ids[:-1], out_ids) if len(weight.shape) == 2 else x.ids[:-1]
    return Value(shape, ids, known)


@handles("_weight_norm")
def weight_norm(a: Analysis, node: fx.Node, direction: Value, size: Value, dim: int = 0) -> Value:
    """A weight whose slices along `dim` are given by direction and norm."""
    shape = direction.shape
    if len(shape) < 2 or dim != 0 or direction.data is None:
        return a.opaque(node)
    a.units.same(direction.ids[0], size.ids[0])
    a.pin(direction, f"{described(node)} is over the kernel", range(2, len(shape)))
    live = (direction.data != 0).flatten(2).any(-1) if len(shape) > 2 else direction.data != 0
    reads = live.cpu().numpy()[None]
    reason = f"{described(node)} reads it for a norm"
    a.units.rules.append(Read(direction.ids[1][None], direction.ids[0][None], reads, reason))
    return Value(shape, direction.ids)


@handles("mm", "bmm", "matmul", "mv", "dot", "addmm", "baddbmm")
def matmul(a: Analysis, node: fx.Node, *args: Any, **scales: Any) -> Value:
    """Products of matrices, of which either may be a weight."""
    shape = shapes_of(node)[0]
    assert shape is not None
    bias, (x, y) = (args[0], args[1:3]) if len(args) == 3 else (None, args)
    if len(x.shape) == 2 and len(y.shape) == 2 and y.data is not None and not scales:
        a.units.same(x.ids[1], y.ids[0])
        if bias is not None and len(bias.shape) == 1:
            a.units.same(bias.ids[0], y.ids[1])
        elif bias is not None:
            a.pin(bias, f"{described(node)} adds it")
            a.units.same(bias.ids[-1], y.ids[1])
        matrix = y.data.t().reshape(1, shape[1], x.shape[1], 1)
        rows = note_product(a, node, x, 1, y, bias, x.ids[1][None], y.ids[1][None], matrix, True)
        known = None
        if bias is None or len(bias.shape) == 1:
            known = _constant_outputs(shape, 1, rows, bias)
        return Value(shape, (x.ids[0], y.ids[1]), known)
    if min(len(x.shape), len(y.shape)) < 2 or bias is not None:
        return a.opaque(node)
    if y.data is not None and len(y.shape) == 2:
        a.units.same(x.ids[-1], y.ids[0])
        matrix = y.data.t().reshape(1, y.shape[1], y.shape[0], 1)
        axis = len(x.shape) - 1
        rows = note_product(
            a, node, x, axis, y, None, x.ids[-1][None], y.ids[1][None], matrix, True
        )
        known = _constant_outputs(shape, len(shape) - 1, rows, None)
        return Value(shape, (*x.ids[:-1], y.ids[1]), known)
    _contract(a, node, x, len(x.shape) - 1, y, len(y.shape) - 2)
    batch = [Value(v.shape[:-2], v.ids[:-2]) for v in (x, y)]
    ids = a.matched(batch, shape[:-2], described(node)).ids
    return Value(shape, (*ids, x.ids[-2], y.ids[-1]))


def _contract(a: Analysis, node: fx.Node, x: Value, i: int, y: Value, j: int) -> None:
    """An axis of each is summed over: an index goes where either is known to be zero."""
    a.units.same(x.ids[i], y.ids[j])
    needed = ~(x.zeros(i) | y.zeros(j))
    a.units.pin(x.ids[i][needed], f"{described(node)} sums over it")


@handles("einsum")
def einsum(a: Analysis, node: fx.Node, equation: str, tensors: list[Value], **__: Any) -> Any:
    """Letters are axes."""
    left, _, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    shape = shapes_of(node)[0]
    if "." in equation or shape is None or (shape and not right):
        return a.opaque(node)
    found: dict[str, list[tuple[Value, int]]] = {}
    for term, tensor in zip(terms, tensors, strict=True):
        for axis, letter in enumerate(term):
            found.setdefault(letter, []).append((tensor, axis))
    assert set(found) <= set(string.ascii_letters)
    if any(len({tensor.shape[axis] for tensor, axis in places}) > 1 for places in found.values()):
        return a.opaque(node)  # an axis of length one is repeated
    for letter, places in found.items():
        first, axis = places[0]
        for other, at in places[1:]:
            a.units.same(first.ids[axis], other.ids[at])
        if letter not in right:
            zero = np.zeros(first.shape[axis], dtype=bool)
            for tensor, at in places:
                zero |= tensor.zeros(at)
            a.units.pin(first.ids[axis][~zero], f"{described(node)} sums over it")
    return Value(shape, tuple(found[letter][0][0].ids[found[letter][0][1]] for letter in right))


def _grouped(a: Analysis, node: fx.Node, flat: Ids, groups: Ids, within: Ids) -> None:
    """Channels of a grouped convolution: a group of them goes, or a place in every group."""
    shape = (len(groups), len(within))
    reason = f"{described(node)} has groups, and others need it there"
    if len(within) == 1:
        a.units.same(flat, groups)
    else:
        a.units.rules.append(Grid(flat.reshape(shape), (groups, within), reason))


@handles("conv1d", "conv2d", "conv3d", "convolution")
def convolution(a: Analysis, node: fx.Node, x: Value, weight: Value, *rest: Any) -> Value:
    """Convolutions; rest is bias, stride, padding, dilation, groups."""
    defaults: tuple[Any, ...] = (None, 1, 0, 1, 1)
    bias, _, padding, _, groups = (*rest, *defaults[len(rest) :])[:5]
    if node.target is torch.ops.aten.convolution.default:
        if rest[4]:
            return a.opaque(node)
        groups = rest[6]
    padded = padding not in (0, "valid") and not (isinstance(padding, list) and not any(padding))
    return _convolution(a, node, x, weight, bias, groups, transposed=False, foldable=not padded)


@handles("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(
    a: Analysis, node: fx.Node, x: Value, weight: Value, *rest: Any
) -> Value:
    """Transposed convolutions; rest is bias, stride, padding, output padding, groups."""
    defaults: tuple[Any, ...] = (None, 1, 0, 0, 1)
    bias, _, _, _, groups = (*rest, *defaults[len(rest) :])[:5]
    return _convolution(a, node, x, weight, bias, groups, transposed=True, foldable=False)


def _convolution(
    a: Analysis,
    node: fx.Node,
    x: Value,
    weight: Value,
    bias: Value | None,
    groups: int,
    *,
    transposed: bool,
    foldable: bool,
) -> Any:
    shape = shapes_of(node)[0]
    if weight.data is None or shape is None or len(shape) != len(weight.shape):
        return a.opaque(node)
    inputs, outputs = x.ids[1], a.fresh(shape[1])
    if groups == 1:
        first, second = (inputs, outputs) if transposed else (outputs, inputs)
        a.units.same(weight.ids[0], first)
        a.units.same(weight.ids[1], second)
    else:
        own, within = (inputs, outputs) if transposed else (outputs, inputs)
        parts = a.fresh(groups)
        a.group_units[node] = parts
        a.units.same(weight.ids[0], own)
        # A place in axis 1 of the weight is a place in every group.
        _grouped(a, node, within, parts, weight.ids[1])
        _grouped(a, node, own, parts, a.fresh(len(own) // groups))
    if bias is not None:
        a.units.same(bias.ids[0], outputs)
    a.pin(weight, "it is a place in the kernel", range(2, len(weight.shape)))
    tall = weight.data.detach().flatten(2)
    matrix = tall.reshape(groups, tall.shape[0] // groups, tall.shape[1], tall.shape[2])
    if transposed:
        matrix = matrix.transpose(1, 2)
    grid = inputs.reshape(groups, -1), outputs.reshape(groups, -1)
    rows = note_product(a, node, x, 1, weight, bias, *grid, matrix, foldable)
    spatial = tuple(rigid(n) for n in shape[2:])
    return Value(shape, (x.ids[0], outputs, *spatial), _constant_outputs(shape, 1, rows, bias))
