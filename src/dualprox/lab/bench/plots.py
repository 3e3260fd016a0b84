"""A result as one picture."""

import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .contenders import BASELINE
from .tables import origin, seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's colours, which colour-blind readers tell apart.
_COLOURS = {
    "RMDA": "#0072B2",
    "RAMDA": "#D55E00",
    "ProxSGD": "#009E73",
    "ProxAdamW": "#CC79A7",
    "MADGRAD": "#E69F00",
    "AdamW": "#666666",
}
_CYCLE: tuple[str, ...] = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#666666")
_MARKERS = ("o", "s", "^", "D", "v", "P")


def plot(result: dict[str, Any]) -> "Figure":
    """The picture of any result."""
    figure = _PLOTS[result["question"]](result)
    wide = int(16 * figure.get_figwidth())
    figure.supxlabel(textwrap.fill(origin(result), wide), fontsize=7, color="#666666")
    return figure


def _panels(
    count: int, *, width: float, height: float, columns: int
) -> "tuple[Figure, list[Axes]]":
    """A figure with `count` panels in rows of `columns`; sizes in inches per panel."""
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for spare in grid[count:]:
        spare.set_visible(False)
    for axes in grid:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, which="major", color="#DDDDDD", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, grid[:count]


def _bars(
    axes: "Axes",
    names: list[str],
    values: list[float],
    colours: list[str],
    labels: list[str],
    ends: list[float],
    start: float = 0.0,
) -> None:
    """Horizontal bars from `start`, from the top down, with labels beyond their `ends`."""
    places = list(range(len(names)))
    axes.barh(places, [value - start for value in values], left=start, color=colours, height=0.7)
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    for place, end, label in zip(places, ends, labels, strict=True):
        axes.annotate(
            label,
            (max(end, start), place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
        )


def _whiskers(axes: "Axes", rows: list[dict[str, Any]], scale: float) -> None:
    """The quartiles of each row's time, in units of `scale` seconds."""
    for place, row in enumerate(rows):
        axes.plot([row["q1"] / scale, row["q3"] / scale], [place] * 2, color="black", linewidth=1)


def _step(result: dict[str, Any]) -> "Figure":
    names = dict.fromkeys(row["workload"] for row in result["rows"] if row["median"])
    figure, grid = _panels(max(len(names), 1), width=5.6, height=3.6, columns=2)
    for axes, name in zip(grid, names, strict=False):
        rows = [row for row in result["rows"] if row["workload"] == name and row["median"]]
        ratios = [row["ratio"] for row in rows]
        labels = [f"{_short(row['ratio'])}× ({seconds(row['median'])})" for row in rows]
        colours = [_COLOURS[row["method"]] for row in rows]
        axes.set_xscale("log")
        ends = [max(row["q3"], row["median"]) / rows[0]["median"] for row in rows]
        _bars(axes, [row["contender"] for row in rows], ratios, colours, labels, ends, start=1.0)
        _whiskers(axes, rows, rows[0]["median"])
        axes.set_xlim(min(ratios) / 2, max(ratios) * 12)
        axes.axvline(1.0, color="#444444", linewidth=1, linestyle="--")
        axes.set_title(f"{rows[0]['title']}, {rows[0]['parameters']:,} parameters", fontsize=10)
        axes.set_xlabel(f"time of a step / {BASELINE}", fontsize=8)
    figure.suptitle("One optimizer step, medians, beside torch's fused AdamW", fontsize=12)
    return figure


def _short(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"


def _subproblem(result: dict[str, Any]) -> "Figure":
    names = list(dict.fromkeys(row["workload"] for row in result["rows"]))
    figure, grid = _panels(len(names), width=4.2, height=3.8, columns=3)
    for axes, name in zip(grid, names, strict=True):
        rows = [row for row in result["rows"] if row["workload"] == name]
        for index, solver in enumerate(dict.fromkeys(row["solver"] for row in rows)):
            line = sorted(
                {(row["median"], row["certificate"]) for row in rows if row["solver"] == solver}
            )
            axes.plot(
                [1e3 * point[0] for point in line],
                [point[1] for point in line],
                color=_CYCLE[index],
                marker=_MARKERS[index],
                label=solver,
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(f"{name}, max D / min D = {rows[0]['condition']:.0e}", fontsize=9)
        axes.set_xlabel("time (ms)")
    grid[0].set_ylabel("certificate reached\n(relative to the start's)")
    grid[0].legend(loc="lower left", bbox_to_anchor=(0.15, 0.2), frameon=False, fontsize=7.5)
    figure.suptitle("Solvers of RAMDA's subproblem: accuracy against time", fontsize=12)
    return figure


def _nuclear(result: dict[str, Any]) -> "Figure":
    shapes = list(dict.fromkeys(row["workload"] for row in result["rows"]))
    figure, grid = _panels(len(shapes), width=4.6, height=2.6, columns=3)
    for axes, shape in zip(grid, shapes, strict=True):
        rows = [row for row in result["rows"] if row["workload"] == shape]
        values = [1e3 * row["median"] for row in rows]
        labels = [f"{seconds(row['median'])}, error {row['relative_error']:.0e}" for row in rows]
        # From zero, on a linear axis: the lengths are the times.
        names, colours = [row["contender"] for row in rows], list(_CYCLE[: len(rows)])
        _bars(axes, names, values, colours, labels, [1e3 * row["q3"] for row in rows])
        _whiskers(axes, rows, 1e-3)
        axes.set_xlim(0, max(values) * 1.7)
        axes.set_title(f"{shape}, rank {rows[0]['above_threshold']}", fontsize=10)
        axes.set_xlabel("time (ms)", fontsize=8)
    figure.suptitle("The prox of the nuclear norm", fontsize=12)
    return figure


def _memory(result: dict[str, Any]) -> "Figure":
    rows = [row for row in result["rows"] if not row["missing"]]
    names = list(dict.fromkeys(row["workload"] for row in rows))
    figure, grid = _panels(max(len(names), 1), width=4.8, height=3.4, columns=3)
    for axes, name in zip(grid, names, strict=False):
        shown = [row for row in rows if row["workload"] == name]
        state = [row["state_per_parameter"] for row in shown]
        peak = [row["peak_bytes"] / row["parameters"] for row in shown]
        labels = [f"{s:.1f} + {p:.2g}" for s, p in zip(state, peak, strict=True)]
        places = list(range(len(shown)))
        colours = [_COLOURS[row["method"]] for row in shown]
        both = [s + p for s, p in zip(state, peak, strict=True)]
        who = [row["contender"] for row in shown]
        _bars(axes, who, both, ["#BBBBBB"] * len(shown), labels, both)
        axes.barh(places, state, color=colours, height=0.7)
        axes.set_xlim(0, max(both) * 1.3)
        axes.set_title(f"{shown[0]['title']}", fontsize=10)
        axes.set_xlabel("bytes per parameter: state + temporaries (grey)", fontsize=8)
    figure.suptitle("Memory of an optimizer beside parameters and gradients", fontsize=12)
    return figure


def _scale(result: dict[str, Any]) -> "Figure":
    sweeps = list(dict.fromkeys(row["sweep"] for row in result["rows"]))
    figure, grid = _panels(len(sweeps), width=4.2, height=3.8, columns=3)
    for axes, sweep in zip(grid, sweeps, strict=True):
        rows = [row for row in result["rows"] if row["sweep"] == sweep]
        for index, name in enumerate(dict.fromkeys(row["contender"] for row in rows)):
            line = [row for row in rows if row["contender"] == name]
            sizes = [row["size"] for row in line]
            colour = _COLOURS[name.partition(" ")[0]]
            axes.plot(
                sizes,
                [1e3 * row["median"] for row in line],
                color=colour,
                marker=_MARKERS[index],
                label=name,
            )
            low, high = ([1e3 * row[key] for row in line] for key in ("q1", "q3"))
            axes.fill_between(sizes, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set_xscale("log", base=10 if sweep == "parameters" else 2)
        axes.set_yscale("log")
        if sweep != "parameters":
            sizes = list(dict.fromkeys(row["size"] for row in rows))
            axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xlabel(sweep)
        if sweep != "parameters":
            axes.set_title(f"{rows[0]['parameters']:,} parameters", fontsize=9)
    grid[0].set_ylabel("time of a step (ms)")
    grid[0].legend(frameon=False, fontsize=8)
    figure.suptitle("How the time of a step grows", fontsize=12)
    return figure


_PLOTS: "dict[str, Callable[[dict[str, Any]], Figure]]" = {
    "step": _step,
    "subproblem": _subproblem,
    "nuclear": _nuclear,
    "memory": _memory,
    "scale": _scale,
}
