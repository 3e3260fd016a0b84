"""What is kept of a run: enough to make docs/results.md without its folder."""

import csv
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from dualprox.files import read_json, read_json_lines, write_text
from dualprox.lab.experiments.optimality import OBJECTIVE_GAP, WRONG_GROUPS, solve
from dualprox.lab.experiments.planted_study import Epoch
from dualprox.lab.experiments.published import table_with
from dualprox.lab.experiments.results import Result
from dualprox.lab.experiments.tables import ACCURACY
from dualprox.lab.experiments.variance import GradientError
from dualprox.lab.settings import from_json, to_json

Record = dict[str, Any]
# Of each epoch; the loss is the mean of the training batches', at the iterate.
KEPT = (
    "loss",
    "val_loss",
    "val_accuracy",
    "val_perplexity",
    "weighted_group_sparsity",
    "group_sparsity",
    "unstructured_sparsity",
    "low_rank_level",
    "support_size",
    "jaccard",
)
AT_END = (OBJECTIVE_GAP.metric, WRONG_GROUPS.metric)
PLANTED = ("logistic", "convolutions")


def brief(value: float | None) -> float | None:
    """A figure in seven digits, which no table shows all of."""
    return None if value is None else float(f"{value:.7g}")


def record_of(result: Result, commit: str) -> Record:
    """A finished run that lies in a folder, without the place of its data.

    Args:
        result: as `gather` reads it, or as measured beside an optimum.
        commit: of the code that trained it.
    """
    assert result.folder is not None
    rows, timing = result.metrics, read_json_lines(result.folder / "timing.jsonl")
    named = {name: [row.get(name) for row in rows] for name in KEPT}
    return {
        "kind": "run",
        "table": result.table,
        "commit": commit,
        "machine": result.machine,
        "caveat": result.caveat,
        "run": to_json(replace(result.run, data_dir=None)),
        "at_end": {name: brief(rows[-1][name]) for name in AT_END if name in rows[-1]},
        "seconds": [brief(row["seconds"]) for row in timing],
        "metrics": {
            name: [brief(value) for value in values]
            for name, values in named.items()
            if any(value is not None for value in values)
        },
    }


def result_of(record: Record) -> Result:
    """The result that a record was made of, as far as it was kept."""
    columns = record["metrics"]
    rows = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    metrics = [{"epoch": epoch, **row} for epoch, row in enumerate(rows, start=1)]
    metrics[-1] |= record["at_end"]
    return Result(
        run=from_json(record["run"]),
        table=record["table"],
        metrics=metrics,
        seconds=median(record["seconds"]),
        caveat=record["caveat"],
        machine=record["machine"],
    )


def optimum_of(result: Result, folder: Path) -> tuple[Result, Record]:
    """A convex run measured beside the optimum of its problem, and a record of that optimum.

    Args:
        result: of a run of a published table, in its folder.
        folder: where optima are kept.
    """
    table = table_with(result.run.recipe)
    row = table.row(result.run.recipe) if table else None
    assert row is not None
    solved = solve(result.run, folder, print)
    found, problem = solved.optimum, solved.problem
    scores = problem.scores(found.weight, found.bias + found.weight @ problem.mean)
    slopes = (scores.softmax(1) - problem.y).T @ problem.x / len(problem.x)
    share = slopes.norm(dim=0) / problem.penalty.group_strength(found.weight)
    accuracy = solved.line(row, result).value(ACCURACY)
    assert accuracy is not None
    return solved.measured(result), {
        "kind": "optimum",
        "block": row.block,
        "data": result.run.data,
        "strength": problem.penalty.strength,
        "objective": found.objective,
        "gap": max(found.gap, 0.0),
        "accuracy": accuracy.mean,
        "live": int(found.support.sum()),
        "groups": len(found.support),
        # How near the structure is to another: 1 is where a dead group comes to life.
        "strongest_dead": brief(float(torch.where(found.support, 0.0, share.flatten()).max())),
        "weakest_live": brief(float(found.weight.norm(dim=0)[found.support].min())),
    }


def planted_record(folder: Path, commit: str) -> Record:
    """What `dualprox study planted` has written into a folder."""
    epochs: dict[str, dict[str, list[float | None]]] = defaultdict(lambda: defaultdict(list))
    for problem in PLANTED:
        for row in read_csv(folder / f"planted-{problem}.csv"):
            key = f"{problem}/{row['method']}/{row['seed']}"
            for name in ("support_correctness", "train_accuracy", "val_accuracy"):
                epochs[key][name].append(brief(float(row[name])))
    errors: dict[str, list[list[float | None]]] = defaultdict(list)
    for row in read_csv(folder / "planted-variance.csv"):
        values = [float(row[name]) for name in ("step", "estimate", "minibatch", "gradient")]
        errors[f"{row['method']}/{row['seed']}"].append([brief(value) for value in values])
    return {"kind": "planted", "commit": commit, "epochs": epochs, "errors": errors}


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a csv file, by the names in its head."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def planted_epochs(record: Record) -> list[Epoch]:
    """The epochs of a record of planted supports."""
    found = []
    for key, columns in record["epochs"].items():
        problem, method, seed = key.split("/")
        rows = zip(
            columns["support_correctness"],
            columns["train_accuracy"],
            columns["val_accuracy"],
            strict=True,
        )
        for epoch, values in enumerate(rows, start=1):
            found.append(Epoch(problem, method, int(seed), epoch, *values))
    return found


def planted_errors(record: Record) -> dict[str, list[list[GradientError]]]:
    """By method, the errors of gradient estimates of each seed."""
    curves: dict[str, list[list[GradientError]]] = defaultdict(list)
    for key, rows in record["errors"].items():
        curves[key.partition("/")[0]].append([GradientError(int(row[0]), *row[1:]) for row in rows])
    return curves


def as_text(record: Record) -> str:
    """JSON with a line for each list of numbers."""
    return _lines(record, "") + "\n"


def _lines(value: Any, indent: str) -> str:
    if not isinstance(value, dict) or not value:
        return json.dumps(value, allow_nan=False)
    inner = indent + " "
    parts = [f"{inner}{json.dumps(key)}: {_lines(each, inner)}" for key, each in value.items()]
    return "{\n" + ",\n".join(parts) + f"\n{indent}}}"


def keep(record: Record, path: Path) -> None:
    """Write a record; one of the same run is replaced.

    Raises:
        ValueError: a record of another run lies there.
    """
    if path.exists():
        old = read_json(path)
        if old.get("run") != record.get("run"):
            raise ValueError(f"{path} is of a run with other settings: remove it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, as_text(record))


def read(folder: Path) -> list[Record]:
    """All records of a folder, by name.

    Raises:
        FileNotFoundError: there is none.
    """
    found = [read_json(path) for path in sorted(folder.glob("*.json"))]
    if not found:
        raise FileNotFoundError(f"{folder} must hold records of runs")
    return found


def of_kind(records: Sequence[Record], kind: str) -> list[Record]:
    """The records of a kind: "run", "optimum", "planted" or "times"."""
    return [record for record in records if record["kind"] == kind]
