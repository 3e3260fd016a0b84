"""Recurrent layers, whose hidden units read each other in the next step."""

from typing import Any

import numpy as np
from torch import fx

from .analysis import Analysis, Product
from .operations import handles
from .products import note_product
from .trace import described, operator, shapes_of
from .units import Read, rigid
from .values import Value


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
    if any(weight.data is None for weight in weights):
        return a.opaque(node)
    _, _, bidirectional, _ = rest
    hidden = list(hidden) if isinstance(hidden, list | tuple) else [hidden]
    directions = 2 if bidirectional else 1
    each = (len(weights)) // (layers * directions)
    gates = {"lstm": 4, "gru": 3}.get(operator(node), 1)
    size = weights[0].shape[0] // gates
    projected = each != 2 + 2 * biased
    plain = layers * directions == 1 and not projected
    units = a.fresh(size) if plain else rigid(size)
    for number in range(layers * directions):
        own = weights[number * each : (number + 1) * each]
        for tensor in own:
            a.units.same(tensor.ids[0], np.resize(units, tensor.shape[0]))
        rows = np.tile(units, gates)[None]
        if number < directions:
            a.units.same(own[0].ids[1], x.ids[-1])
            matrix = own[0].data.detach()[None, :, :, None]
            last, inputs = len(x.shape) - 1, x.ids[-1][None]
            note_product(a, node, x, last, own[0], None, inputs, rows, matrix, False)
        if not plain:
            for place, tensor in enumerate(own):
                from_below = place == 0 and number < directions
                axes = [0] if from_below else range(len(tensor.shape))
                a.pin(tensor, f"{described(node)} has layers of one size", axes)
        else:
            a.units.same(own[1].ids[1], units)
            matrix = own[1].data.detach()[None, :, :, None]
            live = (matrix != 0).any(-1).cpu().numpy()
            reason = f"{described(node)} reads it in the next step"
            a.units.rules.append(Read(units[None], rows, live, reason))
            unknown = np.full((1, size), np.nan)
            a.products.append(
                Product(node, own[1], units[None], rows, matrix, live, unknown, False)
            )
    for tensor in hidden:
        axes = range(len(tensor.shape) - plain)
        a.pin(tensor, f"{described(node)} has layers of one size", axes)
        if plain:
            a.units.same(tensor.ids[-1], units)
    results = []
    for place, shape in enumerate(shapes_of(node)):
        assert shape is not None
        leading = x.ids[:-1] if place == 0 else tuple(rigid(n) for n in shape[:-1])
        last = units if plain else rigid(shape[-1])
        results.append(Value(shape, (*leading, last)))
    return results
