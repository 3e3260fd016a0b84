"""What a finished run is told as: summary.json, a table and plots."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..files import read_json_lines, write_json, write_png
from ..shrinking.report import readable_count, readable_seconds
from .bench.results import cpu_model
from .data import Split, caveat
from .networks import can_shrink, make_model
from .scores import score_of
from .slim import shrink_run, summary_of
from .specs import MlpSpec
from .tasks import Classification
from .training import Training

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Steps of all epochs, where a run may leave some out.
LEFT_OUT = {
    "skipped_steps": "steps skipped, not finite",
    "overflowed_steps": "steps skipped, scaled gradient too large",
}
# Okabe & Ito's colours, which colour-blind readers tell apart.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#666666"


def dead_inputs(training: Training) -> dict[str, list[int]]:
    """For each Linear and convolution, the inputs it does not read at the structured point.

    Inputs that have left the network while it was trained count, and keep their numbers.
    """
    weights = training.structured_weights()
    found = {}
    for name, count in _inputs(training).items():
        weight = weights[f"{name}.weight"].transpose(0, 1).flatten(1)
        kept = training.plan.keep.get(f"{name}.weight", {}).get(1, tuple(range(count)))
        live = {kept[i] for i in (weight != 0).any(dim=1).nonzero().flatten().tolist()}
        found[name] = [i for i in range(count) if i not in live]
    return found


def _inputs(training: Training) -> dict[str, int]:
    """For each Linear and convolution, how many inputs it has in the recipe's network."""
    return {
        name: module.weight.shape[1]
        for name, module in make_model(training.run).named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)
    }


def summarize(training: Training, folder: Path) -> dict[str, Any]:
    """The content of summary.json: the last epoch's figures, what died, and the time taken."""
    metrics = read_json_lines(folder / "metrics.jsonl")
    last = metrics[-1]
    score = score_of(last)
    seconds = sum(row["seconds"] for row in read_json_lines(folder / "timing.jsonl"))
    summary: dict[str, Any] = {
        "recipe": training.run.recipe,
        "seed": training.run.seed,
        "epochs": training.epoch,
        score.metric: last[score.metric],
        "train_seconds": seconds,
        "machine": cpu_model(),
        "caveat": caveat(training.run.data, training.run.data_dir),
    }
    if "unstructured_sparsity" in last:
        summary["unstructured_sparsity"] = last["unstructured_sparsity"]
    for name in LEFT_OUT:
        if name in last:
            summary[name] = sum(row[name] for row in metrics)
    if training.run.penalty is not None:
        dense = read_json_lines(folder / "dense" / "metrics.jsonl")
        summary |= {
            f"dense_{score.metric}": dense[-1][score.metric] if dense else None,
            "weighted_group_sparsity": last["weighted_group_sparsity"],
            "group_sparsity": last["group_sparsity"],
            "low_rank_level": last["low_rank_level"],
            "identified_epoch": last["unchanged_since"],
            "stationarity": last["stationarity"],
            "inputs": _inputs(training),
            "dead_inputs": dead_inputs(training),
        }
    return summary


def write_report(training: Training, folder: Path) -> dict[str, Any]:
    """Write the plots and, last, summary.json, which says that the run is finished."""
    metrics = read_json_lines(folder / "metrics.jsonl")
    dense = read_json_lines(folder / "dense" / "metrics.jsonl")
    summary = summarize(training, folder)
    if training.run.penalty is not None:
        if can_shrink(training.run):
            with training.structured():
                _, report = shrink_run(training.run, training.model, training.plan, folder)
            summary |= summary_of(report)
        write_png(folder / "training.png", plot_training(training, metrics, dense))
        split = training.task.split if isinstance(training.task, Classification) else None
        is_mlp = isinstance(training.run.model, MlpSpec)
        if is_mlp and isinstance(split, Split) and split.image is not None:
            dead = summary["dead_inputs"]["fc1"]
            pixels = plot_pixels(training, split.x.cpu(), split.image, dead)
            write_png(folder / "pixels.png", pixels)
    write_json(folder / "summary.json", summary)
    return summary


def spans(indices: list[int]) -> str:
    """Increasing indices with runs joined, as in "0-2, 5".

    Example:
        >>> spans([0, 1, 2, 5])
        '0-2, 5'
    """
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][1] == index - 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ", ".join(f"{a}-{b}" if a < b else str(a) for a, b in runs) or "none"


def rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines of the final table."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    score = score_of(summary)
    lines = [(f"{score.label} at the structured point", score.text(summary[score.metric]))]
    if "unstructured_sparsity" in summary:
        lines.append(("unstructured sparsity", percent(summary["unstructured_sparsity"])))
    if "identified_epoch" in summary:
        dense = summary[f"dense_{score.metric}"]
        lines += [
            (f"{score.label} of the dense network", "-" if dense is None else score.text(dense)),
            ("weighted group sparsity", percent(summary["weighted_group_sparsity"])),
            ("group sparsity", percent(summary["group_sparsity"])),
        ]
        if summary["low_rank_level"] is not None:
            lines.append(("low-rank level", percent(summary["low_rank_level"])))
        for name, dead in summary["dead_inputs"].items():
            total = summary["inputs"][name]
            lines.append((_label(name), f"{len(dead)} of {total}: {spans(dead)}"))
        epoch, epochs = summary["identified_epoch"], summary["epochs"]
        lines.append(("structure unchanged since", f"epoch {epoch} of {epochs}"))
        lines += saved(summary) if "params_slim" in summary else []
    lines += [(label, str(summary[name])) for name, label in LEFT_OUT.items() if summary.get(name)]
    lines.append(("training time", f"{summary['train_seconds']:.1f} s"))
    if summary["caveat"]:
        lines.append(("note", summary["caveat"]))
    return lines


def saved(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Lines about the dense network and the slim one."""

    def change(name: str, readable: Callable[[float], str]) -> str:
        before, after = summary[name.format("dense")], summary[name.format("slim")]
        share = f" ({after / before:.1%})" if before else ""
        return f"{readable(before)} to {readable(after)}{share}"

    lines = [
        ("parameters, dense to slim", change("params_{}", readable_count)),
        ("multiplications, dense to slim", change("macs_{}", readable_count)),
    ]
    if summary["latency_dense_ms"] and summary["latency_slim_ms"]:
        times = change("latency_{}_ms", lambda ms: readable_seconds(ms / 1e3))
        lines.append(("latency of one, dense to slim", times))
    return lines


def _label(layer: str) -> str:
    """What the dead inputs of a layer are, for a person."""
    number = layer.removeprefix("fc")
    if not number.isdecimal():
        return f"dead inputs of {layer}"
    return "dead input pixels" if number == "1" else f"dead neurons, hidden layer {int(number) - 1}"


def plot_training(
    training: Training, metrics: list[dict[str, Any]], dense: list[dict[str, Any]]
) -> "Figure":
    """The score and sparsity over epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.6), layout="constrained")
    upper, sparsity = figure.subplots(2, 1, sharex=True)
    epochs = [row["epoch"] for row in metrics]
    score = score_of(metrics[-1])
    scale = 100 if score.is_share else 1
    if dense:
        upper.plot(
            [row["epoch"] for row in dense],
            [scale * row[score.metric] for row in dense],
            color=_GREY,
            linestyle="--",
            label="dense",
        )
    shown = [scale * row[score.metric] for row in metrics]
    upper.plot(epochs, shown, color=_BLUE, linewidth=2, label="at the structured point")
    if score.is_share:
        upper.set_ylabel(f"validation {score.label} (%)")
        upper.set_ylim(max(0.0, min(min(shown), 85.0)) - 2, 101)
        upper.legend(loc="lower right", frameon=False)
    else:
        upper.set_ylabel(score.label)
        upper.legend(loc="upper right", frameon=False)
    if metrics[-1]["low_rank_level"] is None:
        name, label = "weighted_group_sparsity", "weighted group sparsity (%)"
    else:
        name, label = "low_rank_level", "low-rank level (%)"
    values = [100 * row[name] for row in metrics]
    sparsity.plot(epochs, values, color=_ORANGE, linewidth=2)
    sparsity.set_ylabel(label)
    sparsity.set_ylim(0, 100)
    sparsity.set_xlabel("epoch")
    for axes in (upper, sparsity):
        for milestone in training.run.milestones:
            axes.axvline(milestone + 0.5, color=_GREY, linewidth=0.8, linestyle=":")
        axes.spines[["top", "right"]].set_visible(False)
    since = metrics[-1]["unchanged_since"]
    if since < epochs[-1]:
        sparsity.axvspan(since, epochs[-1], color=_GREEN, alpha=0.12, linewidth=0)
        sparsity.annotate(
            f"same structure since epoch {since}",
            (epochs[-1], 4),
            ha="right",
            va="bottom",
            color=_GREEN,
        )
    restarts = "; dotted: a stage begins" if training.run.milestones else ""
    title = f"{training.run.recipe}, seed {training.run.seed}{restarts}"
    note = caveat(training.run.data, training.run.data_dir)
    figure.suptitle(f"{title}\n{note}" if note else title, fontsize=11)
    return figure


def plot_pixels(training: Training, x: Tensor, image: tuple[int, int], dead: list[int]) -> "Figure":
    """Which pixels the MLP still reads, beside the mean of images `x` of height and width."""
    from matplotlib.figure import Figure

    height, width = image
    weight = training.structured_weights()["fc1.weight"]
    norms = weight.norm(dim=0).view(height, width)
    mean = x.float().mean(dim=0).view(height, width)
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(mean.numpy(), cmap="Greys")
    left.set_title("mean image", fontsize=10)
    live = torch.where(norms > 0, norms, torch.nan)
    shades = right.imshow(live.numpy(), cmap="viridis", vmin=0)
    right.set_title("norm of the weights that read each pixel", fontsize=10)
    figure.colorbar(shades, ax=right, shrink=0.8)
    for axes in (left, right):
        axes.set_xticks([])
        axes.set_yticks([])
        for index in dead:
            row, column = divmod(index, width)
            axes.plot(
                column, row, marker="x", color=_ORANGE, markersize=72 / width, markeredgewidth=2
            )
    figure.suptitle(
        f"{height * width - len(dead)} of {height * width} pixels survive; crosses mark the dead",
        fontsize=11,
    )
    return figure
