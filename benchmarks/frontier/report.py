"""The table, the CSV and the figures of the runs in a folder."""

import csv
import io
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from dualprox.files import write_png, write_text

from .envelope import Point, best, envelope

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = dict[str, Any]
Curves = dict[str, list[Point]]
OURS = "dualprox"
PARTIAL = ("_convex", "_no_refit")
OUR_COLORS = ("#D55E00", "#009E73", "#7B3294", "#8C6D31", "#C51B7D", "#4D9221")
COLORS = ("#0072B2", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#555555", "#000000", "#999933")
ROOM = 4  # of the plots below dense, over that of our worst point
TICKS = (0.5, 1, 2, 5, 10, 20, 30, 50, 100)
COLUMNS = (
    "task", "method", "seed", "target", "status", "size", "params", "params_dense", "nonzero",
    "macs", "macs_dense", "metric", "validation", "test", "train_seconds", "epochs",
    "latency_dense_ms_batch_1", "latency_slim_ms_batch_1", "latency_dense_ms_batch_64",
    "latency_slim_ms_batch_64", "tries", "setting", "versions", "commit", "error",
)  # fmt: skip


def records_in(folder: Path) -> list[Record]:
    """All records below a folder, by path.

    Raises:
        FileNotFoundError: there is none.
    """
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*/*/*.json"))]
    if not found:
        raise FileNotFoundError(f"--out must hold records of runs, got {folder}")
    return found


def as_csv(records: Sequence[Record]) -> str:
    """A line for each final run."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for record in records:
        row = {**record, "commit": record["environment"]["commit"]}
        cells = (row.get(column) for column in COLUMNS)
        writer.writerow(json.dumps(cell) if isinstance(cell, dict) else cell for cell in cells)
    return buffer.getvalue()


def curves_of(records: Sequence[Record]) -> Curves:
    """The points of each method, in the order of their size."""
    grouped: dict[tuple[str, float | None], list[Record]] = defaultdict(list)
    for record in records:
        if record["status"] == "ok":
            grouped[record["method"], record["target"]].append(record)
    curves: Curves = defaultdict(list)
    for (method, target), runs in grouped.items():
        tests = [run["test"] for run in runs]
        curves[method].append(
            Point(
                fmean(run["size"] for run in runs),
                fmean(run["macs"] / run["macs_dense"] for run in runs),
                fmean(tests),
                min(tests),
                max(tests),
                len(runs),
                target,
            )
        )
    return {name: sorted(points, key=lambda p: p.size) for name, points in curves.items()}


def of_kind(records: Sequence[Record], *, unstructured: bool) -> list[Record]:
    """The runs of methods whose networks have single zeros, or of the others."""
    return [record for record in records if record["unstructured"] is unstructured]


def rivals(curves: Curves) -> Curves:
    """The curves of the peers."""
    return {
        name: curve
        for name, curve in curves.items()
        if name != "dense" and not name.startswith(OURS)
    }


def number(value: float, metric: str) -> str:
    """A metric as the table has it: per cent for accuracies."""
    return f"{100 * value:.2f}" if metric == "accuracy" else f"{value:.3f}"


def cell(point: Point, metric: str) -> str:
    """Mean, range over seeds, and the size reached where it is not the one asked for."""
    text = number(point.mean, metric)
    if point.seeds > 1:
        text += f" ({number(point.low, metric)} to {number(point.high, metric)})"
    if point.target is not None and abs(point.size / point.target - 1) > 0.1:
        text += f" at {100 * point.size:.1f} %"
    return text


def latency(runs: Sequence[Record], batch: int) -> str:
    """How many times as fast as the dense network, as a mean over runs."""
    slim, dense = f"latency_slim_ms_batch_{batch}", f"latency_dense_ms_batch_{batch}"
    ratios = [run[dense] / run[slim] for run in runs if run.get(slim) and run.get(dense)]
    return f"{fmean(ratios):.2f}" if ratios else ""


def task_table(records: Sequence[Record]) -> str:
    """The section of one task."""
    first = records[0]
    final = [record for record in records if not record["tuning"]]
    curves = curves_of(final)
    targets = sorted({r["target"] for r in final if r["target"] is not None})
    lines = [
        f"## {first['task']}",
        "",
        f"Test {first['metric']}{' in %' if first['metric'] == 'accuracy' else ''}, mean (range) "
        f"over seeds; {first['epochs']} epochs in all; {first['note']}.",
        "",
        "| method | "
        + " | ".join(f"{100 * target:g} %" for target in targets)
        + " | seconds | times as fast, batch 1 | batch 64 |",
        "|---" * (len(targets) + 4) + "|",
    ]
    for name, curve in curves.items():
        runs = [r for r in final if r["method"] == name and r["status"] == "ok"]
        label = f"{name} *" if runs[0]["unstructured"] else name
        if curve[0].target is None:
            cells = [cell(curve[0], first["metric"]) + " at 100 %"] + [""] * (len(targets) - 1)
        else:
            by_target = {point.target: point for point in curve}
            broken = {r["target"] for r in final if r["method"] == name and r["status"] != "ok"}
            cells = [
                cell(by_target[t], first["metric"])
                if t in by_target
                else ("failed" if t in broken else "not run")
                for t in targets
            ]
        # Latency of the smallest networks.
        least = min(runs, key=lambda run: run["size"])["target"]
        smallest = [run for run in runs if run["target"] == least]
        seconds = f"{fmean(run['train_seconds'] for run in runs):.0f}"
        cells += [seconds, latency(smallest, 1), latency(smallest, 64)]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines.append("")
    for unstructured in (False, True):  # each beside its like
        alike = curves_of(of_kind(final, unstructured=unstructured))
        lines += ours_against(alike, first["metric"])
    lines += remarks(records)
    return "\n".join(lines)


def ours_against(curves: Curves, metric: str) -> list[str]:
    """Our points beside the best peer at the same size."""
    lines, peers = [], rivals(curves)
    for name, curve in curves.items():
        for point in curve if name.startswith(OURS) else ():
            winner = best(peers, point.size, metric == "accuracy")
            beside = (
                "no peer has this size"
                if winner is None
                else f"best peer there, between its points: {winner[0]} {number(winner[1], metric)}"
            )
            lines.append(
                f"- {name} at {100 * point.size:.1f} %: {number(point.mean, metric)}; {beside}"
            )
    return [*lines, ""] if lines else []


def remarks(records: Sequence[Record]) -> list[str]:
    """Caveats of methods, tries and settings, and what could not run."""
    lines = []
    for name in dict.fromkeys(record["method"] for record in records):
        mine = [record for record in records if record["method"] == name]
        final = [r for r in mine if not r["tuning"] and r["status"] == "ok"]
        broken = [record for record in mine if record["status"] == "failed"]
        if mine[0]["caveat"]:
            star = "* " if mine[0]["unstructured"] else ""
            lines.append(f"- {star}{name}: {mine[0]['caveat']}.")
        if final:
            # Of the tries that there are, the runs may have been given fewer to choose from.
            settings = {r["setting_number"] for r in mine if r["tuning"]}
            tried = min(max(r["tries"] for r in final), len(settings))
            chosen = f"the best of {tried} tries" if tried > 1 else "the only one tried"
            lines.append(f"- {name}: setting `{final[0]['setting']}`, {chosen}.")
        if broken:
            reasons = dict.fromkeys(record["error"] for record in broken)
            what = "could not run" if not final else f"failed {len(broken)} times"
            lines.append(f"- {name} {what}: {'; '.join(reasons)}")
    return lines


def draw(axes: "Axes", records: Sequence[Record], colors: Mapping[str, str], across: str) -> None:
    """One panel: every method, mean and range over seeds, and the envelope of the peers.

    Args:
        axes: to draw on.
        records: of final runs.
        colors: by method.
        across: what is asked for, "size", or "macs".
    """
    metric = records[0]["metric"]
    scale = 100 if metric == "accuracy" else 1
    curves = curves_of(records)
    for name, curve in curves.items():
        sizes = [100 * (point.macs if across == "macs" else point.size) for point in curve]
        up = [scale * point.mean for point in curve]
        # The mean of equal numbers may be rounded past them.
        down = [scale * max(point.mean - point.low, 0.0) for point in curve]
        above = [scale * max(point.high - point.mean, 0.0) for point in curve]
        if name == "dense":
            axes.axhline(up[0], color="black", linewidth=0.8, linestyle=":", label="dense")
            continue
        # Methods of ours that lack a part are drawn as thin as peers.
        whole = name.startswith(OURS) and not name.endswith(PARTIAL)
        axes.errorbar(
            sizes,
            up,
            yerr=[down, above],
            label=name,
            color=colors[name],
            linestyle="--" if name.endswith(PARTIAL) else "-",
            linewidth=2.4 if whole else 1.2,
            marker="o" if whole else ".",
            capsize=2,
            zorder=3 if whole else 2,
        )
    edge = envelope(rivals(curves), metric == "accuracy") if across == "size" else []
    if edge:
        axes.plot(
            [100 * size for size, _ in edge],
            [scale * value for _, value in edge],
            color="black",
            alpha=0.15,
            linewidth=6,
            label="best peer",
            zorder=1,
        )
    zoom(axes, curves, metric)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axes.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_ylabel("test accuracy, %" if metric == "accuracy" else "test perplexity")
    axes.spines[["top", "right"]].set_visible(False)


def zoom(axes: "Axes", curves: Curves, metric: str) -> None:
    """Leave out what is far below our worst point, down to chance: the tables have it."""
    ours = [p.mean for name, curve in curves.items() if name.startswith(OURS) for p in curve]
    if not ours or not curves.get("dense"):
        return
    dense = curves["dense"][0].mean
    if metric == "accuracy":
        floor = 100 * (dense - ROOM * max(0.0, dense - min(ours)))
        bottom, top = axes.get_ylim()
        axes.set_ylim(max(bottom, floor), min(top, 100))
    else:
        ceiling = dense + ROOM * max(0.0, max(ours) - dense)
        axes.set_ylim(top=min(axes.get_ylim()[1], ceiling))


def figure(records: Sequence[Record]) -> "Figure":
    """The panels of one task: smaller networks by parameters and MACs, and single zeros."""
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(record["method"] for record in records))
    theirs = [name for name in methods if not name.startswith(OURS)]
    # One color in all panels for what differs in its zeros alone.
    ours = dict.fromkeys(n.removesuffix("_single") for n in methods if n.startswith(OURS))
    chosen = {name: OUR_COLORS[place % len(OUR_COLORS)] for place, name in enumerate(ours)}
    chosen |= {name: COLORS[place % len(COLORS)] for place, name in enumerate(theirs)}
    colors = {name: chosen[name.removesuffix("_single")] for name in methods}
    final = [record for record in records if not record["tuning"]]
    smaller, sparse = (of_kind(final, unstructured=loose) for loose in (False, True))
    dense = [record for record in final if record["method"] == "dense"]
    panels = [
        ("parameters, % of dense", "size", smaller),
        ("MACs, % of dense", "macs", smaller),
        ("nonzeros, % of dense: single zeros, no smaller network", "size", [*dense, *sparse]),
    ]
    if not sparse:
        del panels[2]
    made = Figure(figsize=(5.2 * len(panels), 5.2), layout="constrained")
    for axes, (label, across, shown) in zip(made.subplots(1, len(panels)), panels, strict=True):
        draw(axes, shown, colors, across)
        axes.set_xlabel(label)
        if across == "size":  # below the panel, where no curve runs
            where = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.13)}
            axes.legend(frameon=False, fontsize=7, ncols=2, **where)
    made.axes[0].set_title(records[0]["task"], loc="left", fontsize=10)
    return made


def report(folder: Path, to: Path) -> str:
    """Write frontier.csv, frontier.md and a figure for each task; the table.

    Args:
        folder: of the records.
        to: a folder, made if need be.
    """
    records = records_in(folder)
    to.mkdir(parents=True, exist_ok=True)
    write_text(to / "frontier.csv", as_csv([r for r in records if not r["tuning"]]))
    sections = []
    for task in dict.fromkeys(record["task"] for record in records):
        mine = [record for record in records if record["task"] == task]
        sections.append(task_table(mine))
        write_png(to / f"{task}.png", figure(mine))
    places = Counter((r["environment"]["cpu"], r["environment"]["torch"]) for r in records)
    where = "; ".join(f"{n} on {cpu} with torch {torch}" for (cpu, torch), n in places.items())
    foot = f"Runs of one thread each: {where}. Every record names its commit."
    text = "\n\n".join([*sections, foot]) + "\n"
    write_text(to / "frontier.md", text)
    return text
