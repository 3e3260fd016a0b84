"""A result as tables: on a terminal, and in Markdown for the README."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """Cells as text.

    Args:
        title: what it shows.
        columns: headings; those after the first `left` are aligned to the right.
        rows: as long as `columns`.
        left: how many columns are text.
        notes: lines below the table.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    left: int = 1
    notes: tuple[str, ...] = ()


def seconds(value: float) -> str:
    """A time with three digits and its unit.

    Example:
        >>> seconds(0.01234), seconds(3.2e-5), seconds(12.0)
        ('12.3 ms', '32.0 µs', '12.0 s')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= 0.9995 * size or unit == "µs":
            number = value / size
            digits = 2 if number < 9.995 else 1 if number < 99.95 else 0
            return f"{number:.{digits}f} {unit}"
    raise AssertionError


def _ratio(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _spread(row: dict[str, Any]) -> str:
    """Half of the quartile distance, relative to the median."""
    return f"±{50 * (row['q3'] - row['q1']) / row['median']:.0f} %"


def _bytes(value: float) -> str:
    return f"{value / 2**20:.1f} MiB" if value >= 2**20 else f"{value / 2**10:.1f} KiB"


def _power(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.0e}"


def _count(value: int | None) -> str:
    return "-" if value is None else str(value)


def _missing(rows: list[dict[str, Any]]) -> tuple[str, ...]:
    """A line for each reason, with the contenders it keeps away."""
    names: dict[str, list[str]] = {}
    for row in rows:
        if row["missing"]:
            names.setdefault(row["missing"], []).append(row["contender"])
    return tuple(f"not here: {', '.join(who)}: {reason}" for reason, who in names.items())


def _by_workload(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    names = dict.fromkeys(row["workload"] for row in rows)
    return [[row for row in rows if row["workload"] == name] for name in names]


def _step(result: dict[str, Any]) -> list[Table]:
    found = []
    columns = ("", "median", "spread", "/ AdamW", "dead", "iterations", "support off", "gap")
    columns = (*columns, "certificate")
    for rows in _by_workload(result["rows"]):
        lines = []
        for row in rows:
            quality = row["quality"]
            reached = ("-",) * 5
            if quality is not None:
                reached = (
                    "-" if row["dead_share"] is None else f"{row['dead_share']:.0%}",
                    _count(quality["iterations"]),
                    str(quality["support_errors"]),
                    _power(quality["objective_gap"]),
                    _power(quality["certificate"]),
                )
            if row["missing"]:
                lines.append((row["contender"], "not here", *("-",) * 7))
            else:
                times = (seconds(row["median"]), _spread(row), _ratio(row["ratio"]))
                lines.append((row["contender"], *times, *reached))
        first = rows[0]
        title = f"{first['title']}: {first['parameters']:,} parameters, {first['groups']:,} groups"
        found.append(Table(title, columns, lines, notes=_missing(rows)))
    return found


def _checks(result: dict[str, Any]) -> list[Table]:
    """Counts by method and implementation; what is wrong comes one by one."""
    counts: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in result["checks"]:
        counts.setdefault((row["method"], row["impl"]), []).append(row)
    lines, away = [], []
    for (method, impl), rows in counts.items():
        by = {status: [r for r in rows if r["status"] == status] for status in _STATUSES}
        values = [r["largest_difference"] for r in rows if r["largest_difference"] is not None]
        worst = f"{max(values):.0e}" if values else "-"
        numbers = (str(len(by["ok"])), str(len(by["wrong"])), str(len(by["not here"])))
        lines.append((f"{method} {impl}", *numbers, worst))
        away += [{"contender": f"{method} {impl}", "missing": r["detail"]} for r in by["not here"]]
    head = ("against eager", "ok", "wrong", "not here", "worst difference")
    unique = [dict(pairs) for pairs in dict.fromkeys(tuple(row.items()) for row in away)]
    found = [Table("Penalties × models checked", head, lines, notes=_missing(unique))]
    wrong = [r for r in result["checks"] if r["status"] == "wrong"]
    if wrong:
        names = [
            (f"{r['workload']}, {r['method']} {r['impl']}, {r['penalty']}", r["detail"])
            for r in wrong
        ]
        found.append(Table("WRONG", ("what", "how"), names, left=2))
    return found


_STATUSES = ("ok", "wrong", "not here")


def _figures(result: dict[str, Any]) -> list[Table]:
    marks = {True: "met", False: "NOT MET", None: "not here"}
    lines = []
    for row in result.get("figures", []):
        value = "-" if row["value"] is None else f"{row['value']:.3g}"
        what = f"{row['ratio_of']} / {row['to']}"
        lines.append((what, row["workload"], f"{row['bound']:.3g}", value, marks[row["met"]]))
    head = ("figure", "model", "at most", "measured", "")
    open_ones = [
        {"contender": f"{row['ratio_of']} / {row['to']} ({row['workload']})", **row}
        for row in result.get("figures", [])
    ]
    return [Table("Figures", head, lines, left=2, notes=_missing(open_ones))] if lines else []


def _subproblem(result: dict[str, Any]) -> list[Table]:
    found = []
    for rows in _by_workload(result["rows"]):
        lines = []
        for row in sorted(rows, key=lambda row: -row["target"]):
            reached = "" if row["reached"] else "not reached"
            lines.append(
                (
                    f"{row['target']:.0e}",
                    row["solver"],
                    str(row["iterations"]),
                    seconds(row["median"]),
                    _spread(row),
                    _power(row["certificate"]),
                    reached,
                    _power(row["objective_gap"]),
                    str(row["support_errors"]),
                )
            )
        first = rows[0]
        title = (
            f"{first['workload']}: max D / min D = {first['condition']:.0e}, "
            f"{first['dead_share']:.0%} dead"
        )
        head = ("target", "solver", "iterations", "median", "spread", "certificate", "")
        found.append(Table(title, (*head, "objective gap", "support off"), lines, left=2))
    return found


def _nuclear(result: dict[str, Any]) -> list[Table]:
    found = []
    for rows in _by_workload(result["rows"]):
        lines = [
            (
                row["contender"],
                seconds(row["median"]),
                _spread(row),
                _ratio(row["ratio"]),
                _power(row["relative_error"]),
                _power(row["objective_gap"]),
                str(row["rank"]),
            )
            for row in rows
        ]
        title = f"{rows[0]['workload']}: rank {rows[0]['above_threshold']} of the exact solution"
        head = ("", "median", "spread", "/ SVD", "relative error", "objective gap", "rank")
        found.append(Table(title, head, lines))
    return found


def _memory(result: dict[str, Any]) -> list[Table]:
    found = []
    for rows in _by_workload(result["rows"]):
        lines = []
        for row in rows:
            if row["missing"]:
                lines.append((row["contender"], "not here", "-", "-"))
                continue
            kept = f"{row['state_per_parameter']:.3f}"
            lines.append(
                (row["contender"], _bytes(row["state_bytes"]), kept, _bytes(row["peak_bytes"]))
            )
        first = rows[0]
        title = f"{first['title']}: {first['parameters']:,} parameters, {first['groups']:,} groups"
        head = ("", "state", "bytes / parameter", "peak of a step beyond it")
        found.append(Table(title, head, lines, notes=_missing(rows)))
    return found


def _scale(result: dict[str, Any]) -> list[Table]:
    found = []
    for sweep in dict.fromkeys(row["sweep"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["sweep"] == sweep]
        names = tuple(dict.fromkeys(row["contender"] for row in rows))
        lines = []
        for size in dict.fromkeys(row["size"] for row in rows):
            cells = [f"{size:,}"]
            for name in names:
                row = next(r for r in rows if (r["size"], r["contender"]) == (size, name))
                cells += [seconds(row["median"]), _spread(row)]
            lines.append(tuple(cells))
        head = (sweep, *(text for name in names for text in (name, "spread")))
        powers = [
            f"{line['contender']} {line['slope']:.2f}"
            for line in result["slopes"]
            if line["sweep"] == sweep
        ]
        notes = (f"power of the size between the last two: {', '.join(powers)}",) if powers else ()
        found.append(Table(f"Time of a step against {sweep}", head, lines, notes=notes))
    return found


_TABLES: dict[str, Callable[[dict[str, Any]], list[Table]]] = {
    "step": lambda result: [*_checks(result), *_step(result)],
    "subproblem": _subproblem,
    "nuclear": _nuclear,
    "memory": _memory,
    "scale": _scale,
}


def tables(result: dict[str, Any]) -> list[Table]:
    """All tables of a result, the figures last."""
    return [*_TABLES[result["question"]](result), *_figures(result)]


def origin(result: dict[str, Any]) -> str:
    """One line that says where a result comes from."""
    place = result["environment"]
    commit = "unknown commit" if place["commit"] is None else place["commit"][:12]
    mark = " with uncommitted changes" if place["dirty"] else ""
    device = place["gpu"] or f"{place['cpu']}, {place['threads']} of {place['cores']} cores"
    quick = ", QUICK: the times mean nothing" if result["settings"]["quick"] else ""
    return (
        f"{device}; torch {place['torch']}, Python {place['python']}, dualprox "
        f"{place['dualprox']} at {commit}{mark}, {place['date'][:10]}{quick}"
    )


def markdown(table: Table) -> str:
    """The table in GitHub's Markdown."""

    def line(cells: tuple[str, ...]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    rule = tuple(":--" if i < table.left else "--:" for i in range(len(table.columns)))
    return "\n".join([line(table.columns), line(rule), *map(line, table.rows)])
