"""Training the rows of a table, each in a run folder of its own, one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ...checks import require
from ...files import write_json
from .. import checkpoints
from ..folders import RunFolderError, alone, made_by, read_config, read_run
from ..report import write_report
from ..settings import Run, differences, scaled_milestones, with_settings
from ..specs import ProxAdamwSpec, RamdaSpec
from ..train import Progress, check, go_on, start
from .tables import Row, Table

# What may differ from the published run without making it another experiment.
FREE = ("recipe", "seed", "threads", "data_dir", *checkpoints.FREE)


@dataclass(frozen=True)
class Job:
    """A row with a seed, and the run folder that it is trained in.

    Args:
        row: of the table.
        run: the row's, with the seed and the settings of the caller.
        folder: for the run.
    """

    row: Row
    run: Run
    folder: Path

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        return (self.folder / "summary.json").exists()


def changes(run: Run, published: Run) -> tuple[str, ...]:
    """How a run departs from the published one, as "epochs=3 (published: 500)"; () if it does not.

    Seed, threads, device and the place of the data do not count.
    """
    found = differences(run, published)
    return tuple(
        f"{name}={ours} (published: {theirs})"
        for name, (ours, theirs) in found.items()
        if name not in FREE
    )


def mark(run: Run, published: Run) -> str:
    """One word for a run that is not the published one: "shortened" or "changed"; else ""."""
    if not changes(run, published):
        return ""
    return "shortened" if run.epochs < published.epochs else "changed"


def changed(row: Row, assignments: Sequence[str], exact: bool = False) -> Run:
    """The row's run with fields replaced as by ``--set``.

    Other epochs move the milestones along, unless they are set, too.

    Args:
        row: of a table.
        assignments: as for ``--set``.
        exact: whether the library's own solver takes the place of the paper's, where there is one.

    Raises:
        ValueError: a setting is none of the run, or breaks its rules.
    """
    published, optimizer = row.run, row.run.optimizer
    if exact and isinstance(optimizer, RamdaSpec | ProxAdamwSpec):
        published = replace(published, optimizer=replace(optimizer, solver=None))
    names = [assignment.partition("=")[0] for assignment in assignments]
    if "epochs" not in names or "milestones" in names:
        return with_settings(published, list(assignments))
    run = with_settings(published, [*assignments, "milestones="])
    return replace(run, milestones=scaled_milestones(published, run.epochs))


def rows_named(table: Table, patterns: Sequence[str]) -> list[Row]:
    """The rows whose recipe matches one of the patterns; all for none.

    Raises:
        ValueError: a pattern matches no row.
    """
    for pattern in patterns:
        known = any(fnmatch(row.run.recipe, pattern) for row in table.rows)
        rule = f"recipes of {table.name} (* stands for any text; `dualprox show {table.name}`)"
        require(known, "rows", rule, pattern)
    return [
        row
        for row in table.rows
        if not patterns or any(fnmatch(row.run.recipe, pattern) for pattern in patterns)
    ]


def plan(
    table: Table,
    folder: Path,
    patterns: Sequence[str] = (),
    seeds: Sequence[int] = (),
    assignments: Sequence[str] = (),
    exact: bool = False,
) -> list[Job]:
    """The runs of a table, in its order.

    Args:
        table: which.
        folder: for their folders, RECIPE-seedN, or RECIPE-shortened-seedN for a run that is not
            the published one.
        patterns: which rows; none for all.
        seeds: of each; none for those of the paper.
        assignments: as for ``--set``, in every row.
        exact: as for `changed`.

    Raises:
        ValueError: a row is not known, or a setting breaks its rules in one of the rows.
        DataError: the files of a data set are missing.
    """
    require(len(set(seeds)) == len(seeds), "seeds", "different numbers", tuple(seeds))
    jobs = []
    for row in rows_named(table, patterns):
        run = changed(row, assignments, exact)
        check(run)
        word = mark(run, row.run)
        name = f"{run.recipe}-{word}" if word else run.recipe
        for seed in seeds or row.seeds:
            jobs.append(Job(row, replace(run, seed=seed), folder / f"{name}-seed{seed}"))
    return jobs


def begin(table: Table, jobs: Sequence[Job], folder: Path) -> bool:
    """Make the folder of a table, or add runs to it; its config.json lists them and their changes.

    Returns:
        Whether there was nothing in it before.

    Raises:
        RunFolderError: the folder holds something else, or other runs under the same names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder, wait=True):
        return _begin(table, jobs, folder)


def _begin(table: Table, jobs: Sequence[Job], folder: Path) -> bool:
    was_empty = not any(folder.iterdir())
    runs: dict[str, Any] = {}
    if not was_empty:
        if made_by(folder) != "reproduce" or read_config(folder).get("table") != table.name:
            raise RunFolderError(f"{folder} was not made for {table.name}: choose another --out")
        runs = read_config(folder).get("runs", {})
        if not isinstance(runs, dict):
            raise RunFolderError(f"{folder / 'config.json'} is damaged: it has no runs")
    for job in jobs:
        if (job.folder / "config.json").exists() and read_run(job.folder) != job.run:
            pairs = differences(job.run, read_run(job.folder))
            told = ", ".join(f"{name}={old}, not {new}" for name, (new, old) in pairs.items())
            raise RunFolderError(f"{job.folder} has {told}: choose another --out")
        runs[job.folder.name] = {"changed": changes(job.run, job.row.run)}
    write_json(folder / "config.json", {"command": "reproduce", "table": table.name, "runs": runs})
    return was_empty


def carry_out(job: Job, progress: Progress) -> None:
    """Train a run to its end, from wherever it was stopped, and write its report.

    Raises:
        RunFolderError: the folder cannot go on.
        DataError: the files of the data set are missing or damaged.
        FloatingPointError: the loss is not finite.
        ShrinkError: what was trained cannot be shrunk.
    """
    if not (job.folder / "config.json").exists():
        start(job.run, job.folder)
    training = go_on(job.folder, progress)
    write_report(training, job.folder)
