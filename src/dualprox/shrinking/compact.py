"""The largest removal that the graph allows and a new trace proves."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from . import layers, moves, products, recurrent
from .analysis import Analysis, Doubt
from .attention import NarrowAttention
from .inputs import Inputs, undisturbed
from .plan import Plan, apply_plan, widen
from .products import shifts_of
from .prove import compare, where_it_failed
from .trace import ShrinkError, Trace, is_within, layer_of
from .units import Ids, Removal
from .widths import Guess, new_widths

assert layers and moves and products and recurrent  # they register what operations do
_MOST_DOUBTS = 50


class Compaction:
    """What of a network can go, proven on its graph.

    Args:
        model: the network; read, not changed.
        inputs: of one run.
        round_to: widths that get smaller stay multiples of this.
        fold: whether constant channels may go into the bias of the layers that read them, which
            is exact in evaluation.
        narrow_norms: whether layer norms may look at fewer channels, as in `shrink`.
        trace: of the model, if there is one already; the model then is what was traced.

    Raises:
        ShrinkError: the network cannot be traced.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        *,
        round_to: int = 1,
        fold: bool = True,
        narrow_norms: bool = False,
        trace: Trace | None = None,
    ) -> None:
        try:
            self.dense = model if trace is not None else widen(copy.deepcopy(model)).eval()
        except Exception as error:  # whatever an object that the model holds says to that
            reason = f"{type(error).__name__}: {error}"
            raise ShrinkError(f"{type(model).__name__} cannot be copied: {reason}") from error
        self.inputs, self.round_to, self.fold = inputs, round_to, fold
        self.narrow_norms = narrow_norms
        self.trace = Trace(self.dense, inputs) if trace is None else trace
        self.doubts: dict[fx.Node, Doubt] = {}
        self.modules = dict(self.dense.named_modules())
        for _ in range(_MOST_DOUBTS):
            self.analysis = Analysis(self.trace, self.doubts, fold, narrow_norms)
            self.removal = self._settle()
            doubts = self._try()
            if not doubts:
                break
            for doubt in doubts:
                self._note(doubt)
        else:
            for node in self.trace.calls:
                reason = "no smaller network could be proven to be the same"
                self.doubts[node] = Doubt(node, reason)
            self.analysis = Analysis(self.trace, self.doubts, fold, narrow_norms)
            self.removal = self._settle()
            self.plan = self._plan(
                new_widths(self.analysis, self.removal, self.modules, Guess.NONE)
            )

    def _settle(self) -> Removal:
        """The removal, with no tensor emptied, and widths rounded up."""
        units = self.analysis.units
        while True:
            removal = units.solve()
            changed = False
            for parts in self.analysis.equal_parts:
                longest = max(len(removal.kept(ids)) for ids in parts)
                for ids in parts:
                    gone = ids[removal.removed[ids]]
                    if len(ids) - len(gone) < longest:
                        why = "the code cuts the axis into equal parts, and more of another is live"
                        units.pin(gone[: longest - len(ids) + len(gone)], why)
                        changed = True
            for value in self.analysis.tensors.values():
                for ids in value.ids:
                    gone = np.flatnonzero(removal.removed[ids])
                    left = len(ids) - len(gone)
                    wanted = max(1, -(-left // self.round_to) * self.round_to)
                    wanted = min(wanted, len(ids))
                    if len(gone) and left < wanted:
                        why = "one stays, so that the layer exists"
                        if left:
                            why = f"it fills the width up to a multiple of {self.round_to}"
                        units.pin(ids[gone[: wanted - left]], why)
                        changed = True
            if not changed:
                return removal

    def _plan(self, widths: dict[str, dict[str, Any]]) -> Plan:
        removal = self.removal
        keep = {}
        for name, value in self.analysis.tensors.items():
            axes = {
                axis: tuple(removal.kept(ids).tolist())
                for axis, ids in enumerate(value.ids)
                if removal.removed[ids].any()
            }
            if axes:
                keep[name] = axes
        if not keep:
            return Plan()
        attention = [
            name
            for name, module in self.modules.items()
            if isinstance(module, NarrowAttention)
            and any(kept.startswith(f"{name}." if name else "") for kept in keep)
        ]
        biases = [layer for layer in self.folded() if self.modules[layer].bias is None]
        return Plan(keep, widths, tuple(biases), tuple(attention))

    def _try(self) -> list[Doubt]:
        """Look for sizes of modules with which the smaller network is proven; else say why not."""
        first: list[Doubt] = []
        tried: list[dict[str, dict[str, Any]]] = []
        for guess in Guess:
            widths = new_widths(self.analysis, self.removal, self.modules, guess)
            if widths in tried:
                continue
            tried.append(widths)
            self.plan = self._plan(widths)
            doubts = self._doubts_of(self.plan)
            if not doubts:
                return []
            first = first or doubts
        return first

    def folded(self) -> dict[str, Tensor]:
        """Name of a layer -> what is added to the bias of its outputs, all of them, float64."""
        found = {}
        for product in self.analysis.products:
            if not product.foldable or np.isnan(product.constants).all():
                continue
            constants = np.nan_to_num(product.constants)
            gone = self.removal.removed[product.inputs]
            shifts = shifts_of(product.matrix, np.where(gone, constants, 0.0)).reshape(-1)
            if shifts[self.removal.kept(product.outputs.flatten())].any():
                found[product.weight.name.rpartition(".")[0]] = torch.from_numpy(shifts)
        return found

    def kept_outputs(self, layer: str) -> Ids:
        """Which outputs of a layer stay."""
        outputs = next(
            p.outputs for p in self.analysis.products if p.weight.name.rpartition(".")[0] == layer
        )
        return self.removal.kept(outputs.flatten())

    def _doubts_of(self, plan: Plan) -> list[Doubt]:
        """Why the smaller network may not compute the same; empty if it does."""
        if not plan.keep:
            return []
        slim = apply_plan(self.dense, plan)
        try:
            with undisturbed(slim):
                self.inputs.run(slim)
            trace = Trace(slim, self.inputs)
        except Exception as error:  # whatever a network says to other widths
            cause = error.__cause__ or error
            reason = f"the code there does not run with fewer channels: {cause}".partition("\n")[0]
            nodes = where_it_failed(self.trace, slim, error)
            fresh = [node for node in nodes if node not in self.doubts]
            fresh = fresh or [node for node in self.trace.calls if node not in self.doubts][:1]
            if not fresh:
                raise ShrinkError(
                    f"{type(self.dense).__name__} does not run cut: {reason}"
                ) from error
            return [Doubt(node, reason) for node in fresh]
        biases = [f"{layer}.bias".removeprefix(".") for layer in plan.biases]
        doubt = compare(self.analysis, self.removal, trace, biases)
        return [] if doubt is None else [doubt]

    def _note(self, doubt: Doubt) -> None:
        """Remember a doubt; if it is not new, doubt more than its place."""
        known = self.doubts.get(doubt.node)
        if known is None:
            self.doubts[doubt.node] = doubt
        elif known.axes is not None:
            more = None if doubt.axes is None else {*doubt.axes} - {*known.axes}
            axes = (*known.axes, *more) if more else None
            self.doubts[doubt.node] = replace(doubt, axes=axes)
        else:
            # What it reads stays already, and it still differs: all of its layer stays.
            layer = layer_of(doubt.node)
            inside = [n for n in self.trace.calls if is_within(n, layer)]
            fresh = [node for node in inside if node not in self.doubts] or self.trace.calls
            for node in fresh:
                self.doubts[node] = Doubt(node, doubt.reason)
