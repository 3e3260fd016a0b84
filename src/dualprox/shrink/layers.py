"""Operations that compute: which input each output reads, and what is constant afterwards."""

import string
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from .analysis import Analysis, Product, handles
from .trace import described, shapes_of
from .units import RIGID, Grid, Ids, Read
from .values import Known, Value, along

_POOLS = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")
_UPSAMPLES = ("nearest", "_nearest_exact", "linear", "bilinear", "bicubic", "trilinear")


def _rigid(length: int) -> Ids:
    return np.full(length, RIGID, dtype=np.int64)


def _read(
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
    own = foldable and a.fold and a.owns_bias(weight, bias)
    if own:
        excused = ~np.isnan(constants)
    reads = live & ~excused[:, None, :]
    a.units.rules.append(Read(inputs, outputs, reads, f"{described(node)} reads it"))
    a.products.append(Product(node, weight, inputs, outputs, matrix, live, constants, own))
    # A row is constant if everything that it reads is.
    known = constants == 0
    if foldable:
        known = ~np.isnan(constants)
    sums = matrix.detach().double().sum(-1).cpu().numpy()
    total = np.einsum("goi,gi->go", sums, np.where(np.isnan(constants), 0.0, constants))
    return np.where((live & ~known[:, None, :]).any(-1), np.nan, total).reshape(-1)


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
    out_ids = weight.ids[0] if len(weight.shape) == 2 else _rigid(1)
    if bias is not None:
        a.units.same(out_ids, bias.ids[0])
    known = None
    if weight.data is None:
        a.pin(x, f"{described(node)} computes its weight from the input", [axis])
    else:
        matrix = weight.data.reshape(1, -1, x.shape[-1], 1)
        rows = _read(a, node, x, axis, weight, bias, x.ids[-1][None], out_ids[None], matrix, True)
        if len(weight.shape) == 2:
            known = _constant_outputs(shape, len(shape) - 1, rows, bias)
    ids = (*x.ids[:-1], out_ids) if len(weight.shape) == 2 else x.ids[:-1]
    return Value(shape, ids, known)


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
        rows = _read(a, node, x, 1, y, bias, x.ids[1][None], y.ids[1][None], matrix, True)
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
        rows = _read(a, node, x, axis, y, None, x.ids[-1][None], y.ids[1][None], matrix, True)
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
    rows = _read(a, node, x, 1, weight, bias, *grid, matrix, foldable)
    spatial = tuple(_rigid(n) for n in shape[2:])
    return Value(shape, (x.ids[0], outputs, *spatial), _constant_outputs(shape, 1, rows, bias))


def _scaled(
    a: Analysis, shape: tuple[int, ...], axis: int, constants: np.ndarray, *tensors: Value | None
) -> Known | None:
    """What an affine map of each channel leaves constant; tensors are weight, bias, mean, var."""
    del a
    if any(t is not None and t.data is None for t in tensors):
        return None
    weight, bias, mean, scale = (
        None if t is None else t.data.detach().double().cpu().numpy()  # pyright: ignore
        for t in tensors
    )
    out = constants
    if mean is not None and scale is not None:
        out = (out - mean) * scale
    if weight is not None:
        out = np.where(weight == 0, 0.0, out * weight)
    if bias is not None:
        out = out + bias
    return along(axis, len(shape), ~np.isnan(out), out)


@handles("_native_batch_norm_legit_no_training", "batch_norm")
def batch_norm(
    a: Analysis,
    node: fx.Node,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    var: Value | None,
    *rest: Any,
) -> Any:
    """Each channel by itself; in evaluation an affine map of it."""
    for tensor in (weight, bias, mean, var):
        if tensor is not None:
            a.units.same(x.ids[1], tensor.ids[0])
    several = isinstance(node.meta["val"], tuple | list)
    training = False if several else rest[0]
    eps = rest[1] if several else rest[2]
    known = None
    if not training and var is not None and var.data is not None:
        scale = Value(var.shape, var.ids, None, (var.data.double() + eps).rsqrt())
        known = _scaled(a, x.shape, 1, x.constant(1), weight, bias, mean, scale)
    result = Value(x.shape, x.ids, known)
    return [result, *[None] * (len(node.meta["val"]) - 1)] if several else result


@handles("instance_norm")
def instance_norm(a: Analysis, node: fx.Node, x: Value, *tensors: Any, **_: Any) -> Value:
    """Each channel of each sample by itself."""
    del node
    for tensor in tensors[:4]:
        if isinstance(tensor, Value):
            a.units.same(x.ids[1], tensor.ids[0])
    return Value(x.shape, x.ids)


@handles("group_norm", "native_group_norm")
def group_norm(a: Analysis, node: fx.Node, x: Value, *rest: Any, **_: Any) -> Any:
    """The channels of a group are read together, so that they go together."""
    several = isinstance(node.meta["val"], tuple | list)
    weight, bias = rest[:2] if several else (*rest[1:3], None, None)[:2]
    groups = rest[5] if several else rest[0]
    for tensor in (weight, bias):
        if isinstance(tensor, Value):
            a.units.same(x.ids[1], tensor.ids[0])
    grid = x.ids[1].reshape(groups, -1)
    a.units.same(np.repeat(grid[:, :1], grid.shape[1], 1), grid)
    a.group_units[node] = grid[:, 0].copy()
    result = Value(x.shape, x.ids)
    return [result, None, None] if several else result


@handles("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm")
def layer_norm(a: Analysis, node: fx.Node, x: Value, normalized: list[int], *rest: Any) -> Any:
    """Every channel is read for the mean and the variance of all."""
    axes = range(len(x.shape) - len(normalized), len(x.shape))
    weight, bias = (*rest, None, None)[:2]
    for tensor in (weight, bias):
        if isinstance(tensor, Value):
            for own, axis in zip(tensor.ids, axes, strict=True):
                a.units.same(own, x.ids[axis])
    a.pin(x, f"{described(node)} reads all channels for its mean and variance", axes)
    known = None
    if len(normalized) == 1 and isinstance(weight, Value):
        unknown = np.full(x.shape[-1], np.nan)
        shift = bias if isinstance(bias, Value) else None
        known = _scaled(a, x.shape, len(x.shape) - 1, unknown, weight, shift, None, None)
    result = Value(x.shape, x.ids, known)
    several = isinstance(node.meta["val"], tuple | list)
    return [result, *[None] * (len(node.meta["val"]) - 1)] if several else result


@handles("softmax", "log_softmax", "_softmax", "_log_softmax", "_safe_softmax", "cumsum")
def softmax(a: Analysis, node: fx.Node, x: Value, dim: int, *_: Any, **__: Any) -> Value:
    """Reads all along an axis."""
    a.pin(x, f"{described(node)} reads all along the axis", [dim % max(len(x.shape), 1)])
    return Value(x.shape, x.ids)


@handles(
    "mean",
    "sum",
    "amax",
    "amin",
    "var",
    "std",
    "linalg_vector_norm",
    "any",
    "all",
    "argmax",
    "argmin",
    "logsumexp",
    "prod",
)
def reduction(a: Analysis, node: fx.Node, x: Value, *rest: Any, **options: Any) -> Value:
    """Axes are reduced to one number."""
    shape = shapes_of(node)[0]
    assert shape is not None
    given = rest[1:] if node.target is torch.ops.aten.linalg_vector_norm.default else rest
    dims = options.get("dim", given[0] if given else None)
    dims = [dims] if isinstance(dims, int) else list(dims or range(len(x.shape)))
    dims = [dim % max(len(x.shape), 1) for dim in dims]
    a.pin(x, f"{described(node)} sums over it", dims)
    keep = len(shape) == len(x.shape)
    ids = [
        _rigid(1) if axis in dims else own
        for axis, own in enumerate(x.ids)
        if keep or axis not in dims
    ]
    known = None
    if node.target in _AVERAGES and x.known is not None:
        if all(x.known.mask.shape[dim] == 1 for dim in dims):
            mask, value = x.known.mask, x.known.value
            if not keep:
                mask, value = (t.squeeze(tuple(dims)) for t in (mask, value))
            known = Known(mask, value)
    return Value(shape, tuple(ids), known)


_AVERAGES = {torch.ops.aten.mean.dim, torch.ops.aten.amax.default, torch.ops.aten.amin.default}


def _pool(a: Analysis, node: fx.Node, x: Value, *rest: Any, **_: Any) -> Any:
    """Channels by themselves; the axes of space anew."""
    del a
    results = []
    for shape in shapes_of(node):
        assert shape is not None
        keep = len(x.shape) - _space(node)
        ids = (*x.ids[:keep], *(_rigid(n) for n in shape[keep:]))
        results.append(Value(shape, ids, _pooled(node, x, keep, rest)))
    several = isinstance(node.meta["val"], tuple | list)
    return results if several else results[0]


def _space(node: fx.Node) -> int:
    name = str(node.target)
    return next(n for n in (1, 2, 3) if f"{n}d" in name)


def _pooled(node: fx.Node, x: Value, keep: int, rest: tuple[Any, ...]) -> Known | None:
    """A constant channel stays one, unless zeros around it are averaged in."""
    if x.known is None or any(n > 1 for n in x.known.mask.shape[keep:]):
        return None
    padding = rest[2] if len(rest) > 2 and "avg_pool" in str(node.target) else 0
    if "adaptive" not in str(node.target) and np.any(padding):
        return Known(x.known.mask & (x.known.value == 0), x.known.value).checked()
    return (
        x.known if "upsample" not in str(node.target) or "cubic" not in str(node.target) else None
    )


for _space_axes in (1, 2, 3):
    handles(*(f"{pool}{_space_axes}d" for pool in _POOLS))(_pool)
    handles(f"max_pool{_space_axes}d_with_indices", f"_adaptive_avg_pool{_space_axes}d")(_pool)
    handles(*(f"upsample_{kind}{_space_axes}d" for kind in _UPSAMPLES))(_pool)


@handles("prelu", "_prelu_kernel")
def prelu(a: Analysis, node: fx.Node, x: Value, weight: Value) -> Value:
    """A slope for each channel, or one."""
    if weight.shape != (1,) and len(weight.shape) == 1 and len(x.shape) > 1:
        a.units.same(x.ids[1], weight.ids[0])
    elif weight.shape != (1,):
        return a.opaque(node)
    constants = x.constant(1) if len(x.shape) > 1 else np.array([])
    zero = constants == 0
    known = along(1, len(x.shape), zero, constants) if zero.any() else None
    return Value(x.shape, x.ids, known)


@handles("embedding")
def embedding(a: Analysis, node: fx.Node, weight: Value, index: Value, *_: Any) -> Value:
    """Rows by index; any row may be asked for."""
    a.pin(weight, f"{described(node)} may look it up", [0])
    shape = shapes_of(node)[0]
    assert shape is not None
    zero = along(len(shape) - 1, len(shape), weight.zeros(1), np.zeros(shape[-1]))
    return Value(shape, (*index.ids, weight.ids[1]), zero)


@handles("scaled_dot_product_attention")
def attention(
    a: Analysis,
    node: fx.Node,
    q: Value,
    k: Value,
    v: Value,
    mask: Value | None = None,
    *_: Any,
    enable_gqa: bool = False,
    **__: Any,
) -> Value:
    """softmax(q k^T / sqrt(d)) v; heads by themselves."""
    shape = shapes_of(node)[0]
    assert shape is not None
    name = described(node)
    a.pin(q, f"{name} sums over it", [-1])
    a.pin(k, f"{name} sums over it", [-1])
    for tensor in (q, k, v):
        a.pin(tensor, f"{name} reads all positions", [-2])
    if enable_gqa and q.shape[-3] != k.shape[-3]:
        times = q.shape[-3] // k.shape[-3]
        k, v = (t.with_axis(len(t.shape) - 3, np.repeat(t.ids[-3], times)) for t in (k, v))
        k, v = (Value((*t.shape[:-3], q.shape[-3], *t.shape[-2:]), t.ids, t.known) for t in (k, v))
    batch = [Value(t.shape[:-2], t.ids[:-2]) for t in (q, k, v)]
    if mask is not None:
        a.pin(mask, f"{name} reads all positions", [-2, -1])
    if mask is not None and len(mask.shape) > 2:
        batch.append(Value(mask.shape[:-2], mask.ids[:-2]))
    ids = a.matched(batch, shape[:-2], name).ids
    known = None
    if v.known is not None:
        zero = v.known.mask & (v.known.value == 0)
        if v.known.mask.shape[-2] == 1:
            known = Known(zero, v.known.value).checked()
    return Value(shape, (*ids, q.ids[-2], v.ids[-1]), known)


@handles("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(
    a: Analysis,
    node: fx.Node,
    x: Value,
    hidden: Any,
    weights: Any,
    biased: Any,
    layers: Any = 1,
    *rest: Any,
) -> Any:
    """Recurrent layers: inputs go where no gate reads them, hidden units only in plain ones."""
    if not isinstance(weights, list | tuple) or not isinstance(biased, bool):
        return a.opaque(node)  # of a packed sequence
    _, _, bidirectional, _ = rest
    hidden = list(hidden) if isinstance(hidden, list | tuple) else [hidden]
    directions = 2 if bidirectional else 1
    each = (len(weights)) // (layers * directions)
    size = weights[1].shape[1]
    plain = layers * directions == 1 and each == 2 + 2 * biased
    units = a.fresh(size) if plain else _rigid(size)
    gates = weights[0].shape[0] // size
    for number in range(layers * directions):
        own = weights[number * each : (number + 1) * each]
        for tensor in own:
            a.units.same(tensor.ids[0], np.tile(units, tensor.shape[0] // size))
        rows = np.tile(units, gates)[None]
        if number < directions:
            a.units.same(own[0].ids[1], x.ids[-1])
            matrix = own[0].data.detach()[None, :, :, None]
            _read(a, node, x, len(x.shape) - 1, own[0], None, x.ids[-1][None], rows, matrix, False)
        if not plain:
            for place, tensor in enumerate(own):
                first = int(place == 0 and number < directions)
                axes = [axis for axis in range(len(tensor.shape)) if axis != first or not first]
                a.pin(tensor, f"{described(node)} has layers of one size", axes)
        else:
            a.units.same(own[1].ids[1], units)
            matrix = own[1].data.detach()[None, :, :, None]
            live = (matrix != 0).any(-1).cpu().numpy()
            reason = f"{described(node)} reads it in the next step"
            a.units.rules.append(Read(units[None], rows, live, reason))
            unknown = np.full((1, size), np.nan)
            own_product = Product(node, own[1], units[None], rows, matrix, live, unknown, False)
            a.products.append(own_product)
    for tensor in hidden:
        axes = range(len(tensor.shape) - plain)
        a.pin(tensor, f"{described(node)} has layers of one size", axes)
        if plain:
            a.units.same(tensor.ids[-1], units)
    results = []
    for place, shape in enumerate(shapes_of(node)):
        assert shape is not None
        leading = x.ids[:-1] if place == 0 else tuple(_rigid(n) for n in shape[:-1])
        last = units if plain else _rigid(shape[-1])
        results.append(Value(shape, (*leading, last)))
    return results
