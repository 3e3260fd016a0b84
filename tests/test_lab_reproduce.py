"""`dualprox reproduce` and `report`: what is trained, what goes on, what is said of it."""

import base64
import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dualprox.lab import folders, settings
from dualprox.lab.cli import main
from dualprox.lab.experiments import command, reproduce, results
from dualprox.lab.experiments.figures import plot_epochs
from dualprox.lab.experiments.page import write_report
from dualprox.lab.experiments.published import TABLES, table_with
from dualprox.lab.experiments.tables import ACCURACY, SECONDS, WEIGHTED_SPARSITY, Value
from dualprox.lab.recipes import RECIPES
from dualprox.lab.training import Training
from test_data_sets import write_idx, write_images

pytestmark = pytest.mark.usefixtures("torch_as_before")

TABLE = TABLES["ramda-table7"]
RMDA = "logistic_mnist_rmda"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files like MNIST's: ten patterns under noise, on pixels some of which are never inked."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    blobs = rng.integers(0, 256, (10, 28, 28)) * (rng.random((10, 28, 28)) < 0.02)
    inked = rng.random((28, 28)) < 0.5
    for part, count in (("train", 300), ("t10k", 100)):
        labels = rng.integers(0, 10, count)
        noisy = blobs[labels] + rng.normal(0, 120, (count, 28, 28))
        images = np.clip(noisy * inked, 0, 255)
        write_idx(folder / "mnist" / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / "mnist" / f"{part}-labels-idx1-ubyte.gz", labels)
    return folder


def wish(data_dir: Path, out: Path, *more: str, rows: str = RMDA, epochs: int = 5) -> list[str]:
    args = ["reproduce", TABLE.name, "--rows", rows, "--out", str(out)]
    fields = [f"data_dir={data_dir}", f"epochs={epochs}", "batch_size=10"]
    return [*args, "--set", *fields, *more]


def last(folder: Path) -> dict:
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])


def record(folder: Path) -> list[dict[str, str]]:
    with open(folder / f"{TABLE.name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_says_what_its_runs_came_to_beside_what_was_published(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table"
    args = wish(data_dir, out, "penalty.strength=0.02", epochs=4)
    assert main([*args, "--seeds", "1,4"]) == 0
    printed = capsys.readouterr().out
    runs = [out / f"{RMDA}-shortened-seed{seed}" for seed in (1, 4)]
    (line,) = record(out)
    row = TABLE.row(RMDA)
    assert row is not None
    rows = [last(folder) for folder in runs]
    assert line["recipe"] == row.run.recipe and line["seeds"] == "1 4"
    assert line["mark"] == "shortened" and line["epochs"] == "4"
    for metric in ("val_accuracy", "weighted_group_sparsity"):
        ours = [100 * each[metric] for each in rows]
        assert float(line[f"{metric}_ours_mean"]) == pytest.approx(sum(ours) / 2, abs=1e-12)
        spread = abs(ours[0] - ours[1]) / 2**0.5
        assert float(line[f"{metric}_ours_std"]) == pytest.approx(spread, abs=1e-12)
        published = row.published[metric]
        assert float(line[f"{metric}_published_mean"]) == published.mean
        assert f"{published.mean:.2f}" in printed
    run = folders.read_run(runs[0])
    assert run.milestones == (1, 2, 3) and run.seed == 1
    assert 0 < last(runs[0])["weighted_group_sparsity"] < 1
    assert last(runs[0])["val_accuracy"] < 1
    changed = "penalty.strength=0.02 (published: 0.001), epochs=4 (published: 500), "
    changed += "batch_size=10 (published: 128), "
    changed += "milestones=[1, 2, 3] (published: [100, 200, 300, 400])"
    config = json.loads((out / "config.json").read_text())
    assert len(config["runs"]) == 2
    for each in config["runs"].values():
        assert ", ".join(each["changed"]) == changed
    page, text = (out / "report.html").read_text(), (out / "report.md").read_text()
    for where in (printed, page, text):
        assert changed in where and "(shortened)" in where
        assert "29 rows were not run" in where
    assert 'src="data:image/png;base64,' in page and "http" not in page
    plots = sorted(out.glob("*.png"))
    assert [p.stem.rpartition("-")[2] for p in plots] == ["epochs", "last"]
    inlined = re.findall(r"base64,([^\"]+)", page)
    assert sorted(map(base64.b64decode, inlined)) == sorted(p.read_bytes() for p in plots)

    assert main(["show", str(out)]) == 0
    assert changed in capsys.readouterr().out
    assert main(["train", "--resume", str(out)]) == 2
    assert "was made by `dualprox reproduce`" in capsys.readouterr().err


def test_a_table_stopped_in_its_second_run_ends_with_the_same_bits(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    seeds = ["--seeds", "1,2"]
    assert main([*wish(data_dir, whole), *seeds]) == 0
    epoch = Training.train_epoch

    def stop_in_the_second(self):
        if self.run.seed == 2 and self.epoch == 3:
            raise KeyboardInterrupt
        return epoch(self)

    monkeypatch.setattr(Training, "train_epoch", stop_in_the_second)
    assert main([*wish(data_dir, stopped), *seeds]) == 130
    assert f"{stopped} goes on with the same command" in capsys.readouterr().err
    assert main(["show", str(stopped)]) == 0
    assert "unfinished, 1 of 2 runs" in capsys.readouterr().out
    monkeypatch.undo()
    trained: list[tuple[int, int]] = []

    def watched(self):
        trained.append((self.run.seed, self.epoch + 1))
        return epoch(self)

    monkeypatch.setattr(Training, "train_epoch", watched)
    torch.manual_seed(12345)
    assert main([*wish(data_dir, stopped), *seeds]) == 0
    assert "finished already" in capsys.readouterr().out
    assert trained == [(2, 4), (2, 5)]
    # The same content can be pickled in other bytes, and a checkpoint is named by their sum.
    names, theirs = (
        {str(p.relative_to(f)) for p in f.rglob("*") if p.is_file() and p.suffix != ".pt"}
        for f in (whole, stopped)
    )
    assert names == theirs
    for name in names:
        if name.endswith(("metrics.jsonl", ".safetensors", ".csv", "report.md")):
            assert (whole / name).read_bytes() == (stopped / name).read_bytes(), name


def test_a_table_of_our_own_counts_the_zeros_of_both_methods(
    data_dir: Path, tmp_path: Path
) -> None:
    name = "rigl-lenet5-mnist"
    fields = [f"data_dir={data_dir}", "epochs=2", "milestones=1", "batch_size=20"]
    assert main(["reproduce", name, "--out", str(tmp_path), "--set", *fields]) == 0
    with open(tmp_path / f"{name}.csv", newline="") as file:
        dense, rmda, rigl = csv.DictReader(file)
    column = "unstructured_sparsity_ours_mean"
    assert dense[column] == "" and float(rigl[column]) == pytest.approx(98, abs=0.01)
    saved = last(tmp_path / "lenet5_mnist_short_l1_rmda-shortened-seed1")
    assert float(rmda[column]) == pytest.approx(100 * saved["unstructured_sparsity"])
    assert all(line["val_accuracy_published_mean"] == "" for line in (dense, rmda, rigl))


def result(recipe: str, accuracy: float, *assignments: str, table: str | None = None):
    """What a finished run of so many epochs would have left."""
    known = TABLES[table or TABLE.name].row(recipe)
    run = settings.with_settings(known.run if known else RECIPES[recipe](), list(assignments))
    names = ("val_accuracy", "weighted_group_sparsity", "group_sparsity")
    metrics = [{"epoch": n + 1, **dict.fromkeys(names, accuracy)} for n in range(run.epochs)]
    return results.Result(run, table, metrics, seconds=1.5, caveat="", machine="a machine")


def test_runs_that_differ_in_more_than_seeds_are_never_taken_together(tmp_path: Path) -> None:
    """Three epochs, four, another lr and the published run are four lines of one row."""
    three, four = ["epochs=3", "milestones=1"], ["epochs=4", "milestones=1"]
    found = [
        result(RMDA, 0.5, *three, "seed=2"),
        result(RMDA, 0.7, *three, "seed=1"),
        result(RMDA, 0.8, *four, "seed=2"),
        result(RMDA, 0.9, *three, "optimizer.lr=0.2", "seed=3"),
        result(RMDA, 0.95, "seed=3"),
        result(RMDA, 0.97, "seed=1", "data_dir=x", "threads=2"),
        result(RMDA, 0.97, "seed=1"),
    ]
    (comparison,) = results.compare(found)
    write_report([comparison], tmp_path)
    lines = record(tmp_path)
    assert [(line["seeds"], line["epochs"], line["mark"]) for line in lines] == [
        ("1 2", "3", "shortened"),
        ("2", "4", "shortened"),
        ("3", "3", "shortened"),
        ("1 3", "500", ""),
    ]
    means = [float(line["val_accuracy_ours_mean"]) for line in lines]
    assert means == pytest.approx([60, 80, 90, 96])
    assert "optimizer.lr=0.2 (published: 0.1)" in lines[2]["changed"]
    assert lines[1]["val_accuracy_ours_std"] == lines[3]["changed"] == ""
    labels = [cells[1] for cells in comparison.cells()[1:]]
    assert labels == ["RMDA (shortened)"] * 3 + ["RMDA"]


def test_times_come_with_their_machine_where_a_table_has_times() -> None:
    recipe = "vgg19_cifar10_prox_gen"
    names = ("ramda-table2", "ramda-table7")
    two, seven = results.compare([result(recipe, 0.9, table=name) for name in names])
    assert (two.table.name, seven.table.name) == names
    assert "1.5" in two.cells()[1] and "24.0" in two.cells()[1]
    assert any("times are those of a machine" in note for note in two.notes())
    assert not any("machine" in note for note in seven.notes())
    assert "seconds" not in "".join(seven.records()[0])


def test_a_table_without_accuracy_is_drawn_by_what_it_has() -> None:
    made = result("transformer_xl_wikitext103_ramda", 0.5, table="ramda-table4")
    for row in made.metrics:
        row["val_perplexity"] = 30.0
    (comparison,) = results.compare([made])
    figure = plot_epochs(comparison.table, "x", list(comparison.lines))
    assert figure is not None
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels == ["perplexity", "weighted group sparsity (%)"]
    assert all(len(axes.lines) == 1 for axes in figure.axes)
    neither = replace(comparison.table, columns=(SECONDS,))
    assert plot_epochs(neither, "x", list(comparison.lines)) is None


def test_a_published_run_is_marked_by_nothing_and_scaled_by_nothing() -> None:
    row = TABLE.row(RMDA)
    assert row is not None
    moved = settings.with_settings(row.run, ["seed=7", "threads=3", "data_dir=x"])
    assert reproduce.changes(moved, row.run) == () and reproduce.mark(moved, row.run) == ""
    assert reproduce.changed(row, ["epochs=500"]) == row.run
    longer = reproduce.changed(row, ["epochs=1000"])
    assert longer.milestones == (200, 400, 600, 800)
    assert reproduce.mark(longer, row.run) == "changed"
    assert reproduce.changed(row, ["epochs=50", "milestones=9,10"]).milestones == (9, 10)
    other = settings.with_settings(row.run, ["penalty.strength=2e-3"])
    assert reproduce.changes(other, row.run) == ("penalty.strength=0.002 (published: 0.001)",)
    assert reproduce.mark(other, row.run) == "changed"


def test_exact_takes_the_solver_away_where_there_is_one_and_says_so() -> None:
    for row in TABLE.rows:
        run = reproduce.changed(row, ["epochs=10"], exact=True)
        solver = getattr(row.run.optimizer, "solver", None)
        assert getattr(run.optimizer, "solver", None) is None
        told = reproduce.changes(run, row.run)
        if solver is None:
            assert run == reproduce.changed(row, ["epochs=10"])
        else:
            assert f"optimizer.solver=None (published: {type(solver).__name__})" in told


def test_a_run_that_diverges_does_not_keep_the_others_from_training(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    epoch = Training.train_epoch

    def diverge(self):
        if self.run.recipe == RMDA and self.epoch == 1:
            raise FloatingPointError("the loss is nan")
        return epoch(self)

    monkeypatch.setattr(Training, "train_epoch", diverge)
    assert main(wish(data_dir, tmp_path, rows="logistic_mnist_r*da", epochs=2)) == 1
    captured = capsys.readouterr()
    assert f"{RMDA}-shortened-seed1: the loss is nan" in captured.err
    assert f"unfinished, left out: {tmp_path / RMDA}" in captured.out
    assert [line["recipe"] for line in record(tmp_path)] == ["logistic_mnist_ramda"]
    # Where all runs fail, there is nothing to report.
    assert main(wish(data_dir, tmp_path / "alone", epochs=2)) == 1
    assert not (tmp_path / "alone" / "report.md").exists()


def test_seconds_are_the_median_epochs(data_dir: Path, tmp_path: Path) -> None:
    assert main(wish(data_dir, tmp_path, epochs=3)) == 0
    found, unfinished = results.gather([tmp_path])
    assert not unfinished and len(found) == 1
    folder = tmp_path / f"{RMDA}-shortened-seed1"
    lines = (folder / "timing.jsonl").read_text().splitlines()
    timing = [json.loads(line)["seconds"] for line in lines]
    assert found[0].seconds == sorted(timing)[1]
    assert found[0].machine


def test_runs_of_other_recipes_stand_beside_nothing(tmp_path: Path) -> None:
    short = ["epochs=3", "milestones=1,2"]
    found = [result("digits_mlp_ramda", 0.1 * n, *short, f"seed={n}") for n in (1, 2)]
    comparisons = results.compare([*found, result(RMDA, 0.5)])
    assert [comparison.table.name for comparison in comparisons] == ["ramda-table7", "other"]
    write_report(comparisons, tmp_path)
    with open(tmp_path / "other.csv", newline="") as file:
        (line,) = csv.DictReader(file)
    assert float(line["val_accuracy_ours_mean"]) == pytest.approx(15)
    assert line["val_accuracy_published_mean"] == "" and line["mark"] == "shortened"


def test_a_value_reads_what_tables_print_and_prints_it() -> None:
    assert Value.parsed("72.34±11.9") == Value(72.34, 11.9)
    three = Value.of([2.0, 4.0, 9.0])
    assert (three.mean, three.std) == (5.0, pytest.approx(13**0.5))
    assert Value.of([2.0]).text(1) == "2.0"


def test_list_and_show_know_the_tables(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*TABLES, *RECIPES))
    for table in TABLES.values():
        assert main(["show", table.name]) == 0
        printed = capsys.readouterr().out
        for row in table.rows:
            assert row.run.recipe in printed
            for value in row.published.values():
                assert value.text(table.digits) in printed
    assert main(["show", RMDA]) == 0
    row = TABLE.row(RMDA)
    assert row is not None
    assert settings.from_json(json.loads(capsys.readouterr().out)) == row.run
    assert {ACCURACY, WEIGHTED_SPARSITY} == set(TABLE.columns)
    assert command.table_named("ramda-table7") is TABLE


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["ramda-table77"], "there is no table 'ramda-table77'; did you mean ramda-table7?"),
        (["ramda-table7", "--rows", "logistic"], "rows must be recipes of ramda-table7 (* stands"),
        (["ramda-table7", "--seeds", "one"], "--seeds must be whole numbers with commas"),
        (["ramda-table7", "--seeds", "1,1"], "seeds must be different numbers, got (1, 1)"),
        (["ramda-table7", "--rows", RMDA, "--set", "epochs=0"], "epochs must be an int >= 1"),
        (["ramda-table7", "--rows", RMDA, "--set", "epoch=1"], "did you mean epochs?"),
        (["ramda-table7", "--rows", RMDA], "data_dir must be a folder that holds mnist/"),
    ],
)
def test_mistakes_cost_one_line_and_leave_nothing(args, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *args]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_folders_of_something_else_are_refused_and_left_as_they_are(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(wish(data_dir, out, epochs=2)) == 0
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert main(wish(data_dir, out, epochs=3)) == 2
    assert "epochs=2, not 3" in capsys.readouterr().err
    other = ["reproduce", "ramda-table1", "--rows", "logistic*", "--out", str(out)]
    assert main([*other, "--set", f"data_dir={data_dir}"]) == 2
    assert "was not made for ramda-table1" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert main(["report", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err
    assert main(["report", str(out), "--out", str(tmp_path / "new")]) == 0
    (out / f"{RMDA}-shortened-seed1" / "summary.json").unlink()
    capsys.readouterr()
    assert main(["report", str(out)]) == 2
    captured = capsys.readouterr()
    assert "unfinished, left out" in captured.out and "no finished run in" in captured.err


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["lenet5_mnist_prox_ssi", "mlp_fashion_mnist_nuclear_ramda", "vgg19_cifar10_rmda"],
)
def test_a_row_of_each_network_is_trained_cut_and_told(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder in ("mnist", "fashion-mnist"):
        for part, count in (("train", 64), ("t10k", 10)):
            start = tmp_path / folder / "files"
            images, labels = rng.integers(0, 256, (count, 28, 28)), rng.integers(0, 10, count)
            write_idx(start.with_name(f"{part}-images-idx3-ubyte.gz"), images)
            write_idx(start.with_name(f"{part}-labels-idx1-ubyte.gz"), labels)
    for part, count in (("train", 4), ("test", 2)):
        images = rng.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)
        write_images(tmp_path / "cifar10" / f"cifar10_{part}_jpeg.npz", images, range(count))
    table = table_with(name)
    assert table is not None
    out = tmp_path / "out"
    args = ["reproduce", table.name, "--rows", name, "--seeds", "1", "--out", str(out)]
    assert main([*args, "--set", f"data_dir={tmp_path}", "epochs=2"]) == 0
    assert (out / f"{name}-shortened-seed1" / "slim.safetensors").exists()
    text = (out / "report.md").read_text()
    assert ("lossy JPEG" in text) == ("cifar10" in name)
