"""Norms, pools, reductions and attention: what they read together, and what stays constant."""

from typing import Any

import numpy as np
import torch
from torch import fx

from .analysis import Analysis
from .operations import handles
from .trace import arguments, described, shapes_of
from .units import rigid
from .values import Known, Value, along

_POOLS = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")
_UPSAMPLES = ("nearest", "_nearest_exact", "linear", "bilinear", "bicubic", "trilinear")


def _scaled(
    shape: tuple[int, ...],
    axis: int,
    constants: np.ndarray,
    *tensors: Value | None,
    eps: float = 0.0,
) -> Known | None:
    """What an affine map of each channel leaves constant; tensors are weight, bias, mean, var."""
    numbers: list[np.ndarray | None] = []
    for tensor in tensors:
        if tensor is not None and tensor.data is None:
            return None
        data = None if tensor is None or tensor.data is None else tensor.data
        numbers.append(None if data is None else data.detach().double().cpu().numpy())
    weight, bias, mean, variance = (*numbers, None, None)[:4]
    out = constants
    if mean is not None and variance is not None:
        out = (out - mean) / np.sqrt(variance + eps)
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
        known = _scaled(x.shape, 1, x.constant(1), weight, bias, mean, var, eps=eps)
    result = Value(x.shape, x.ids, known)
    return [result, *[None] * (len(node.meta["val"]) - 1)] if several else result


@handles("instance_norm")
def instance_norm(a: Analysis, node: fx.Node, x: Value, *tensors: Any, **_: Any) -> Value:
    """Each channel of each sample by itself; what is zero has the mean zero, and stays zero."""
    del node
    for tensor in tensors[:4]:
        if isinstance(tensor, Value):
            a.units.same(x.ids[1], tensor.ids[0])
    weight, bias, own = tensors[0], tensors[1], tensors[4]
    if not own:
        return Value(x.shape, x.ids)  # by running statistics
    zero = np.where(x.zeros(1), 0.0, np.nan)
    return Value(x.shape, x.ids, _scaled(x.shape, 1, zero, weight, bias))


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
    unknown = np.full(x.shape[1], np.nan)
    result = Value(x.shape, x.ids, _scaled(x.shape, 1, unknown, weight, bias))
    return [result, None, None] if several else result


@handles("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm")
def layer_norm(a: Analysis, node: fx.Node, x: Value, normalized: list[int], *rest: Any) -> Any:
    """Every channel is read for the mean and the variance of all, or of those that stay."""
    axes = range(len(x.shape) - len(normalized), len(x.shape))
    weight, bias = (*rest, None, None)[:2]
    for tensor in (weight, bias):
        if isinstance(tensor, Value):
            for own, axis in zip(tensor.ids, axes, strict=True):
                a.units.same(own, x.ids[axis])
    if a.narrow_norms and len(normalized) == 1 and isinstance(weight, Value) and weight.name:
        a.norm_units[weight.name] = weight.ids[0]
    else:
        a.pin(x, f"{described(node)} reads all channels for its mean and variance", axes)
    known = None
    if len(normalized) == 1 and isinstance(weight, Value):
        unknown = np.full(x.shape[-1], np.nan)
        shift = bias if isinstance(bias, Value) else None
        known = _scaled(x.shape, len(x.shape) - 1, unknown, weight, shift)
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
        rigid(1) if axis in dims else own
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
        ids = (*x.ids[:keep], *(rigid(n) for n in shape[keep:]))
        results.append(Value(shape, ids, _pooled(node, x, keep, rest)))
    several = isinstance(node.meta["val"], tuple | list)
    return results if several else results[0]


def _space(node: fx.Node) -> int:
    name = str(node.target)
    return next(n for n in (1, 2, 3) if f"{n}d" in name)


def _pooled(node: fx.Node, x: Value, keep: int, rest: tuple[Any, ...]) -> Known | None:
    """A constant channel stays one, unless it is averaged with zeros around it, or scaled."""
    if x.known is None or any(n > 1 for n in x.known.mask.shape[keep:]):
        return None
    padding = rest[2] if len(rest) > 2 and "avg_pool" in str(node.target) else 0
    scaled = arguments(node).get("divisor_override") is not None
    if scaled or ("adaptive" not in str(node.target) and np.any(padding)):
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
