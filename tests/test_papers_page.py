"""docs/results.md: the page of records, and the records."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from dualprox.files import write_csv, write_json, write_json_lines
from dualprox.lab.cli import main as dualprox
from dualprox.lab.experiments.published import TABLES
from dualprox.lab.experiments.results import compare
from dualprox.timing import Budget
from papers import page, records, times
from papers.__main__ import RECORDS, add, main
from papers.rules import solver_verdicts
from papers_results import lenet
from test_data_sets import write_idx

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Files like MNIST's, of noise with one bright pixel for each class."""
    import numpy as np

    rng, folder = np.random.default_rng(0), tmp_path / "data"
    folder.mkdir()
    for part, count in (("train", 200), ("t10k", 50)):
        labels = rng.integers(0, 10, count)
        images = rng.integers(0, 30, (count, 28, 28))
        images[range(count), labels, labels] = 255
        write_idx(folder / "mnist" / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / "mnist" / f"{part}-labels-idx1-ubyte.gz", labels)
    return folder


@pytest.mark.usefixtures("torch_as_before")
def test_a_page_is_made_of_records_without_the_folders_they_came_from(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, kept = tmp_path / "runs", tmp_path / "kept"
    args = [
        "reproduce",
        "ramda-table7",
        "--rows",
        "logistic_*rmda",
        "logistic_*sgd",
        "--seeds",
        "1",
    ]
    fields = [f"data_dir={data_dir}", "epochs=4", "batch_size=20", "penalty.strength=0.05"]
    assert dualprox([*args, "--out", str(runs), "--set", *fields]) == 0
    command = ["add", str(runs), "--commit", "abcdef0123", "--records", str(kept)]
    assert main([*command, "--optimum", str(tmp_path / "optimum")]) == 0
    assert len(list(kept.glob("logistic_mnist_*-shortened-seed1.json"))) == 2
    assert str(tmp_path) not in "".join(path.read_text() for path in kept.glob("*.json"))

    from dualprox.lab.experiments.results import gather

    found = records.read(kept)
    ours = compare([records.result_of(record) for record in records.of_kind(found, "run")])
    (theirs,) = compare(gather([runs])[0])
    assert ours[0].cells() == theirs.cells() and ours[0].notes() == theirs.notes()
    (best,) = records.of_kind(found, "optimum")
    assert 0 < best["live"] < best["groups"] == 784 and 0 <= best["gap"] <= 1e-7
    assert best["strongest_dead"] < 1 + 1e-3 and best["weakest_live"] > 0

    page.write(kept, tmp_path / "docs")
    text = (tmp_path / "docs" / "results.md").read_text()
    assert "abcdef0" in text and f"{best['live']} of 784 groups live" in text
    for name in re.findall(r"\]\((results/[^)]+)\)", text):
        assert (tmp_path / "docs" / name).stat().st_size > 1000
    wrong = [len(line.split(" | ")) for line in text.splitlines() if line.startswith("| ProxSGD")]
    assert wrong == [8]

    (runs / "logistic_mnist_rmda-shortened-seed1" / "summary.json").unlink()
    capsys.readouterr()
    assert main(command) == 0
    assert "unfinished, left out" in capsys.readouterr().out
    path = kept / "logistic_mnist_prox_sgd-shortened-seed1.json"
    write_json(path, json.loads(path.read_text()) | {"run": {}})
    assert main(command) == 2
    assert "is of a run with other settings" in capsys.readouterr().err


def test_a_study_of_planted_supports_is_kept(tmp_path: Path) -> None:
    rows = [
        {
            "problem": problem,
            "method": method,
            "seed": seed,
            "epoch": epoch,
            "support_correctness": 0.25 * epoch,
            "train_accuracy": 0.5,
            "val_accuracy": 0.125 * seed,
        }
        for problem in records.PLANTED
        for method in ("RMDA", "RAMDA", "ProxSGD")
        for seed in (0, 1)
        for epoch in (1, 2)
    ]
    for problem in records.PLANTED:
        mine = [row for row in rows if row["problem"] == problem]
        write_csv(tmp_path / f"planted-{problem}.csv", mine)
    errors = [
        {"method": row["method"], "seed": 0, "step": step, "estimate": 1 / step, "minibatch": 2.0}
        | {"gradient": 3.0}
        for row in rows[::4]
        for step in (1, 10)
        if row["problem"] == "logistic"
    ]
    write_csv(tmp_path / "planted-variance.csv", errors)
    add([tmp_path], "abcdef0", None, tmp_path / "kept")
    (record,) = records.read(tmp_path / "kept")
    assert [vars(each) for each in records.planted_epochs(record)] == rows
    found = records.planted_errors(record)
    assert {name: [[vars(e) for e in run] for run in runs] for name, runs in found.items()} == {
        name: [
            [
                {"step": step, "estimate": 1 / step, "minibatch": 2.0, "gradient": 3.0}
                for step in (1, 10)
            ]
        ]
        for name in ("RMDA", "RAMDA", "ProxSGD")
    }
    page.write(tmp_path / "kept", tmp_path / "docs")
    text = (tmp_path / "docs" / "results.md").read_text()
    assert "| convolutions | RMDA | 50.0, 50.0 | 50.0, 50.0 |" in text
    assert "| RMDA | 50.0 % | 5.0 % |" in text


def test_no_seconds_are_lost(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    write_json_lines(folder / "timing.jsonl", [{"epoch": n, "seconds": n} for n in range(1, 7)])
    made = replace(lenet("RMDA", 0.9, 0.123456789), folder=folder, seconds=3.5)
    record = json.loads(records.as_text(records.record_of(made, "abcdef0")))
    back = records.result_of(record)
    assert back.seconds == 3.5 and back.run == made.run and back.table == made.table
    assert back.metrics[-1]["group_sparsity"] == 0.1234568
    assert [row["epoch"] for row in back.metrics] == [1, 2, 3, 4, 5, 6]


@pytest.mark.usefixtures("torch_as_before")
def test_every_solver_is_timed_on_the_same_network_and_penalty(data_dir: Path) -> None:
    fields = [f"data_dir={data_dir}", "threads=1", "batch_size=10"]
    budget = Budget(seconds=0.0, least=1, most=1)
    record = json.loads(json.dumps(times.measure("lenet5_mnist", fields, 1, budget)))
    assert record["network"] == "LeNet5/MNIST" and record["steps_per_epoch"] == 20
    assert {*record["seconds"]} == {
        *("Adam", "ProxSGD", "RMDA", "ProxSSI", "ProxGen", "ProxGen, no early stopping"),
        *("ProxGen, exact", "RAMDA", "RAMDA, no early stopping", "RAMDA, exact"),
    }
    assert all(each["median"] > 0 for each in record["seconds"].values())
    row = TABLES["rmda-lenet5-mnist"].row("lenet5_mnist_prox_ssi")
    assert row is not None
    runs = times.contenders(row.run)
    assert runs.pop("Adam").penalty is None
    assert all(run.penalty == row.run.penalty and run.data == "mnist" for run in runs.values())
    never, early = runs["ProxGen, no early stopping"].optimizer, runs["ProxGen"].optimizer
    assert never != early and getattr(never, "solver").rtol == 0  # noqa: B009
    verdicts = solver_verdicts([], [record])
    assert len(verdicts) == 3 and "LeNet5/MNIST (steps alone, cpu)" == verdicts[0].experiment
    assert "| RAMDA, exact |" in "\n".join(page.times_section([record]))


@pytest.mark.parametrize("hash_", ["main", "abcdefg", "abc"])
def test_a_commit_is_a_hash(hash_: str, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["add", str(tmp_path), "--commit", hash_])
    assert "must be a hash of git's" in capsys.readouterr().err


def test_the_committed_page_is_made_of_the_committed_records() -> None:
    text = (DOCS / "results.md").read_text()
    assert text == page.text_of(records.read(RECORDS)), "run `python -m benchmarks.papers write`"
    pictures = re.findall(r"\]\((results/[^)]+)\)", text)
    assert pictures and {DOCS / name for name in pictures} == {*DOCS.glob("results/*")}
