"""How large a network would be without its dead channels, counted without cutting it."""

import copy
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import nn

from ..checks import is_count, require
from ..kinds import check_kinds
from .analysis import Analysis, Product
from .couple import Channels, fill
from .inputs import ExampleInput, Inputs
from .measure import count_macs
from .plan import widen
from .trace import Trace, operator, shapes_of
from .units import RIGID, Ids, Mask

Live = Mapping[str, Mask]


@dataclass(frozen=True)
class Size:
    """What a network costs whatever it runs on.

    Args:
        parameters: entries.
        macs: multiplications with additions for one example.
    """

    parameters: int
    macs: int


@dataclass(frozen=True, eq=False)
class _Layer:
    """A product, as the footprint counts it: each entry of the weight is used `uses` times."""

    name: str
    inputs: Ids
    outputs: Ids
    uses: float


class Footprint:
    """The size that a network has left when slices of its weights are dead, in microseconds.

    A channel goes when every slice that reads it is dead and nothing else makes it stay, but one of
    each layer stays; a weight keeps the entries between kept channels. What `shrink` finds beyond
    that (channels that become constant) is not foreseen, so that its network is never larger.
    Multiplications that no weight takes part in, attention's scores, count as in the whole network.

    Args:
        model: the network; untouched, and its weights do not matter.
        example_input: as in `shrink`.
        selected: weights of Linear layers whose inputs stay, but which select those that they read.
        round_to: as in `shrink`.
        narrow_norms: as in `shrink`.

    Raises:
        ValueError: `round_to` is no int >= 1.
        ShrinkError: torch.export cannot trace the model.
    """

    def __init__(
        self,
        model: nn.Module,
        example_input: ExampleInput,
        selected: Collection[str] = (),
        round_to: int = 1,
        narrow_norms: bool = False,
    ) -> None:
        check_kinds(Footprint.__init__, locals())
        require(is_count(round_to), "round_to", "an int >= 1", round_to)
        self._round_to = round_to
        inputs = Inputs.of(example_input)
        dense = widen(copy.deepcopy(model)).eval()
        fill(dense)
        analysis = Analysis(Trace(dense, inputs), {}, fold=False, narrow_norms=narrow_norms)
        channels = Channels(analysis, set(), {})
        units = channels.units
        roots = units.roots()
        self._stays = np.zeros(units.count, dtype=bool)
        self._stays[[RIGID, *units.pinned()]] = True
        self._readers: dict[str, list[Ids]] = {}
        self._layers = []
        for product, name, slices in channels.reads:
            if slices is not None:
                self._readers.setdefault(name, []).append(roots[product.inputs.reshape(-1)])
            self._layers.append(
                _Layer(name, roots[product.inputs], roots[product.outputs], _uses(product, inputs))
            )
        self._selected = frozenset(selected)
        self._axes: dict[str, list[Ids]] = {}
        self.shapes = {name: tuple(param.shape) for name, param in model.named_parameters()}
        names = {id(param): name for name, param in model.named_parameters()}
        self._rest = sum(param.numel() for param in model.parameters())
        for tensor_name, value in channels.analysis.tensors.items():
            owner = names.get(id(_parameter(model, tensor_name)))
            if owner is not None and owner not in self._axes:  # tied parameters count once
                self._axes[owner] = [roots[ids] for ids in value.ids]
                self._rest -= math.prod(self.shapes[owner])
        self._other_macs = 0.0
        counted = count_macs(model, example_input)
        self._other_macs = max(0.0, counted - self._macs(self._kept({}), {}))

    @cached_property
    def dense(self) -> Size:
        """The size of the whole network."""
        return self.of({})

    def of(self, live: Live, ranks: Mapping[str, int] | None = None) -> Size:
        """The size with some slices dead and some weights of low rank.

        Args:
            live: name of a weight -> bool for each of its slices, in the order of its penalty's
                `Slices`; weights that are not named are live throughout.
            ranks: name of a weight -> its rank; zero counts as one, as in `factorize`.
        """
        kept = self._kept(live)
        return Size(
            self._rest + sum(self.entries(live, ranks, kept).values()),
            round(self._other_macs + self._macs(kept, live, ranks or {})),
        )

    def entries(
        self, live: Live, ranks: Mapping[str, int] | None = None, kept: Mask | None = None
    ) -> dict[str, int]:
        """How many entries each parameter has left; arguments as in `of`."""
        kept = self._kept(live) if kept is None else kept
        left = {}
        for name, axes in self._axes.items():
            lengths = [int(kept[ids].sum()) for ids in axes]
            if name in self._selected and name in live:
                lengths[1] = self._read(live[name], lengths[1])
            left[name] = math.prod(lengths)
            if ranks and name in ranks:
                rows, columns = lengths[0], math.prod(lengths[1:])
                left[name] = min(left[name], max(1, ranks[name]) * (rows + columns))
        return left

    def _kept(self, live: Live) -> Mask:
        kept = self._stays.copy()
        for name, reads in self._readers.items():
            for units in reads:
                kept[units[live[name]] if name in live else units] = True
        while True:  # what fills one axis up may make another longer
            stay = [
                gone[: self._width(len(ids) - len(gone), len(ids)) - len(ids) + len(gone)]
                for axes in self._axes.values()
                for ids in axes
                if len(gone := ids[~kept[ids]])
            ]
            if not any(map(len, stay)):
                return kept
            kept[np.concatenate(stay)] = True

    def _width(self, left: int, whole: int) -> int:
        """What `shrink` makes of a width of which so much is left: one at least, rounded up."""
        return min(whole, max(1, -(-left // self._round_to) * self._round_to))

    def _read(self, live: Mask, inputs: int) -> int:
        """How many of its inputs a layer selects."""
        return self._width(int(live.sum()), inputs)

    def _macs(self, kept: Mask, live: Live, ranks: Mapping[str, int] | None = None) -> float:
        total = 0.0
        for layer in self._layers:
            rows, columns = kept[layer.outputs].sum(1), kept[layer.inputs].sum(1)
            if layer.name in self._selected and layer.name in live:
                columns = np.array([self._read(live[layer.name], int(columns.max()))])
            entries = float((rows * columns).sum())
            if ranks and layer.name in ranks:
                rank = max(1, ranks[layer.name])
                entries = min(entries, rank * float(rows.sum() + columns.sum()))
            total += layer.uses * entries
        return total


def _parameter(model: nn.Module, name: str) -> nn.Parameter | None:
    try:
        return model.get_parameter(name)
    except AttributeError:  # a buffer
        return None


def _uses(product: Product, inputs: Inputs) -> float:
    """How often one example uses each (output, input) pair of a weight, kernel entries counted."""
    parts, outputs, _, entries = product.matrix.shape
    operation = operator(product.node)
    written = shapes_of(product.node)[0] or ()
    if any(kind in operation for kind in ("lstm", "gru", "rnn")):
        places = math.prod(written[:-1])  # time steps
    elif "transpose" in operation:
        read = shapes_of(product.node.all_input_nodes[0])[0] or ()
        places = math.prod(read) / product.inputs.size
    else:
        places = math.prod(written) / (parts * outputs)
    return places * entries / inputs.batch_size
