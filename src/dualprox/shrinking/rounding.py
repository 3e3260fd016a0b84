"""Widths that hardware likes, reached from above: the weakest live channels are given up."""

import copy

import numpy as np
import torch
from torch import nn

from .compact import Compaction
from .inputs import Inputs
from .plan import widen
from .trace import Trace

_MOST_ROUNDS = 20


def rounded_down(
    model: nn.Module, inputs: Inputs, multiple: int, narrow_norms: bool = False
) -> nn.Module:
    """A copy of a network in which so many more channels are dead that widths are multiples.

    Of each axis that loses channels, and would keep more than `multiple` of them but not a
    multiple, the channels read with the smallest weights (the 2-norm over all readers) are cut off
    from their readers. That changes what the network computes.

    Args:
        model: untouched.
        inputs: of one run.
        multiple: >= 2.
        narrow_norms: as in `shrink`.

    Raises:
        ShrinkError: torch.export cannot trace the model.
    """
    changed = copy.deepcopy(model)
    dense = widen(copy.deepcopy(model)).eval()
    trace = Trace(dense, inputs)
    tried: set[int] = set()
    for _ in range(_MOST_ROUNDS):
        found = Compaction(dense, inputs, narrow_norms=narrow_norms, trace=trace)
        weakest = _weakest(found, multiple) - tried
        if not weakest:
            break
        tried |= weakest
        for network in (dense, changed):
            _cut_off(found, network, weakest)
    return changed


def _weakest(found: Compaction, multiple: int) -> set[int]:
    """The units, by their roots, that must die as well on the axes that are not yet right."""
    removal, roots = found.removal, found.removal.roots
    strength: dict[int, float] = {}
    for product in found.analysis.products:
        squares = product.matrix.detach().double().square().sum((1, 3)).cpu().numpy()
        for root, square in zip(roots[product.inputs].flat, squares.flat, strict=True):
            strength[int(root)] = strength.get(int(root), 0.0) + float(square)
    chosen: set[int] = set()
    for value in found.analysis.tensors.values():
        for ids in value.ids:
            kept = roots[ids[removal.kept(ids)]]
            excess = len(kept) % multiple
            if len(kept) == len(ids) or not excess or len(kept) < multiple:
                continue
            if chosen.intersection(kept.tolist()):
                continue  # another axis of the same channels has chosen already
            known = [int(root) for root in np.unique(kept) if int(root) in strength]
            known.sort(key=lambda root: strength[root])
            gone = 0
            for root in known:
                width = int((kept == root).sum())
                if gone + width <= excess:
                    chosen.add(root)
                    gone += width
    return chosen


def _cut_off(found: Compaction, network: nn.Module, units: set[int]) -> None:
    """Make zero, in `network`, every weight that reads one of the units."""
    roots = found.removal.roots
    dead = np.zeros(len(roots), dtype=bool)
    dead[list(units)] = True
    params = dict(network.named_parameters())
    with torch.no_grad():
        for product in found.analysis.products:
            name = product.weight.name
            if name not in params:
                continue
            gone = torch.from_numpy(dead[roots[product.inputs]]).to(params[name].device)
            for axis, ids in enumerate(product.weight.ids):
                if len(product.inputs) == 1 and np.array_equal(
                    roots[ids], roots[product.inputs[0]]
                ):
                    params[name].index_fill_(axis, gone[0].nonzero().flatten(), 0.0)
                    break
