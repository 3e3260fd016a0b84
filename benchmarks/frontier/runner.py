"""The queue: tries first, then the final runs with the setting that each method's tries chose."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from .methods import Method
from .record import (
    TUNING_SEED,
    TUNING_SEEDS,
    TUNING_SIZE,
    TUNING_SIZES,
    Job,
    failed,
    heading,
    perform,
    save,
)
from .tasks import Task

ROOT = Path(__file__).resolve().parents[2]
Maker = Callable[[Path], Task]
# A try that misses its size by more than this factor does not compete with those that meet it.
SIZE_TOLERANCE = 1.1


@dataclass(frozen=True)
class Plan:
    """What to run.

    Args:
        tasks: makers by name; each is told the data folder.
        methods: by name.
        sizes: targets, fractions of the parameters.
        seeds: of the final runs.
        tries: settings that each method may try on each task, >= 1.
        data: the data folder.
        out: the folder of the records.
        workers: processes at a time; 0 runs everything in this one.
        retry: whether runs that failed before are run again.
        pythons: interpreters of methods that cannot run in this one; needs workers.
    """

    tasks: Mapping[str, Maker]
    methods: Mapping[str, Method]
    sizes: Sequence[float]
    seeds: Sequence[int]
    tries: int
    data: Path
    out: Path
    workers: int
    retry: bool = False
    pythons: Mapping[str, str] = field(default_factory=dict)

    def tuning_jobs(self) -> list[Job]:
        """The tries, all of a task at one size and with the same seeds."""
        return [
            Job(task, name, seed, size if method.sized else None, number, True)
            for task in self.tasks
            for size in (TUNING_SIZES.get(task, TUNING_SIZE),)
            for seed in TUNING_SEEDS.get(task, (TUNING_SEED,))
            for name, method in self.methods.items()
            for number in range(min(self.tries, len(method.settings)))
        ]

    def final_jobs(self, chosen: Mapping[tuple[str, str], int]) -> list[Job]:
        """All sizes and seeds, the seeds outermost so that an early stop leaves a whole figure."""
        return [
            Job(task, name, seed, size, chosen[task, name])
            for seed in self.seeds
            for task in self.tasks
            for name, method in self.methods.items()
            for size in (self.sizes if method.sized else (None,))
            if (task, name) in chosen
        ]


def read(path: Path) -> dict[str, Any] | None:
    """A record, or None if there is none."""
    return json.loads(path.read_text()) if path.exists() else None


@dataclass(frozen=True)
class Trial:
    """What a setting came to, as means over seeds."""

    size: float
    validation: float


def trials(records: Sequence[dict[str, Any]]) -> dict[int, Trial]:
    """The settings that came to something with every seed, by number."""
    found: dict[int, list[dict[str, Any]]] = {}
    for record in records:
        found.setdefault(record["setting_number"], []).append(record)
    return {
        number: Trial(fmean(r["size"] for r in runs), fmean(r["validation"] for r in runs))
        for number, runs in found.items()
        if all(run["status"] == "ok" for run in runs)
    }


def choose(records: Sequence[dict[str, Any]], higher_is_better: bool) -> int | None:
    """The number of the best setting on validation; None if no try came to anything.

    Tries near the target size compete with each other; if none is, the smallest wins. Equal
    metrics go to the earlier setting.
    """
    tried = trials(records)
    if not tried:
        return None
    target = records[0]["target"]
    met = [n for n in tried if target is None or tried[n].size <= SIZE_TOLERANCE * target]
    if not met:
        return min(tried, key=lambda number: tried[number].size)
    sign = -1 if higher_is_better else 1
    return min(met, key=lambda number: sign * tried[number].validation)


def in_process(plan: Plan, job: Job) -> dict[str, Any]:
    """Run a job here."""
    method, task = plan.methods[job.method], plan.tasks[job.task](plan.data)
    return perform(job, method, task, plan.tries, plan.out)


def in_subprocess(plan: Plan, job: Job) -> dict[str, Any]:
    """Run a job in a process of its own, with one thread; one that dies leaves a failed record."""
    words = [plan.pythons.get(job.method, sys.executable), "-m", "benchmarks.frontier", "one"]
    words += ["--task", job.task, "--method", job.method, "--seed", str(job.seed)]
    words += ["--setting", str(job.setting), "--tries", str(plan.tries)]
    words += ["--data", str(plan.data.resolve()), "--out", str(plan.out.resolve())]
    if job.target is not None:
        words += ["--size", repr(job.target)]
    if job.tuning:
        words.append("--tuning")
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        status = subprocess.run(
            words, cwd=ROOT, env={**os.environ, **threads}, stdout=log, stderr=log, check=False
        ).returncode
        record = read(job.path(plan.out))
        if record is None:
            log.seek(0)
            head = heading(
                job, plan.methods[job.method], plan.tasks[job.task](plan.data), plan.tries
            )
            record = failed(head, f"the process ended with status {status}", log.read()[-4000:])
            save(record, job.path(plan.out))
    return record


def line(job: Job, record: dict[str, Any], done: int, total: int, seconds_left: float) -> str:
    """What is said when a run is done."""
    size = "" if job.target is None else f" {job.target:g}"
    kind = f"try {job.setting}, seed {job.seed}" if job.tuning else f"seed {job.seed}"
    if record["status"] == "ok":
        metric = record["validation"] if job.tuning else record["test"]
        came = f"{record['metric']} {metric:.4f} at {100 * record['size']:.1f} %"
    else:
        came = f"failed: {record['error']}"
    minutes, seconds = divmod(round(seconds_left), 60)
    what = f"{job.task} {job.method}{size} {kind}"
    return f"[{done}/{total}] {what}: {came}; {minutes}:{seconds:02} left"


def current(plan: Plan, job: Job) -> dict[str, Any] | None:
    """The record of this very run, or None: another setting in its place does not count."""
    found = read(job.path(plan.out))
    if found is None or (plan.retry and found["status"] == "failed"):
        return None
    setting = plan.methods[job.method].settings[job.setting]
    # As JSON gives it back: tuples are lists there.
    return found if found["setting"] == json.loads(json.dumps(dict(setting))) else None


def work(plan: Plan, jobs: Sequence[Job], say: Callable[[str], object]) -> list[dict[str, Any]]:
    """Run what is not done yet; the records in the order of the jobs."""
    waiting = [job for job in jobs if current(plan, job) is None]
    for job in waiting:
        job.path(plan.out).unlink(missing_ok=True)
    start = time.monotonic()

    def tell(job: Job, record: dict[str, Any], done: int) -> None:
        left = (time.monotonic() - start) / done * (len(waiting) - done)
        say(line(job, record, done, len(waiting), left))

    if plan.workers == 0:
        for done, job in enumerate(waiting, start=1):
            tell(job, in_process(plan, job), done)
    else:
        with ThreadPoolExecutor(plan.workers) as pool:
            running = {pool.submit(in_subprocess, plan, job): job for job in waiting}
            try:
                for done, future in enumerate(as_completed(running), start=1):
                    tell(running[future], future.result(), done)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return [record for job in jobs if (record := read(job.path(plan.out))) is not None]


def speak(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def run(plan: Plan, say: Callable[[str], object] = speak) -> None:
    """Tune, then run; what is in the folder already is kept."""
    plan.out.mkdir(parents=True, exist_ok=True)
    tried: dict[tuple[str, str], list[dict[str, Any]]] = {}
    jobs = plan.tuning_jobs()
    say(f"tuning: {len(jobs)} runs")
    for record in work(plan, jobs, say):
        tried.setdefault((record["task"], record["method"]), []).append(record)
    chosen: dict[tuple[str, str], int] = {}
    for (task, method), records in tried.items():
        number = choose(records, records[0]["metric"] == "accuracy")
        if number is None:
            say(f"{task} {method}: no setting came to anything: {records[0]['error']}")
        else:
            chosen[task, method] = number
            setting = dict(plan.methods[method].settings[number])
            value = trials(records)[number].validation
            say(f"{task} {method}: setting {number}, {value:.4f} on validation: {setting}")
    jobs = plan.final_jobs(chosen)
    say(f"final: {len(jobs)} runs")
    work(plan, jobs, say)
