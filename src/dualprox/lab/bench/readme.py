"""The block of numbers in the README, made from the stored results and nothing else."""

from pathlib import Path
from typing import Any

from ...files import write_atomically
from ..usage import UsageError
from .contenders import BASELINE
from .results import read_stored
from .tables import Table, markdown, origin, seconds

BEGIN, END = "<!-- bench: made by `dualprox bench table --write` -->", "<!-- /bench -->"
_SHOWN = ("resnet50", "transformer", "tiny")


def block(folder: Path) -> str:
    """The Markdown between the marks: the steps of each device that has stored results."""
    parts = []
    for result in read_stored(folder):
        if result["question"] == "step":
            parts += [markdown(_step(result)), f"{origin(result)}."]
        elif result["question"] == "nuclear":
            parts += [_nuclear(result)]
    return "\n\n".join(parts)


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


def with_block(text: str, content: str) -> str:
    """The README's text with the block between its marks replaced.

    Raises:
        UsageError: the marks are not there once each, in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UsageError(f"the file must have the lines {BEGIN} and {END}, one of them is missing")
    inside = f"\n\n{content}\n\n" if content else "\n"
    return f"{before}{begin}{inside}{end}{after}"


def rewrite(path: Path, folder: Path) -> None:
    """Put the block of the stored results into the file.

    Raises:
        UsageError: the file cannot be read or has no place for it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    new = with_block(text, block(folder)).encode()
    write_atomically(path, lambda file: file.write(new))
