"""Results of the papers' experiments made up for tests: runs of rows that ended like this."""

from typing import Any

from dualprox.lab import settings
from dualprox.lab.experiments.published import TABLES
from dualprox.lab.experiments.results import Result
from papers import records


def result(
    table: str,
    label: str,
    accuracy: float,
    zero: float | list[float],
    *assignments: str,
    jaccard: float = 1.0,
    seconds: float = 1.0,
    block: str | None = None,
    machine: str = "a machine",
) -> Result:
    """A run of a row that ended like this; `zero` may be the last epochs', one by one."""
    rows = [row for row in TABLES[table].rows if row.label == label]
    row = next(row for row in rows if block in (None, row.block))
    run = settings.with_settings(row.run, list(assignments))
    last = zero if isinstance(zero, list) else [zero]
    names = ("weighted_group_sparsity", "group_sparsity", "unstructured_sparsity")
    metrics: list[dict[str, Any]] = [
        {"epoch": n, "val_accuracy": accuracy, "jaccard": jaccard, **dict.fromkeys(names, value)}
        for n, value in enumerate([0.0] * (run.epochs - len(last)) + last, start=1)
    ]
    return Result(run, table, metrics, seconds, "", machine)


def lenet(label: str, accuracy: float, zero: float | list[float], *more: str, **also: Any):
    # Six epochs, of which the last three count.
    fields = ("epochs=6", "milestones=2,4", *more)
    return result("rmda-lenet5-mnist", label, accuracy, zero, *fields, **also)


def logistic(label: str, accuracy: float, zero: float, *more: str) -> Result:
    return result("ramda-table7", label, accuracy, zero, *more)


def planted(correct: dict[str, list[float]], errors: dict[str, float]) -> records.Record:
    columns = ("support_correctness", "train_accuracy", "val_accuracy")
    return {
        "kind": "planted",
        "commit": "abcdef0",
        "epochs": {
            f"logistic/{method}/{seed}": {name: [0.5, value] for name in columns}
            for method, values in correct.items()
            for seed, value in enumerate(values)
        },
        "errors": {
            f"{method}/0": [[1, 2.0, 1.0, 3.0], [9, share * 4.0, 4.0, 3.0]]
            for method, share in errors.items()
        },
    }
