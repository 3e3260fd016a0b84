"""What became of a network: per layer, and in total."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ..files import write_json, write_png
from ..kinds import check_kinds
from .measure import Cost, Latency

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito's colours, which colour-blind readers tell apart.
_BLUE, _GREY = "#0072B2", "#999999"


@dataclass(frozen=True)
class LayerChange:
    """What became of one layer.

    Args:
        name: in the model; of a layer with several names, the first.
        before: what it was, as "Linear 784->512".
        after: what it is now; the same as `before` if it stayed.
        parameters_before: its entries.
        parameters_after: its entries now.
        dead: how much of its structure is zero: channels, singular values or entries.
        removed: how much of that is gone.
        stayed: why the rest is not; empty if nothing dead is left.
    """

    name: str
    before: str
    after: str
    parameters_before: int
    parameters_after: int
    dead: int = 0
    removed: int = 0
    stayed: str = ""


def readable_count(count: float) -> str:
    """A number in three digits, as in "25.6 M".

    Example:
        >>> readable_count(25_557_032), readable_count(999), readable_count(0)
        ('25.6 M', '999', '0')
    """
    for unit, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 0.9995 * factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.3g}"


def readable_seconds(seconds: float) -> str:
    """A time in three digits, as in "31.2 ms".

    Example:
        >>> readable_seconds(0.03123), readable_seconds(4.2e-6)
        ('31.2 ms', '4.2 µs')
    """
    for unit, factor in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= 0.9995 * factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def _readable_latency(latency: Latency) -> str:
    if latency.timing is None:
        return f"does not run ({latency.failure})"
    spread = (latency.timing.q3 - latency.timing.q1) / 2
    return f"{readable_seconds(latency.timing.median)} ± {readable_seconds(spread)}"


@dataclass(frozen=True)
class ShrinkReport:
    """What was made of a network and what that saves; printed, a table.

    Args:
        layers: one entry per layer looked at.
        before: the cost of the given model.
        after: the cost of the new one.
        max_abs_diff: the largest difference of their outputs, over all inputs tried; None if
            there were none.
        plan: how the new architecture is made from the given one, in plain JSON values.
    """

    layers: tuple[LayerChange, ...]
    before: Cost
    after: Cost
    max_abs_diff: float | None = None
    plan: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; times in seconds."""
        return asdict(self)

    def to_json(self, path: str | Path) -> None:
        """Write `to_dict()` into a file that is either whole or not there."""
        write_json(Path(path), self.to_dict())

    def totals(self) -> list[str]:
        """One line per kind of cost."""
        lines = []
        for label, unit in (("parameters", ""), ("MACs", ""), ("file size", "B")):
            if label in self._pairs():
                old, new = self._pairs()[label]
                share = f" ({new / old:.1%})" if old else ""
                numbers = f"{readable_count(old)}{unit} -> {readable_count(new)}{unit}"
                lines.append(f"{label} {numbers}{share}")
        for old, new in zip(self.before.latencies, self.after.latencies, strict=True):
            line = f"latency, batch {old.batch_size}: "
            line += f"{_readable_latency(old)} -> {_readable_latency(new)}"
            if old.timing is not None and new.timing is not None:
                line += f" ({old.timing.median / new.timing.median:.2f}x as fast)"
            lines.append(line)
        if self.max_abs_diff is not None:
            lines.append(f"outputs differ by at most {self.max_abs_diff:.3g}")
        return lines

    def __str__(self) -> str:
        table = [("layer", "before", "after", "parameters", "dead", "removed", "stayed because")]
        for layer in self.layers:
            count = f"{layer.parameters_before:,}"
            if layer.parameters_after != layer.parameters_before:
                count += f" -> {layer.parameters_after:,}"
            after = "" if layer.after == layer.before else layer.after
            dead, removed = (str(number or "") for number in (layer.dead, layer.removed))
            name = layer.name or "(model)"
            table.append((name, layer.before, after, count, dead, removed, layer.stayed))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = []
        for row in table:
            cells = [
                cell.rjust(width) if place in (3, 4, 5) else cell.ljust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines + self.totals())

    def plot(self, path: str | Path) -> None:
        """Draw parameters per layer, before and after, and the share left of each cost, as a PNG.

        Raises:
            ImportError: matplotlib is missing.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError('drawing needs matplotlib: pip install "dualprox[lab]"') from error
        figure: Figure = Figure(figsize=(8, 3.4 + 0.3 * len(self.layers)), layout="constrained")
        layers, totals = figure.subplots(2, 1, height_ratios=[len(self.layers) + 1, 5])
        names = [layer.name or "(model)" for layer in self.layers]
        before = [layer.parameters_before for layer in self.layers]
        self._bars(layers, names, before, [layer.parameters_after for layer in self.layers])
        layers.set_xlabel("parameters")
        shares = {name: 100 * new / old for name, (old, new) in self._pairs().items() if old}
        self._bars(totals, list(shares), [100] * len(shares), list(shares.values()))
        totals.set_xlabel("% of before")
        figure.legend(*layers.get_legend_handles_labels(), loc="outside upper right", ncols=2)
        figure.suptitle("\n".join(self.totals()), fontsize=9)
        write_png(Path(path), figure)

    def _pairs(self) -> dict[str, tuple[float, float]]:
        """Every cost known both before and after, by what it is called."""
        pairs: dict[str, tuple[float, float]] = {
            "parameters": (self.before.parameters, self.after.parameters),
            "file size": (self.before.bytes, self.after.bytes),
        }
        if self.before.macs is not None and self.after.macs is not None:
            pairs["MACs"] = (self.before.macs, self.after.macs)
        for old, new in zip(self.before.latencies, self.after.latencies, strict=True):
            if old.timing is not None and new.timing is not None:
                pairs[f"latency, batch {old.batch_size}"] = (old.timing.median, new.timing.median)
        return pairs

    @staticmethod
    def _bars(
        axes: "Axes", names: list[str], before: Sequence[float], after: Sequence[float]
    ) -> None:
        places = range(len(names))
        up, down = [place - 0.2 for place in places], [place + 0.2 for place in places]
        axes.barh(up, before, height=0.4, color=_GREY, label="before")
        axes.barh(down, after, height=0.4, color=_BLUE, label="after")
        axes.set_yticks(list(places), names)
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)


def attach_report(model: nn.Module, report: ShrinkReport) -> nn.Module:
    """Let the model carry its report as the plain attribute `report`, through copies and pickles.

    Raises:
        ValueError: the model has another attribute of that name.
    """
    present = getattr(model, "report", None)
    if present is not None and not isinstance(present, ShrinkReport):
        raise ValueError(
            "model must have no attribute `report` of its own, got one in "
            f"{type(model).__name__}: shrink a module that holds it"
        )
    # Not a parameter, buffer or module: torch keeps it out of the state dict.
    model.__dict__["report"] = report
    return model


def report_of(model: nn.Module) -> ShrinkReport:
    """The report that a model made by `shrink`, `factorize` or `sparsify` carries.

    Raises:
        ValueError: it carries none.
    """
    check_kinds(report_of, locals())
    report = getattr(model, "report", None)
    if not isinstance(report, ShrinkReport):
        raise ValueError(f"model must be made by shrink, got {type(model).__name__} without report")
    return report
