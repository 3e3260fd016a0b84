"""What can be removed from a network whose channels are written out one by one.

An independent count by reachability: a test describes its network by hand, layer after layer, and
every channel is a `Wire` in a plain Python list. Nothing is traced, no code of the library is
used, and the removal is found by visiting edges until nothing changes.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


class Wire(NamedTuple):
    """One channel of an activation.

    Args:
        unit: wires of one unit stay or go together.
        value: what it is, whatever the network's input; None if that is not known.
    """

    unit: int
    value: float | None


Wires = list[Wire]
Axis = Sequence[int] | int  # units, or a length that stays


class Channels:
    """Channels, who reads them, and the parameters that go with them."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._edges: list[tuple[int, int]] = []  # (reader, read)
        self._pinned: set[int] = set()
        self._grids: list[tuple[np.ndarray, list[int], list[int]]] = []
        self._balanced: list[list[list[int]]] = []
        self._written: list[list[int]] = []
        self._tensors: list[list[Axis]] = []
        self._folds: list[tuple[list[int], list[tuple[int, np.ndarray]]]] = []

    # Units.

    def units(self, count: int) -> list[int]:
        """New units; an axis of length one cannot lose its only index."""
        first = len(self._parent)
        made = list(range(first, first + count))
        self._parent += made
        if count == 1:
            self._pinned.update(made)
        return made

    def _root(self, unit: int) -> int:
        while self._parent[unit] != unit:
            unit = self._parent[unit]
        return unit

    def tie(self, first: Sequence[int], second: Sequence[int]) -> None:
        """These go together, one by one."""
        for a, b in zip(first, second, strict=True):
            low, high = sorted((self._root(a), self._root(b)))
            self._parent[high] = low

    def pin(self, wires: Sequence[Wire] | Sequence[int]) -> None:
        """These stay."""
        self._pinned.update(w.unit if isinstance(w, Wire) else w for w in wires)

    def grid(self, entries: Sequence[int], rows: list[int], columns: list[int]) -> None:
        """An entry goes iff its whole row or its whole column does."""
        shape = len(rows), len(columns)
        self._grids.append((np.array(entries).reshape(shape), rows, columns))

    def balance(self, parts: list[Wires]) -> None:
        """These are halves of one tensor that the code cuts into equal parts."""
        self._balanced.append([[w.unit for w in part] for part in parts])

    def written(self, units: list[int]) -> None:
        """The length of this axis is a number in the code, which is seen when it is tried."""
        self._written.append(units)

    def tensor(self, *axes: Axis) -> None:
        """A parameter."""
        self._tensors.append(list(axes))

    # Layers.

    def input(self, count: int) -> Wires:
        """The network's input."""
        wires = [Wire(unit, None) for unit in self.units(count)]
        self.pin(wires)
        return wires

    def product(
        self,
        x: Wires,
        weight: Tensor,
        bias: Tensor | None,
        *,
        fold: bool = True,
        padded: bool = False,
        owner: bool = True,
    ) -> Wires:
        """Outputs that read inputs with the weights (out, in, entries).

        Args:
            x: the inputs.
            weight: (out, in, entries).
            bias: (out,) or None.
            fold: whether a constant input may go into the bias.
            padded: whether some entries of an output do not see a constant input, so that it
                is none to them.
            owner: whether the layer's parameters are its own, so that fold is possible.
        """
        matrix = weight.detach().double().flatten(2).numpy()
        out = self.units(len(matrix))
        wires = []
        for o, unit in enumerate(out):
            total: float | None = 0.0 if bias is None else bias[o].item()
            for i, wire in enumerate(x):
                if not matrix[o, i].any() or wire.value == 0:
                    continue
                constant = None if padded else wire.value
                if constant is None or not (fold and owner):
                    self._edges.append((unit, wire.unit))
                if constant is None or total is None:
                    total = None
                else:
                    total += float(matrix[o, i].sum()) * constant
            wires.append(Wire(unit, total))
        if bias is None and fold and owner and not padded:
            moved = [(w.unit, matrix[:, i].sum(-1)) for i, w in enumerate(x) if w.value]
            self._folds.append((out, moved))
        return wires

    def linear(self, x: Wires, layer: Any, *, owner: bool = True) -> Wires:
        """A Linear layer along the last axis."""
        weight = layer.weight.unsqueeze(-1)
        out = self.product(x, weight, layer.bias, owner=owner)
        self._affine(x, out, layer)
        return out

    def _affine(self, x: Wires, out: Wires, layer: nn.Linear) -> None:
        self.tensor([w.unit for w in out], [w.unit for w in x])
        if layer.bias is not None:
            self.tensor([w.unit for w in out])

    def conv(self, x: Wires, layer: Any) -> Wires:
        """A convolution, grouped or not, transposed or not."""
        weight, bias, groups = layer.weight, layer.bias, layer.groups
        transposed = "Transpose" in type(layer).__name__
        padded = transposed or any(layer.padding)
        if transposed:
            weight = torch.cat([part.transpose(0, 1) for part in weight.chunk(groups)])
        entries = math.prod(weight.shape[2:])
        length, each = len(x) // groups, len(weight) // groups
        dense = torch.zeros(len(weight), len(x), entries, dtype=torch.float64)
        for g in range(groups):
            rows, columns = slice(g * each, (g + 1) * each), slice(g * length, (g + 1) * length)
            dense[rows, columns] = weight[rows].detach().double().flatten(2)
        out = self.product(x, dense, bias, padded=padded)
        into, onto = [w.unit for w in x], [w.unit for w in out]
        if groups == 1:
            self.tensor(into, onto, entries)
        else:
            parts, places, others = self.units(groups), self.units(length), self.units(each)
            self._together(into, parts, places)
            self._together(onto, parts, others)
            self.tensor(into, others, entries) if transposed else self.tensor(onto, places, entries)
        if bias is not None:
            self.tensor(onto)
        return out

    def _together(self, flat: list[int], groups: list[int], places: list[int]) -> None:
        if len(places) == 1:
            self.tie(flat, groups)
        else:
            self.grid(flat, groups, places)

    def batch_norm(self, x: Wires, layer: Any) -> Wires:
        """Each channel by itself, as in evaluation."""
        mean, var = layer.running_mean.double(), layer.running_var.double()
        slope = layer.weight.detach().double() * (var + layer.eps).rsqrt()
        shift = layer.bias.detach().double()
        out = []
        for i, wire in enumerate(x):
            value = None
            if slope[i] == 0:
                value = shift[i].item()
            elif wire.value is not None:
                value = float((wire.value - mean[i]) * slope[i] + shift[i])
            out.append(Wire(wire.unit, value))
        self.tensor([w.unit for w in x])
        self.tensor([w.unit for w in x])
        return out

    def norm_over_all(self, x: Wires, weight: Tensor, bias: Tensor | None) -> Wires:
        """LayerNorm or RMSNorm: every channel is read."""
        self.pin(x)
        shift = torch.zeros_like(weight) if bias is None else bias
        for tensor in (weight, bias):
            if tensor is not None:
                self.tensor([w.unit for w in x])
        return [Wire(w.unit, shift[i].item() if weight[i] == 0 else None) for i, w in enumerate(x)]

    def group_norm(self, x: Wires, layer: nn.GroupNorm) -> Wires:
        """The channels of a group go together."""
        each = len(x) // layer.num_groups
        for start in range(0, len(x), each):
            self.tie([x[start].unit] * each, [w.unit for w in x[start : start + each]])
        for _ in (layer.weight, layer.bias):
            self.tensor([w.unit for w in x])
        return [
            Wire(w.unit, layer.bias[i].item() if layer.weight[i] == 0 else None)
            for i, w in enumerate(x)
        ]

    def instance_norm(self, x: Wires, layer: Any) -> Wires:
        """Each channel of each example by itself."""
        out = []
        for i, wire in enumerate(x):
            constant = layer.weight[i] == 0 or wire.value == 0
            out.append(Wire(wire.unit, layer.bias[i].item() if constant else None))
        for _ in range(2):
            self.tensor([w.unit for w in x])
        return out

    @staticmethod
    def each(x: Wires, function: Callable[[Tensor], Tensor]) -> Wires:
        """A function of each entry."""
        return [
            Wire(
                unit,
                None
                if value is None
                else float(function(torch.tensor(value, dtype=torch.float64))),
            )
            for unit, value in x
        ]

    def add(self, x: Wires, y: Wires) -> Wires:
        """A sum, channel by channel."""
        self.tie([w.unit for w in x], [w.unit for w in y])
        return [
            Wire(a.unit, None if a.value is None or b.value is None else a.value + b.value)
            for a, b in zip(x, y, strict=True)
        ]

    def mul(self, x: Wires, y: Wires) -> Wires:
        """A product, channel by channel: with zero it is zero."""
        self.tie([w.unit for w in x], [w.unit for w in y])
        out = []
        for a, b in zip(x, y, strict=True):
            value = 0.0 if 0 in (a.value, b.value) else None
            if a.value is not None and b.value is not None:
                value = a.value * b.value
            out.append(Wire(a.unit, value))
        return out

    @staticmethod
    def only_zeros(x: Wires) -> Wires:
        """After something that leaves zeros what they are, and nothing else."""
        return [Wire(w.unit, 0.0 if w.value == 0 else None) for w in x]

    @staticmethod
    def flatten(x: Wires, entries: int) -> Wires:
        """Channels with all their entries in a row."""
        return [wire for wire in x for _ in range(entries)]

    def recurrent(self, x: Wires, layer: nn.RNNBase) -> Wires:
        """LSTM or GRU: hidden units go only where there is one layer in one direction."""
        size, directions = layer.hidden_size, 2 if layer.bidirectional else 1
        plain = layer.num_layers * directions == 1
        for depth in range(layer.num_layers):
            out = []
            for direction in range(directions):
                units = self.units(size)
                if not plain:
                    self.pin(units)
                end = f"_l{depth}" + "_reverse" * direction
                into, again = getattr(layer, f"weight_ih{end}"), getattr(layer, f"weight_hh{end}")
                gates = into.shape[0] // size
                for row in range(len(into)):
                    for i, wire in enumerate(x):
                        if into[row, i] != 0 and wire.value != 0:
                            self._edges.append((units[row % size], wire.unit))
                    for j in range(size):
                        if again[row, j] != 0:
                            self._edges.append((units[row % size], units[j]))
                self.tensor(units * gates, [w.unit for w in x])
                self.tensor(units * gates, units)
                self.tensor(units * gates)
                self.tensor(units * gates)
                out += [Wire(unit, None) for unit in units]
            x = out
        return x

    def heads(self, heads: int, size: int) -> list[int]:
        """The units of (heads x size) entries of which only whole heads go."""
        made = self.units(heads)
        return [made[i // size] for i in range(heads * size)]

    # The count.

    def _removed(self, pinned: set[int]) -> set[int]:
        kept = {self._root(unit) for unit in pinned}
        edges = {(self._root(a), self._root(b)) for a, b in self._edges}
        root = np.array([self._root(unit) for unit in range(len(self._parent))])
        grids = [
            (root[entries], root[rows], root[columns]) for entries, rows, columns in self._grids
        ]
        before = -1
        while len(kept) != before:
            before = len(kept)
            kept |= {b for a, b in edges if a in kept}
            for entries, rows, columns in grids:
                for r, row in enumerate(rows):
                    for c, column in enumerate(columns):
                        if entries[r, c] in kept:
                            kept |= {row, column}
                        elif row in kept and column in kept:
                            kept.add(entries[r, c])
        return set(root.tolist()) - kept

    def left(self) -> int:
        """Entries of parameters that are left after the largest removal."""
        pinned = set(self._pinned)
        while True:
            removed = self._settled(pinned)
            broken = [u for u in self._written if self._lengths(u, removed) < len(u)]
            if not broken:
                return self._entries(removed)
            pinned.update(broken[0])

    def _settled(self, pinned: set[int]) -> set[int]:
        while True:
            removed = self._removed(pinned)
            more = set()
            for axes in self._tensors:
                for axis in axes:
                    if isinstance(axis, int) or self._lengths(axis, removed):
                        continue
                    more.add(axis[0])  # a layer needs one channel to exist
            for parts in self._balanced:
                wanted = max(self._lengths(part, removed) for part in parts)
                for part in parts:
                    gone = [unit for unit in part if self._root(unit) in removed]
                    more.update(gone[: wanted - (len(part) - len(gone))])
            if not more:
                return removed
            pinned = pinned | more

    def _entries(self, removed: set[int]) -> int:
        total = 0
        for axes in self._tensors:
            total += math.prod(
                axis if isinstance(axis, int) else self._lengths(axis, removed) for axis in axes
            )
        for out, moved in self._folds:
            stay = [self._root(unit) not in removed for unit in out]
            shifts = [sums[stay] for unit, sums in moved if self._root(unit) in removed]
            if any(shift.any() for shift in shifts):
                total += sum(stay)  # a new bias
        return total

    def _lengths(self, units: Sequence[int], removed: set[int]) -> int:
        return sum(self._root(unit) not in removed for unit in units)
