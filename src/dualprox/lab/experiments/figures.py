"""Plots of a comparison: figures over epochs, and how still the structure stands at the end."""

import statistics
from typing import TYPE_CHECKING

from .results import Line
from .tables import Column, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's colours, which colour-blind readers tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")
# The part of the epochs that the second plot shows.
_LAST = 0.1


def _draw(axes: "Axes", lines: list[Line], column: Column, first: float) -> None:
    """Means over seeds against epochs, with bands from least to most, from a share of them on."""
    from matplotlib.ticker import MaxNLocator

    for number, line in enumerate(lines):
        curves = [
            [(row["epoch"], column.scale * row[column.metric]) for row in result.metrics]
            for result in line.results
            if result.metrics[-1].get(column.metric) is not None
        ]
        if not curves:
            continue
        begin = int(first * len(curves[0]))
        epochs = [epoch for epoch, _ in curves[0][begin:]]
        at_epoch = list(zip(*([y for _, y in curve[begin:]] for curve in curves), strict=True))
        color = COLORS[number % len(COLORS)]
        style = "-" if number < len(COLORS) else "--"
        means = [statistics.fmean(values) for values in at_epoch]
        # Few epochs are points that a line would hide.
        marker = "o" if len(epochs) < 20 else None
        axes.plot(epochs, means, style, color=color, label=line.label, marker=marker, markersize=3)
        if len(curves) > 1:
            lows, highs = ([end(values) for values in at_epoch] for end in (min, max))
            axes.fill_between(epochs, lows, highs, color=color, alpha=0.15, linewidth=0)
    axes.set_ylabel(column.heading)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)


def plot_epochs(table: Table, block: str, lines: list[Line]) -> "Figure | None":
    """Quality and structure of the methods over epochs; None for a table that tells of neither."""
    from matplotlib.figure import Figure

    columns = [column for column in (table.quality, table.structure) if column is not None]
    if not columns:
        return None
    figure = Figure(figsize=(8, 3.2 * len(columns)), layout="constrained")
    panels = figure.subplots(len(columns), 1, sharex=True, squeeze=False)[:, 0]
    for axes, column in zip(panels, columns, strict=True):
        _draw(axes, lines, column, 0.0)
    panels[0].legend(frameon=False, fontsize=8, ncols=2)
    panels[-1].set_xlabel("epoch")
    figure.suptitle(_title(block, lines, "at the structured point"), fontsize=11)
    return figure


def plot_last(table: Table, block: str, lines: list[Line]) -> "Figure | None":
    """The structure at the last epochs: methods that identify stand still; None without one."""
    from matplotlib.figure import Figure

    structure = table.structure
    if structure is None or all(line.value(structure) is None for line in lines):
        return None
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    _draw(axes, lines, structure, 1 - _LAST)
    axes.legend(frameon=False, fontsize=8, ncols=2)
    axes.set_xlabel("epoch")
    figure.suptitle(_title(block, lines, f"last {_LAST:.0%} of the epochs"), fontsize=11)
    return figure


def _title(block: str, lines: list[Line], what: str) -> str:
    caveats = sorted({result.caveat for line in lines for result in line.results} - {""})
    return "\n".join([f"{block}: {what}", *caveats])
