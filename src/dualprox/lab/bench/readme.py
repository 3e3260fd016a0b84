"""The blocks of numbers in the README, made from the stored results and nothing else."""

from pathlib import Path
from typing import Any

from ...files import write_text
from ...shrinking.report import readable_count
from ..usage import UsageError
from .contenders import BASELINE
from .results import read_stored
from .tables import Table, markdown, origin, seconds

MARKS = {
    name: (f"<!-- {name}: made by `dualprox bench table --write` -->", f"<!-- /{name} -->")
    for name in ("bench", "slim")
}
_SHOWN = ("resnet50", "transformer", "tiny")


def blocks(folder: Path) -> dict[str, str]:
    """The Markdown between each pair of marks: "bench" about speed, "slim" about shrinking."""
    parts: dict[str, list[str]] = {name: [] for name in MARKS}
    for result in read_stored(folder):
        if result["question"] == "step":
            parts["bench"] += [markdown(_step(result)), f"{origin(result)}."]
        elif result["question"] == "nuclear":
            parts["bench"] += [_nuclear(result)]
        elif result["question"] == "slim":
            parts["slim"] += [markdown(_slim(result)), *_caveats(result), f"{origin(result)}."]
    return {name: "\n\n".join(lines) for name, lines in parts.items()}


def _slim(result: dict[str, Any]) -> Table:
    """Runs by what the network was and is; each cell dense to slim."""
    head = ("recipe", "accuracy", "parameters", "MACs", "latency, batch 1", "latency, batch 64")
    lines = []
    for row in result["rows"]:
        name = row["recipe"] + (", shrunk at restarts" if row["shrunk_while_trained"] else "")
        dense = row["dense_val_accuracy"]
        accuracy = f"{row['slim_accuracy']:.1%}"
        cells = [name, accuracy if dense is None else f"{dense:.1%} → {accuracy}"]
        for name, readable in (("params", readable_count), ("macs", readable_count)):
            before, after = row[f"{name}_dense"], row[f"{name}_slim"]
            cells.append(f"{readable(before)} → {readable(after)} ({after / before:.0%})")
        for batch in ("", "_batch_64"):
            before, after = row[f"latency_dense_ms{batch}"], row[f"latency_slim_ms{batch}"]
            times = f"{seconds(before / 1e3)} → {seconds(after / 1e3)}"
            cells.append(f"{times} ({before / after:.1f}×)")
        lines.append(tuple(cells))
    return Table("", head, lines)


def _caveats(result: dict[str, Any]) -> list[str]:
    told = dict.fromkeys(
        f"{row['recipe']}: {row['caveat']}" for row in result["rows"] if row["caveat"]
    )
    found = ["; ".join(told) + "."] if told else []
    trained = result["settings"]["trained_at"]
    return found if trained is None else [*found, f"Trained at {trained[:12]}, measured again by:"]


def _step(result: dict[str, Any]) -> Table:
    """Contenders by workload, each cell a median and its ratio to fused AdamW."""
    rows = {(row["contender"], row["workload"]): row for row in result["rows"]}
    models = [name for name in _SHOWN if (BASELINE, name) in rows]
    lines = []
    for contender in dict.fromkeys(row["contender"] for row in result["rows"]):
        cells = [rows[contender, model] for model in models]
        if all(cell["missing"] for cell in cells):
            continue
        texts = (
            "-" if cell["missing"] else f"{seconds(cell['median'])} ({_times(cell['ratio'])})"
            for cell in cells
        )
        lines.append((contender, *texts))
    titles = (f"{rows[BASELINE, model]['title']}" for model in models)
    return Table("", ("one step", *titles), lines)


def _times(ratio: float) -> str:
    return f"{ratio:.2g}×" if ratio < 100 else f"{ratio:.0f}×"


def _nuclear(result: dict[str, Any]) -> str:
    """A sentence on the first shape."""
    shape = result["rows"][0]["workload"]
    rows = [row for row in result["rows"] if row["workload"] == shape]
    parts = [f"{row['contender']} {seconds(row['median'])}" for row in rows]
    rank = rows[0]["above_threshold"]
    device = result["environment"]["gpu"] or result["environment"]["cpu"]
    return f"Prox of the nuclear norm, {shape}, rank {rank} ({device}): {'; '.join(parts)}."


def with_block(text: str, name: str, content: str) -> str:
    """The README's text with the block between the marks of that name replaced.

    Raises:
        UsageError: the marks are not there once each, in order.
    """
    start, stop = MARKS[name]
    before, begin, rest = text.partition(start)
    _, end, after = rest.partition(stop)
    if not begin or not end:
        raise UsageError(f"the file must have the lines {start} and {stop}, one of them is missing")
    inside = f"\n\n{content}\n\n" if content else "\n"
    return f"{before}{begin}{inside}{end}{after}"


def rewrite(path: Path, folder: Path) -> None:
    """Put the blocks of the stored results into the file.

    Raises:
        UsageError: the file cannot be read or has no place for them.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    for name, content in blocks(folder).items():
        text = with_block(text, name, content)
    write_text(path, text)
