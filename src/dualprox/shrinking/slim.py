"""`shrink`: a physically smaller network with the same outputs, and what that saved."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from ..checks import is_count, require
from ..kinds import check_kinds
from ..sharding import require_ordinary
from .compact import Compaction
from .inputs import ExampleInput, Inputs
from .measure import compare
from .norms import NarrowNorms
from .plan import apply_plan, with_inputs_selected
from .replace import describe
from .report import LayerChange, ShrinkReport, attach_report
from .rounding import rounded_down
from .sameness import difference, require_same
from .select_inputs import Selection, selection_of
from .select_linear import SelectLinear


def shrink(
    model: nn.Module,
    example_input: ExampleInput,
    *,
    round_to: int = 1,
    lossy: bool = False,
    select_inputs: bool = False,
    narrow_norms: bool = False,
    latency: bool = True,
    batch_sizes: Sequence[int] = (1, 64),
) -> nn.Module:
    """A physically smaller copy of a network with dead channels, which computes the same.

    What no live weight reads is removed, transitively: input slices that are exactly zero, the
    channels that they read, the biases, norms and weights that made them, and so on. Channels
    whose value never changes go into the next bias where that is exact. Whatever cannot be proven
    safe on the network's graph stays, and the report says why. Then both networks run on the
    example and on random inputs, in float64 where possible.

    Parameters are read as they are: call it inside ``with opt.structured():``.

    Args:
        model: any module that `torch.export` can trace; untouched.
        example_input: a tensor, a tuple of positional or a dict of keyword arguments; axis 0 of
            the tensors is the batch.
        round_to: widths that get smaller stay multiples of this, padded with dead channels.
        lossy: reach these multiples from above, by removing the weakest live channels too (those
            that are read with the smallest weights). That changes what the network computes, by
            the report's `max_abs_diff` on the example.
        select_inputs: let each nn.Linear that is left with inputs that it has no weight for, since
            they have to stay (pixels, channels that a LayerNorm reads), select the others: it
            becomes a `SelectLinear`, W x = W[:, live] x[live]. With `round_to`, their number too
            is a multiple.
        narrow_norms: remove channels, too, that nothing but layer norms reads (nn.LayerNorm and
            nn.RMSNorm), the residual stream's: their statistics then are over the channels that
            stay. That changes what the network computes, by the report's `max_abs_diff` on the
            example; but for that it is the same.
        latency: measure it; a few seconds.
        batch_sizes: to measure latency at.

    Returns:
        A new module of the same class, with a `ShrinkReport` as its attribute ``report``.

    Raises:
        ShrinkError: torch.export cannot trace the model, or the outputs differ.
        ValueError: a setting is out of its range, or the model is sharded: `gather_` it before.

    Example:
        >>> import torch, dualprox as dp
        >>> from torch.nn import Linear, ReLU, Sequential
        >>> model = Sequential(Linear(4, 8), ReLU(), Linear(8, 2))
        >>> with torch.no_grad():
        ...     _ = model[2].weight[:, :6].zero_()
        >>> slim = dp.shrink(model, torch.randn(1, 4), latency=False)
        >>> slim[0], slim.report.before.parameters, slim.report.after.parameters
        (Linear(in_features=4, out_features=2, bias=True), 58, 16)
        >>> with torch.no_grad():
        ...     _ = model[0].weight[:, 1:].zero_()
        >>> dp.shrink(model, torch.randn(1, 4), select_inputs=True, latency=False)[0]
        SelectLinear(in_features=1, out_features=2, bias=True, of_features=4)
    """
    check_kinds(shrink, locals())
    require(is_count(round_to), "round_to", "an int >= 1", round_to)
    require_ordinary(model, "shrink")
    require(not lossy or round_to > 1, "lossy", "False unless round_to > 1", lossy)
    inputs = Inputs.of(example_input)
    start = rounded_down(model, inputs, round_to, narrow_norms) if lossy else model
    found = Compaction(start, inputs, round_to=round_to, narrow_norms=narrow_norms)
    slim = cut = slimmed(start, found)
    selection = selection_of(cut, inputs, round_to) if select_inputs else Selection()
    if selection.kept:
        slim = with_inputs_selected(cut, selection.kept)

    def smaller(dense: nn.Module) -> nn.Module:
        dense = dense.model if isinstance(dense, NarrowNorms) else dense
        return with_inputs_selected(slimmed(dense, found), selection.kept)

    reference = NarrowNorms.of(start, found)
    apart = require_same(reference, slim, smaller, inputs, found.analysis, found.removal, cut)
    if lossy or reference is not start:
        apart = difference(model, slim, inputs)
    if latency:
        before, after = compare(model, slim, example_input, batch_sizes=batch_sizes)
    else:
        before, after = compare(model, slim, example_input, latency=False)
    rows = layer_changes(model, slim, found, selection)
    plan = replace(found.plan, select=selection.kept)
    return attach_report(slim, ShrinkReport(rows, before, after, apart, plan.to_dict()))


def slimmed(model: nn.Module, found: Compaction) -> nn.Module:
    """The model cut down by what was found, with constants in the biases that take them."""
    slim = apply_plan(model, found.plan)
    with torch.no_grad():
        for layer, shift in found.folded().items():
            bias = slim.get_submodule(layer).bias
            assert isinstance(bias, torch.Tensor)
            kept = found.kept_outputs(layer)
            bias.copy_(bias.double() + shift[torch.from_numpy(kept)].to(bias.device))
    return slim


def layer_changes(
    model: nn.Module, slim: nn.Module, found: Compaction, selection: Selection
) -> tuple[LayerChange, ...]:
    """A row per layer that has weights."""
    rows = []
    small = dict(slim.named_modules())
    products = {p.weight.name.rpartition(".")[0]: p for p in reversed(found.analysis.products)}
    for name, module in model.named_modules():
        own = sum(p.numel() for p in module.parameters(recurse=False))
        if not own or name not in small:
            continue
        left = sum(p.numel() for p in small[name].parameters(recurse=False))
        dead = removed = 0
        stayed = ""
        if name in products:
            product = products[name]
            zero = ~product.live.any(1)
            units = product.inputs[zero]
            gone = found.removal.removed[units]
            dead, removed = len(units), int(gone.sum())
            reasons = Counter(found.removal.reason(unit) for unit in units[~gone])
            stayed = "; ".join(f"{count}: {reason}" for reason, count in reasons.most_common(3))
        if name in selection.kept:
            # More are dead than were: what only removed outputs had a weight for.
            dead = removed + selection.dead[name]
            layer = small[name]
            assert isinstance(layer, SelectLinear)
            filled = selection.dead[name] - (layer.of_features - layer.in_features)
            removed = dead - filled
            stayed = f"{filled}: it fills the number selected" if filled else ""
        elif name in selection.stays:
            stayed = f"{stayed}; selects none: {selection.stays[name]}".removeprefix("; ")
        rows.append(
            LayerChange(
                name, describe(module), describe(small[name]), own, left, dead, removed, stayed
            )
        )
    return tuple(rows)
