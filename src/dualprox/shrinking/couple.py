"""Which slices of which weights read the same channel: groups that can always be removed.

A channel goes only if everything that reads it is zero. A group for each input of each layer
leaves channels half dead that several layers read; one group for all readers of a channel dies
as a whole, and then the channel goes.
"""

import copy
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from ..geometry import Slices
from .analysis import Analysis, Product
from .compact import Compaction
from .inputs import Inputs
from .plan import widen
from .trace import Trace, described, operator
from .units import RIGID, Grid, Ids

_MOST_TRIALS = 4


@dataclass(frozen=True)
class Reader:
    """A weight with the slices of it that read channels.

    Args:
        name: of the parameter.
        slices: how it is cut.
        groups: for each slice the number of its group, -1 if it has none.
    """

    name: str
    slices: Slices
    groups: tuple[int, ...]


@dataclass(frozen=True)
class CoupledSet:
    """Weights that share groups, directly or through others.

    Args:
        readers: the weights.
        count: how many groups they have; each numbers them from 0.
    """

    readers: tuple[Reader, ...]
    count: int


@dataclass(frozen=True)
class Couplings:
    """All groups of a network that can be removed whenever they are zero.

    Args:
        sets: weights by weights that share groups.
        stays: name of a parameter that reads channels -> why its other channels have to stay.
    """

    sets: tuple[CoupledSet, ...]
    stays: dict[str, str]


def couplings(
    model: nn.Module, inputs: Inputs, free: Iterable[str] = (), narrow_norms: bool = False
) -> Couplings:
    """Find, for every channel of a network that can be removed, all weights that read it.

    Half of the groups found are then made zero in a copy, and must vanish from it; those that do
    not are given up.

    Args:
        model: the network; untouched, and its weights do not matter.
        inputs: of one run.
        free: names of parameters that may not belong to a group; channels that they read stay.
        narrow_norms: as in `shrink`.

    Raises:
        ShrinkError: torch.export cannot trace the model.
    """
    dense = widen(copy.deepcopy(model)).eval()
    fill(dense)
    trace = Trace(dense, inputs)
    given_up: dict[tuple[str, int], str] = {}
    stays: dict[str, str] = {}
    for _ in range(_MOST_TRIALS):
        fill(dense)
        analysis = Analysis(trace, {}, fold=False, narrow_norms=narrow_norms)
        found = Channels(analysis, set(free), given_up).couplings()
        stays = found.stays
        refused = {
            place: reason
            for parity in (0, 1)
            for place, reason in _refused(dense, trace, inputs, found, parity, narrow_norms).items()
        }
        if not refused:
            return found
        given_up.update(refused)
    return Couplings((), dict.fromkeys(stays, "no channel could be proven removable"))


def fill(model: nn.Module) -> None:
    """Make all weights nonzero: which reads which is asked, not how much."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for param in model.parameters():
            if param.is_floating_point():
                param.copy_(torch.rand(param.shape, generator=generator) + 0.5)


class Channels:
    """The channels of an analyzed network and their readers.

    Args:
        analysis: of a network whose weights are nowhere zero.
        free: names of parameters that may not belong to a group; channels that they read stay.
        given_up: (parameter, slice) -> why the channel that it reads stays all the same.

    Attributes:
        reads: each product with the name of its weight and how that is cut.
    """

    def __init__(
        self, analysis: Analysis, free: set[str], given_up: dict[tuple[str, int], str]
    ) -> None:
        self.analysis, self.units = analysis, analysis.units
        self.reads = [(p, *_slices(analysis, p)) for p in analysis.products]
        for parts in analysis.equal_parts:  # the code cuts them alike, so they go place by place
            for part in parts[1:]:
                if len(part) == len(parts[0]):
                    self.units.same(parts[0], part)
        self._choose_axes()
        for product, name, slices in self.reads:
            if not name or slices is None:
                reason = f"{described(product.node)} reads it with a weight that is computed"
                self.units.pin(product.inputs, reason)
            elif name in free:
                self.units.pin(product.inputs, f"{name}, which is left free, reads it")
            for (other, place), reason in given_up.items():
                if other == name:
                    self.units.pin(product.inputs.reshape(-1)[[place]], reason)
        self._choose_roles()

    def _choose_axes(self) -> None:
        """Where an axis is cut into a grid, decide whose slices are channels: the outermost."""
        left = [rule for rule in self.units.rules if isinstance(rule, Grid)]
        while left:
            pinned = np.zeros(self.units.count, dtype=bool)
            pinned[list(self.units.pinned())] = True
            roots = self.units.roots()
            free = [[i for i, a in enumerate(r.axes) if not pinned[roots[a]].all()] for r in left]
            number = next((n for n, axes in enumerate(free) if len(axes) < 2), 0)
            rule, axes = left.pop(number), free[number]
            if not axes:
                self.units.pin(rule.flat, rule.reason)
                continue
            for axis, units in enumerate(rule.axes):
                if axis != axes[0]:
                    self.units.pin(units, rule.reason)
            shape = [-1 if i == axes[0] else 1 for i in range(rule.flat.ndim)]
            chosen = np.broadcast_to(rule.axes[axes[0]].reshape(shape), rule.flat.shape)
            self.units.same(rule.flat, chosen)

    def _choose_roles(self) -> None:
        """A weight that reads along one axis here and another there has groups along the first."""
        roles: dict[str, Slices] = {}
        for product, name, slices in self.reads:
            if slices is not None and roles.setdefault(name, slices) != slices:
                self.units.pin(product.inputs, f"{name} is read along another axis elsewhere")

    def couplings(self) -> Couplings:
        """The groups, in sets that share weights."""
        roots, pinned = self.units.roots(), self.units.pinned()
        weights: dict[str, tuple[Slices, Ids]] = {}
        stays: dict[str, str] = {}
        for product, name, slices in self.reads:
            if slices is None:
                continue
            channels = roots[product.inputs.reshape(-1)]
            reasons = [pinned[int(c)] for c in channels if int(c) in pinned]
            if reasons:
                stays.setdefault(name, reasons[0])
            known = weights.get(name)
            fixed = np.array([int(c) in pinned for c in channels])
            channels = np.where(fixed, RIGID, channels)
            if known is not None:  # applied twice: both see the same channels or neither goes
                channels = np.where(known[1] == channels, channels, RIGID)
            weights[name] = (slices, channels)
        return Couplings(tuple(_sets(weights)), stays)


def _sets(weights: dict[str, tuple[Slices, Ids]]) -> Iterable[CoupledSet]:
    """Weights that share channels, and the numbers of these channels."""
    left = {name: set(ids.tolist()) - {RIGID} for name, (_, ids) in weights.items()}
    left = {name: channels for name, channels in left.items() if channels}
    while left:
        name, channels = next(iter(left.items()))
        names = [name]
        del left[name]
        grown = True
        while grown:
            grown = False
            for other, theirs in list(left.items()):
                if theirs & channels:
                    channels |= theirs
                    names.append(other)
                    del left[other]
                    grown = True
        numbers = {channel: number for number, channel in enumerate(sorted(channels))}
        names = [name for name in weights if name in names]
        yield CoupledSet(
            tuple(
                Reader(
                    name,
                    weights[name][0],
                    tuple(numbers.get(int(channel), -1) for channel in weights[name][1]),
                )
                for name in names
            ),
            len(numbers),
        )


def with_own_groups(coupled: CoupledSet, names: Collection[str]) -> CoupledSet:
    """The set in which each slice of the named weights that had no group is one by itself."""
    if not any(reader.name in names and -1 in reader.groups for reader in coupled.readers):
        return coupled
    numbers: dict[tuple[str, int], int] = {}  # by first appearance
    readers = []
    for reader in coupled.readers:
        groups = []
        for place, group in enumerate(reader.groups):
            if group < 0 and reader.name not in names:
                groups.append(-1)
            else:
                key = (reader.name, place) if group < 0 else ("", group)
                groups.append(numbers.setdefault(key, len(numbers)))
        readers.append(replace(reader, groups=tuple(groups)))
    return CoupledSet(tuple(readers), len(numbers))


def _slices(analysis: Analysis, product: Product) -> tuple[str, Slices | None]:
    """The parameter whose slices read the product's inputs, and how it is cut."""
    weight, parts = product.weight, len(product.inputs)
    roots = analysis.units.roots()
    for name, tensor in analysis.tensors.items():
        if tensor.data is None or weight.data is None or tensor.data.numel() == 0:
            continue
        same = tensor is weight or (
            tensor.data.untyped_storage().data_ptr() == weight.data.untyped_storage().data_ptr()
        )
        if not same:
            continue
        if parts > 1:
            transposed = "transpose" in operator(product.node)
            return name, Slices(0) if transposed else Slices(1, conv_groups=parts)
        for axis in reversed(range(len(tensor.ids))):
            ids = tensor.ids[axis]
            inputs = product.inputs.reshape(-1)
            if len(ids) == len(inputs) and (roots[ids] == roots[inputs]).all():
                if len(ids) > 1 or axis == 1:
                    return name, Slices(axis)
    return "", None


def _refused(
    dense: nn.Module,
    trace: Trace,
    inputs: Inputs,
    found: Couplings,
    parity: int,
    narrow_norms: bool,
) -> dict[tuple[str, int], str]:
    """(weight, slice) -> why it stays although its group is zero; tried on every other group."""
    fill(dense)
    params = dict(dense.named_parameters())
    readers = {reader.name: reader for coupled in found.sets for reader in coupled.readers}
    with torch.no_grad():
        for reader in readers.values():
            view = reader.slices.view(params[reader.name])
            inner = reader.slices.inner(view)
            gone = [g >= 0 and g % 2 == parity for g in reader.groups]
            dead = torch.tensor(gone, device=view.device)
            shape = [1 if i in inner else n for i, n in enumerate(view.shape)]
            view.masked_fill_(dead.reshape(shape), 0.0)
    compact = Compaction(dense, inputs, fold=False, narrow_norms=narrow_norms, trace=trace)
    refused = {}
    for product in compact.analysis.products:
        name, _ = _slices(compact.analysis, product)
        if name not in readers:
            continue
        units = product.inputs.reshape(-1)
        for place, group in enumerate(readers[name].groups):
            if group >= 0 and group % 2 == parity and not compact.removal.removed[units[place]]:
                refused[name, place] = compact.removal.reason(units[place])
    lone = {
        (reader.name, place)
        for coupled in found.sets
        if coupled.count == 1
        for reader in coupled.readers
        for place, group in enumerate(reader.groups)
        if group == 0
    }
    # The only channel of a layer stays when it is dead, which is no reason to spare it.
    return {place: reason for place, reason in refused.items() if place not in lone}
