"""docs/results.md: the rules that judge the papers' claims, and the page of records."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dualprox.files import write_csv, write_json, write_json_lines
from dualprox.lab import settings
from dualprox.lab.cli import main as dualprox
from dualprox.lab.experiments.published import TABLES
from dualprox.lab.experiments.results import Result, compare
from dualprox.lab.experiments.tables import ACCURACY, WEIGHTED_SPARSITY
from dualprox.timing import Budget
from papers import page, records, times
from papers.__main__ import RECORDS, add, main
from papers.claims import Claim, claims
from papers.rules import UNSTRUCTURED_SPARSITY as SINGLE
from papers.rules import (
    Verdict,
    allowance,
    beats_rigl,
    duels,
    solver_ratios,
    solver_verdicts,
    sparser,
    steadier,
    support_verdicts,
    unrest,
)
from test_data_sets import write_idx

DOCS = Path(__file__).parents[1] / "docs"


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


def only(found: list[Verdict]) -> Verdict:
    (verdict,) = found
    return verdict


@pytest.mark.parametrize(
    ("accuracy", "zero", "word"),
    [
        (0.990, 0.80, "confirmed"),
        # 2 sqrt((0.99 0.01 + 0.987 0.013) / 10000) is 0.302 points.
        (0.9871, 0.80, "confirmed"),
        (0.9868, 0.80, "not confirmed"),
        (0.990, 0.70, "not confirmed"),
        (0.995, 0.60, "not confirmed"),
    ],
)
def test_sparser_at_no_loss_is_asked_of_every_rival(accuracy, zero, word) -> None:
    """The sparsest rival and the most accurate one may be two."""
    found = [lenet("RMDA", accuracy, zero, "epoch_steps=9")]
    found += [lenet("ProxSGD", 0.990, 0.50, "epoch_steps=9")]
    found += [lenet("ProxSSI", 0.980, 0.70, "epoch_steps=9")]
    verdict = only([sparser(duel) for duel in duels(compare(found))])
    assert verdict.word == word and "(ProxSGD)" in verdict.figure
    assert verdict.experiment == "LeNet5/MNIST (shortened from 500 epochs to 6 of 9 steps)"
    assert "beside 70.00 (ProxSSI)" in verdict.figure and "beside 99.00 (ProxSGD)" in verdict.figure


def test_of_a_loss_the_lower_one_is_better() -> None:
    def ended(label: str, loss: float) -> Result:
        made = result("ramda-table5", label, 0.0, 0.5 if label == "ProxSGD" else 0.6)
        made.metrics[-1]["val_loss"] = loss
        return made

    for loss, word in ((0.4, "confirmed"), (0.6, "not confirmed")):
        comparisons = compare([ended("RAMDA", loss), ended("ProxSGD", 0.5)])
        assert only([sparser(duel) for duel in duels(comparisons)]).word == word


def test_runs_of_other_lengths_and_strengths_are_no_rivals() -> None:
    ours = lenet("RMDA", 0.99, 0.8)
    others = [
        lenet("ProxSGD", 0.99, 0.5, "epochs=7", "milestones=2"),
        lenet("ProxSGD", 0.99, 0.5, "epoch_steps=9"),
        lenet("ProxSGD", 0.99, 0.5, "penalty.strength=0.1"),
        lenet("Dense", 0.99, 0.0),
    ]
    assert duels(compare([ours, *others])) == []
    # Another solver is no other length.
    same = lenet("ProxSSI", 0.99, 0.5, "optimizer.solver.max_iter=5")
    assert len(duels(compare([ours, *others, same]))[0].rivals) == 1
    # With and without early stopping are two comparisons.
    stopping = [
        result("ramda-table1", f"{name}, {text}early stopping", 0.9, 0.8, block="VGG19/CIFAR10")
        for name in ("ProxGen", "RAMDA")
        for text in ("", "no ")
    ]
    pairs = [(d.ours.row.label, d.rivals[0].row.label) for d in duels(compare(stopping))]
    assert sorted(pairs) == [
        ("RAMDA, early stopping", "ProxGen, early stopping"),
        ("RAMDA, no early stopping", "ProxGen, no early stopping"),
    ]


def test_errors_are_those_of_seeds_or_of_counting() -> None:
    one = compare([logistic("RMDA", 0.90, 0.5), logistic("ProxSGD", 0.80, 0.5)])[0].lines
    expected = 200 * math.sqrt(0.9 * 0.1 / 10_000 + 0.8 * 0.2 / 10_000)
    assert allowance(one[0], one[1], ACCURACY) == pytest.approx(expected, rel=1e-12)
    assert allowance(one[0], one[1], WEIGHTED_SPARSITY) == 0
    more = [logistic("RMDA", 0.90, 0.5, "seed=2"), logistic("RMDA", 0.96, 0.5, "seed=3")]
    three = compare([logistic("RMDA", 0.90, 0.5), *more, logistic("ProxSGD", 1.0, 0.5)])[0].lines
    # 90, 90 and 96: a sample's standard deviation of sqrt(12); 100 % has no error of counting.
    assert allowance(three[1], three[0], ACCURACY) == pytest.approx(2 * math.sqrt(12 / 3))


def test_what_stands_still_moves_less_than_every_rival_in_both_ways() -> None:
    def judge(ours: list[float], jaccard: float, *others: tuple[list[float], float]) -> Verdict:
        rivals = zip(("ProxSGD", "ProxSSI"), others, strict=False)
        found = [lenet(name, 0.9, zero, jaccard=j) for name, (zero, j) in rivals]
        comparisons = compare([lenet("RMDA", 0.9, ours, jaccard=jaccard), *found])
        return only([steadier(duel) for duel in duels(comparisons)])

    still, moving = ([0.1, 0.9, 0.80, 0.81, 0.80], 0.99), ([0.2, 0.5, 0.5, 0.7, 0.6], 0.8)
    verdict = judge(*still, moving)
    assert verdict.word == "confirmed"
    assert verdict.figure == "1.00 points, 1.00 %; beside: ProxSGD 20.00 points, 20.00 %"
    assert judge(*moving, still).word == "not confirmed"
    assert judge(*still, still).word == "not confirmed"
    assert judge(*still, moving, still).word == "not confirmed"
    # As many groups as before, but others.
    assert judge(still[0], 0.7, moving).word == "not confirmed"
    short = [lenet(name, 0.9, 0.5, "epochs=3", "milestones=1") for name in ("RMDA", "ProxSGD")]
    assert only([steadier(duel) for duel in duels(compare(short))]).word == "not tested here"


def test_the_last_tenth_of_many_epochs_counts_and_means_are_over_seeds() -> None:
    fields = ("epochs=40", "milestones=10")
    zero = [0.9] * 8 + [0.1, 0.2, 0.3, 0.2]  # the last four
    made = [result("rmda-lenet5-mnist", "RMDA", 0.9, zero, *fields, jaccard=0.5)]
    still = [0.4] * 4
    made += [result("rmda-lenet5-mnist", "RMDA", 0.9, still, *fields, "seed=2", jaccard=0.7)]
    (line,) = compare(made)[0].lines
    assert line.row.label == "RMDA" and len(line.results) == 2
    column = TABLES["rmda-lenet5-mnist"].structure
    assert column is not None
    found = unrest(line, column)
    assert (found.span, found.moved) == (pytest.approx(10.0), pytest.approx(40.0))


@pytest.mark.parametrize(
    ("accuracy", "zero", "word"),
    [
        (0.9930, 0.983, "confirmed"),
        (0.9930, 0.9796, "confirmed"),  # as sparse, but for 0.05 points
        (0.9915, 0.983, "not confirmed"),  # which may be chance
        (0.9800, 0.983, "not confirmed"),
        (0.9930, 0.95, "not tested here"),
        (0.9800, 0.95, "not confirmed"),  # worse in both
    ],
)
def test_rigl_is_beaten_by_more_than_chance_at_no_fewer_zeros(accuracy, zero, word) -> None:
    found = [result("rigl-lenet5-mnist", "RMDA", accuracy, zero)]
    found += [result("rigl-lenet5-mnist", "RigL", 0.990, 0.98)]
    comparisons = compare(found)
    assert duels(comparisons) == []
    verdict = only([beats_rigl(duel) for duel in duels(comparisons, SINGLE)])
    assert verdict.word == word and verdict.experiment == "LeNet5/MNIST"
    # Of RigL with two settings the better one counts.
    found.append(result("rigl-lenet5-mnist", "RigL", 0.1, 0.98, "optimizer.drop_fraction=0.5"))
    assert [beats_rigl(duel) for duel in duels(compare(found), SINGLE)] == [verdict]


def test_times_are_judged_beside_proxssi_and_beside_the_dense_network() -> None:
    seconds = {"Adam": 1.0, "ProxSSI": 3.0, "ProxGen": 1.2, "RAMDA": 1.3, "RAMDA, exact": 1.1}
    found = [(v.method, v.word) for v in solver_ratios("x", seconds)]
    assert found == [
        ("ProxGen beside ProxSSI", "confirmed"),
        ("ProxGen beside dense", "confirmed"),
        ("RAMDA beside dense", "not confirmed"),
    ]
    slow = solver_ratios("x", {"ProxSSI": 1.9, "ProxGen": 1.0})
    assert [(v.word, v.figure) for v in slow] == [
        ("not confirmed", "ProxSSI takes 1.90 times as long")
    ]
    table, block = "ramda-table2", "VGG19/CIFAR10"
    runs = [
        result(table, name, 0.9, 0.5, "device=cuda", seconds=s, block=block)
        for name, s in (("ProxSSI", 3.0), ("ProxGen", 1.0))
    ]
    verdict = only(solver_verdicts(compare(runs), []))
    assert verdict.word == "confirmed" and verdict.experiment == "VGG19/CIFAR10 (cuda)"
    elsewhere = [runs[0], replace(runs[1], machine="another machine")]
    assert solver_verdicts(compare(elsewhere), []) == []


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


def test_a_support_is_right_where_all_of_it_is_with_every_seed() -> None:
    def words(correct: dict[str, list[float]], errors: dict[str, float]) -> list[str]:
        return [verdict.word for verdict in support_verdicts([], [planted(correct, errors)])]

    correct = {"RMDA": [1.0, 1.0], "RAMDA": [1.0, 0.99], "ProxSGD": [0.9, 1.0]}
    errors = {"RMDA": 0.1, "RAMDA": 0.11, "ProxSGD": 0.5}
    assert words(correct, errors) == [
        *("confirmed", "not confirmed"),
        *("confirmed", "not confirmed"),
    ]
    assert words(correct | {"ProxSGD": [1.0, 1.0]}, errors)[0] == "not confirmed"
    assert words(correct, errors | {"ProxSGD": 0.1})[2] == "not confirmed"
    runs = [logistic(name, 0.9, 0.5) for name in ("RMDA", "RAMDA", "ProxSGD")]
    for made, wrong in zip(runs, (0, 3, 170), strict=True):
        made.metrics[-1] |= {"objective_gap": 1e-5, "wrong_groups": wrong}
    found = support_verdicts(compare(runs), [])
    assert [verdict.word for verdict in found] == ["confirmed", "not confirmed"]
    assert found[1].figure == "3 groups are not as at the optimum; ProxSGD 170"


def test_a_claim_counts_its_verdicts_and_names_what_was_not_run() -> None:
    by_title = {claim.title[:4]: claim for claim in claims([], {})}
    assert all(not claim.verdicts for claim in by_title.values())
    rigl = by_title["RMDA"]
    assert isinstance(rigl, Claim) and {*by_title["Thei"].untested} >= {"LeNet5/MNIST"}
    named = [claim for claim in claims([], {}) if "RigL" in claim.title]
    assert named[0].untested == ("ResNet50/CIFAR10", "ResNet50/CIFAR100", "LeNet5/MNIST")
    found = [lenet("RMDA", 0.99, 0.8), lenet("ProxSGD", 0.99, 0.5)]
    first = claims(compare(found), {})[0]
    assert first.count("confirmed") == 1 and first.count("not confirmed") == 0
    assert "LeNet5/MNIST" not in first.untested and "LeNet5/FashionMNIST" in first.untested
    # A table without one of our methods tests nothing of them.
    assert "ViT/CIFAR10" in first.untested and first.untested.count("VGG19/CIFAR10") == 1


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
