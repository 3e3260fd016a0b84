"""The files of a report: Markdown, CSV, plots, and one page of HTML that holds them all."""

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path

from ...files import write_csv, write_png, write_text
from .figures import plot_epochs, plot_last
from .results import Comparison
from .tables import Table

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #8884; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
img { max-width: 100%; }
"""


def markdown(comparison: Comparison) -> str:
    """A comparison as Markdown: its title, its table, its notes."""
    head, *lines = comparison.cells()
    table = comparison.table
    text = [f"## {table.name}: {table.title}", "", f"Published: {table.source}.", ""]
    text.append("| " + " | ".join(head) + " |")
    text.append("|" + "|".join([" :-- "] * 2 + [" --: "] * (len(head) - 2)) + "|")
    text += ["| " + " | ".join(line) + " |" for line in lines]
    text += ["", *(f"- {note}" for note in comparison.notes())]
    return "\n".join(text).rstrip() + "\n"


def _html(comparison: Comparison, plots: Sequence[Path]) -> str:
    """A comparison as HTML, its plots within."""
    table = comparison.table
    head, *lines = [[html.escape(cell) for cell in line] for line in comparison.cells()]
    parts = [f"<h2>{html.escape(table.name)}: {html.escape(table.title)}</h2>"]
    parts.append(f"<p>Published: {html.escape(table.source)}.</p><table>")
    parts.append("<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>")
    parts += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>" for line in lines]
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in comparison.notes())
    parts.append(f"</table><ul>{notes}</ul>")
    for plot in plots:
        data = base64.b64encode(plot.read_bytes()).decode()
        parts.append(f'<img alt="{html.escape(plot.stem)}" src="data:image/png;base64,{data}">')
    return "\n".join(parts)


def plot_stem(table: Table, block: str) -> str:
    """What the plots of a part of a table are called, without what they show."""
    return re.sub(r"[^a-z0-9]+", "-", f"{table.name} {block}".lower())


def _write_plots(comparison: Comparison, folder: Path) -> list[Path]:
    plots = []
    for block, lines in comparison.blocks().items():
        stem = plot_stem(comparison.table, block)
        for name, plot in (("epochs", plot_epochs), ("last", plot_last)):
            figure = plot(comparison.table, block, lines)
            if figure is not None:
                plots.append(folder / f"{stem}-{name}.png")
                write_png(plots[-1], figure)
    return plots


def write_report(comparisons: Sequence[Comparison], folder: Path) -> None:
    """Write report.md, a csv for each table, the plots, and report.html, which needs no other file.

    Args:
        comparisons: at least one.
        folder: made if it is not there; files of an earlier report are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    title = "Trained again, beside what was published"
    texts, pages = [f"# {title}\n"], [f"<h1>{title}</h1>"]
    for comparison in comparisons:
        plots = _write_plots(comparison, folder)
        images = "\n".join(f"![{plot.stem}]({plot.name})" for plot in plots)
        texts.append(f"{markdown(comparison)}\n{images}\n")
        pages.append(_html(comparison, plots))
        write_csv(folder / f"{comparison.table.name}.csv", comparison.records())
    write_text(folder / "report.md", "\n".join(texts))
    document = ["<!doctype html>", '<html lang="en">', '<meta charset="utf-8">']
    document += [f"<title>{title}</title><style>{_STYLE}</style>", *pages, "</html>\n"]
    write_text(folder / "report.html", "\n".join(document))
