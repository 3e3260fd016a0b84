"""What finished runs came to, beside what was published."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...checks import is_real
from ...files import read_json, read_json_lines
from ..folders import RunFolderError, made_by, read_config, read_run
from ..recipes import RECIPES
from ..settings import Run
from .published import TABLES, table_with
from .reproduce import changes, mark
from .tables import COLUMNS, SECONDS, Column, Row, Table, Value


@dataclass(frozen=True)
class Result:
    """A finished run.

    Args:
        run: what was trained.
        table: of the name of the table that it was trained for; None for a run by itself.
        metrics: of each epoch, at the structured point.
        seconds: the median epoch's, with its validation.
        caveat: what its data lack; "" for nothing.
        machine: what it was trained on.
        folder: where it lies; None for one that is not on disk.
    """

    run: Run
    table: str | None
    metrics: list[dict[str, Any]]
    seconds: float
    caveat: str
    machine: str
    folder: Path | None = None

    def figure(self, column: Column) -> float | None:
        """What a column shows of it; None where it has none."""
        if column is SECONDS:
            return self.seconds
        value = self.metrics[-1].get(column.metric)
        return None if value is None else column.scale * value


@dataclass(frozen=True)
class Line:
    """Runs of one row that differ in their seeds alone.

    Args:
        row: of the table.
        results: at least one.
    """

    row: Row
    results: tuple[Result, ...]

    @property
    def changed(self) -> tuple[str, ...]:
        """How the runs depart from the published one."""
        return changes(self.results[0].run, self.row.run)

    @property
    def mark(self) -> str:
        """One word for that; "" if they do not."""
        return mark(self.results[0].run, self.row.run)

    @property
    def label(self) -> str:
        """The name of its method, and its mark."""
        return f"{self.row.label} ({self.mark})" if self.mark else self.row.label

    def value(self, column: Column) -> Value | None:
        """What the runs came to."""
        found = [result.figure(column) for result in self.results]
        values = [value for value in found if value is not None]
        return Value.of(values) if values else None


@dataclass(frozen=True)
class Comparison:
    """A table with what was trained of it.

    Args:
        table: as published.
        lines: in the order of the table.
    """

    table: Table
    lines: tuple[Line, ...]

    def blocks(self) -> dict[str, list[Line]]:
        """The lines by the part of the table that they stand in."""
        blocks: dict[str, list[Line]] = {}
        for line in self.lines:
            blocks.setdefault(line.row.block, []).append(line)
        return blocks

    def notes(self) -> list[str]:
        """What a reader has to know, the table's own note first."""
        notes = [self.table.note] if self.table.note else []
        notes += sorted({each.caveat for line in self.lines for each in line.results} - {""})
        said: dict[str, list[str]] = {}
        for line in self.lines:
            how = f"{line.mark}: {', '.join(line.changed)}" if line.changed else ""
            for text in filter(None, (how, line.row.note)):
                said.setdefault(text, []).append(line.row.run.recipe)
        notes += [f"{text} ({', '.join(recipes)})" for text, recipes in said.items()]
        missing = len(self.table.rows) - len({line.row.run.recipe for line in self.lines})
        if missing:
            notes.append(f"{missing} of the table's {len(self.table.rows)} rows were not run")
        if SECONDS in self.table.columns:
            machines = sorted({each.machine for line in self.lines for each in line.results})
            notes.append(f"times are those of {', '.join(machines)}, with validation")
        return notes

    def cells(self) -> list[list[str]]:
        """The table as text, its head first."""
        head = ["", "method", "seeds", "epochs"]
        for column in self.table.columns:
            head += [column.heading, "published"]
        cells = [head]
        for block, lines in self.blocks().items():
            for number, line in enumerate(lines):
                epochs = f"{line.results[0].run.epochs}"
                seeds = ",".join(str(result.run.seed) for result in line.results)
                cells.append(["" if number else block, line.label, seeds, epochs])
                for column in self.table.columns:
                    for value in (line.value(column), line.row.published.get(column.metric)):
                        cells[-1].append(value.text(self.table.digits) if value else "-")
        return cells

    def records(self) -> list[dict[str, Any]]:
        """The lines of the table with every digit, for files."""
        records = []
        for line in self.lines:
            record: dict[str, Any] = {
                "table": self.table.name,
                "block": line.row.block,
                "method": line.row.label,
                "recipe": line.row.run.recipe,
                "seeds": " ".join(str(result.run.seed) for result in line.results),
                "epochs": line.results[0].run.epochs,
                "mark": line.mark,
                "changed": "; ".join(line.changed),
            }
            for column in self.table.columns:
                published = line.row.published.get(column.metric)
                for name, value in (("ours", line.value(column)), ("published", published)):
                    record[f"{column.metric}_{name}_mean"] = value.mean if value else None
                    record[f"{column.metric}_{name}_std"] = value.std if value else None
            records.append(record)
        return records


def read_result(folder: Path, table: str | None) -> Result | None:
    """The result of a run folder; None before it is finished.

    Raises:
        RunFolderError: it is no run folder, or a damaged one.
    """
    run = read_run(folder)
    if not (folder / "summary.json").exists():
        return None
    summary = read_json(folder / "summary.json")
    seconds: list[Any] = [row.get("seconds") for row in read_json_lines(folder / "timing.jsonl")]
    if not seconds or not all(map(is_real, seconds)):
        raise RunFolderError(f"{folder / 'timing.jsonl'} is damaged: seconds must be numbers")
    told = {"caveat": "", "machine": "a machine that was not recorded", **summary}
    if not all(isinstance(told[name], str) for name in ("caveat", "machine")):
        raise RunFolderError(f"{folder / 'summary.json'} is damaged: it must name data and machine")
    return Result(
        run=run,
        table=table,
        metrics=read_json_lines(folder / "metrics.jsonl"),
        seconds=statistics.median(seconds),
        caveat=told["caveat"],
        machine=told["machine"],
        folder=folder,
    )


def gather(folders: Iterable[Path]) -> tuple[list[Result], list[Path]]:
    """The results of run folders and of folders of `dualprox reproduce`, and what is unfinished.

    Raises:
        RunFolderError: a folder is neither.
    """
    results, unfinished = [], []
    for folder in folders:
        runs: dict[Path, str | None] = {folder: None}
        command = made_by(folder)
        if command == "reproduce":
            config = read_config(folder)
            runs = dict.fromkeys((folder / name for name in config["runs"]), config["table"])
        elif command is not None:
            raise RunFolderError(f"{folder} was made by `dualprox {command}`: it is no run")
        for each, table in runs.items():
            found = read_result(each, table) if (each / "config.json").exists() else None
            if found is None:
                unfinished.append(each)
            else:
                results.append(found)
    return results, unfinished


def compare(results: Sequence[Result]) -> list[Comparison]:
    """Results set beside what was published, a comparison for each table.

    A run by itself goes to the first table that has its recipe; runs that no table has come last,
    beside nothing. Runs that differ in more than their seeds are never taken together.
    """
    by_table: dict[str, list[Result]] = {}
    for result in results:
        table = table_with(result.run.recipe)
        name = result.table or (table.name if table else "")
        by_table.setdefault(name, []).append(result)
    names = [name for name in (*TABLES, "") if name in by_table]
    return [_comparison(TABLES.get(name), by_table[name]) for name in names]


def _comparison(table: Table | None, results: list[Result]) -> Comparison:
    if table is None:
        table = _unpublished(results)
    groups: dict[tuple[str, tuple[str, ...]], dict[int, Result]] = {}
    for result in results:
        row = table.row(result.run.recipe)
        assert row is not None
        key = (result.run.recipe, changes(result.run, row.run))
        # The same run may have been named twice.
        groups.setdefault(key, {})[result.run.seed] = result
    lines = [
        Line(row, tuple(found[seed] for seed in sorted(found)))
        for row in table.rows
        for (recipe, _), found in groups.items()
        if recipe == row.run.recipe
    ]
    return Comparison(table, tuple(lines))


def _unpublished(results: list[Result]) -> Table:
    """A table of rows without published figures, for runs of other recipes."""
    runs: dict[str, Run] = {}
    for result in results:
        recipe = RECIPES.get(result.run.recipe)
        runs.setdefault(result.run.recipe, recipe() if recipe else replace(result.run, seed=0))
    columns = tuple(
        column for column in COLUMNS if any(result.figure(column) is not None for result in results)
    )
    rows = tuple(Row(run.data, run.recipe, run) for run in runs.values())
    return Table("other", "runs of recipes that no table has", "none", columns, rows)
