"""What a finished path is told as: its knee, path.csv, path.png and a table."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...files import read_json_lines, write_csv, write_json, write_png
from ...shrinking.report import readable_count
from ..data import caveat
from .sweep import DENSE, Sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito's colours, which colour-blind readers tell apart.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#666666"


def knee(sizes: Sequence[float], accuracies: Sequence[float]) -> int | None:
    """Where accuracy begins to fall: the point of the curve farthest above its chord.

    The curve is accuracy over log(size), both scaled to [0, 1]; the chord joins its ends, the
    smallest and the largest network:

        argmax_i  (y_i - y_0) - (x_i - x_0) (y_1 - y_0) / (x_1 - x_0).

    All distances to one line are this difference times one factor.

    Args:
        sizes: > 0, in any order.
        accuracies: one for each.

    Returns:
        The index of the point; None if none lies above the chord, as with less than three sizes.

    Source: Satopää et al., Finding a "kneedle" in a haystack (2011), without its smoothing.

    Example:
        >>> knee([1, 10, 100, 1000], [0.1, 0.9, 0.95, 1.0])
        1
    """
    if len(set(sizes)) < 3:
        return None
    x, y = [math.log(size) for size in sizes], list(accuracies)
    # Among networks of one size the best is the end of the chord.
    first = min(range(len(x)), key=lambda i: (x[i], -y[i]))
    last = max(range(len(x)), key=lambda i: (x[i], y[i]))
    width, height = x[last] - x[first], max(y) - min(y)
    if height == 0:
        return None

    def above(i: int) -> float:
        along = (x[i] - x[first]) / width
        return (y[i] - y[first] - along * (y[last] - y[first])) / height

    best = max(range(len(x)), key=above)
    # Points on the chord lie above it by rounding.
    return best if above(best) > 1e-9 else None


def accuracy_of(rows: list[dict[str, Any]]) -> str:
    """The column of the curve that counts: after the refit, where there is one."""
    return "refit_val_accuracy" if "refit_val_accuracy" in rows[0] else "val_accuracy"


def write_curve(sweep: Sweep, rows: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Write path.csv, path.png and, last, summary.json, which says that the path is finished."""
    write_csv(folder / "path.csv", rows)
    dense = read_json_lines(folder / DENSE / "metrics.jsonl")
    found = knee([row["params_share"] for row in rows], [row[accuracy_of(rows)] for row in rows])
    summary = {
        "recipe": sweep.run.recipe,
        "seed": sweep.run.seed,
        "strength_max": sweep.strength_max,
        "points": len(rows),
        "knee": None if found is None else rows[found]["point"],
        "dense_val_accuracy": dense[-1]["val_accuracy"] if dense else None,
        "caveat": caveat(sweep.run.data, sweep.run.data_dir),
    }
    write_png(folder / "path.png", plot_path(sweep, rows, summary))
    write_json(folder / "summary.json", summary)
    return summary


def columns(rows: list[dict[str, Any]], summary: dict[str, Any]) -> list[list[str]]:
    """The table for the terminal, its head first; only columns that hold something."""

    def percent(value: float | None) -> str:
        return "" if value is None else f"{value:.1%}"

    head = "point,of max,strength,sparsity,low rank,params,share,MACs,accuracy,refit"
    table: list[list[str]] = [list(head.split(","))]
    for row in rows:
        table.append(
            [
                f"{row['point']} knee" if row["point"] == summary["knee"] else row["point"],
                f"{row['fraction']:.3g}",
                f"{row['strength']:.2e}",
                percent(row["weighted_group_sparsity"]),
                percent(row["low_rank_level"]),
                readable_count(row["params"]),
                percent(row["params_share"]),
                percent(row["macs_share"]),
                percent(row["val_accuracy"]),
                percent(row.get("refit_val_accuracy")),
            ]
        )
    filled = [i for i, column in enumerate(zip(*table[1:], strict=True)) if any(column)]
    return [[line[i] for i in filled] for line in table]


def plot_path(sweep: Sweep, rows: list[dict[str, Any]], summary: dict[str, Any]) -> "Figure":
    """Accuracy against the share of parameters, on a log axis, with the knee."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    rows = sorted(rows, key=lambda row: row["params_share"])
    sizes = [100 * row["params_share"] for row in rows]
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    curves = [("val_accuracy", _BLUE, "at the structured point")]
    if sweep.refit:
        label = f"after a refit of {sweep.refit} epochs"
        curves.append(("refit_val_accuracy", _ORANGE, label))
    for name, color, label in curves:
        values = [100 * row[name] for row in rows]
        axes.plot(sizes, values, color=color, marker="o", linewidth=2, label=label)
    if summary["dense_val_accuracy"] is not None:
        level = 100 * summary["dense_val_accuracy"]
        axes.axhline(level, color=_GREY, linestyle="--", label="dense")
    main = accuracy_of(rows)
    for size, row in zip(sizes, rows, strict=True):
        if row["point"] == summary["knee"]:
            axes.plot(
                size,
                100 * row[main],
                marker="o",
                markersize=15,
                fillstyle="none",
                color=_GREEN,
                markeredgewidth=2,
                linestyle="none",
                label=f"knee: {row['params_share']:.1%} of the parameters, {row[main]:.1%}",
            )
            chord = [100 * row[main] for row in (rows[0], rows[-1])]
            axes.plot([sizes[0], sizes[-1]], chord, color=_GREEN, linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("parameters of the slim network (% of dense)")
    axes.set_ylabel("validation accuracy (%)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    title = f"{sweep.run.recipe}, seed {sweep.run.seed}: {len(rows)} strengths, weak to strong"
    figure.suptitle("\n".join(filter(None, (title, summary["caveat"]))), fontsize=11)
    return figure
