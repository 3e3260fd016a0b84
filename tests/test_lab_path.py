"""`dualprox path`: rows, warm starts, the knee, going on after a kill, mistakes."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import dualprox as dp
from dualprox.lab.cli import main
from dualprox.lab.data.digits import digits
from dualprox.lab.folders import read_run
from dualprox.lab.networks import make_model
from dualprox.lab.path.curve import knee
from dualprox.lab.slim import shrink_run
from dualprox.lab.training import Training

SMALL = ["--set", "epochs=4", "milestones=1,2", "model.hidden=24"]
SHORT = [*SMALL, "baseline=none"]

pytestmark = pytest.mark.usefixtures("torch_as_before")


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "path.jsonl").read_text().splitlines()]


def accuracy(model: nn.Module) -> float:
    split = digits()
    with torch.no_grad():
        hits = model.eval()(split.val_x).argmax(1) == split.val_y
    return float(hits.double().mean())


def largest_group(model: nn.Module) -> float:
    """max_g ||G_g|| / sqrt(size_g) over columns, of the loss of all digits at once, float64."""
    split = digits()
    model = model.double()
    nn.functional.cross_entropy(model(split.x.double()), split.y).backward()
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    return max(
        float((w.grad.square().sum(0) / w.shape[0]).sqrt().max())  # pyright: ignore
        for w in weights
    )


def test_a_row_says_what_its_slim_network_is(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "path"
    args = ["path", "digits_mlp_ramda", "--strengths", "0.5,0.02,0.1", "--refit", "1"]
    assert main([*args, "--select-inputs", "--out", str(folder), *SMALL]) == 0
    printed = capsys.readouterr().out
    rows = rows_of(folder)
    assert [row["fraction"] for row in rows] == [0.02, 0.1, 0.5]
    assert [row["epochs"] for row in rows] == [4, 2, 2]
    # The weakest point comes first; it alone begins at random weights.
    assert not (folder / "01" / "start.safetensors").exists()
    torch.manual_seed(0)
    unit = largest_group(make_model(read_run(folder / "01")))
    for number, row in enumerate(rows, start=1):
        point = folder / row["point"]
        run = read_run(point)
        assert row["strength"] == pytest.approx(row["fraction"] * unit, rel=1e-6)
        assert run.penalty is not None and run.penalty.own_strength() == row["strength"]
        slim = dp.load_slim(make_model(run), point)
        size = sum(param.numel() for param in slim.parameters())
        whole = 64 * 24 + 24 + 24 * 10 + 10
        assert row["params"] == size and row["params_share"] == size / whole
        assert row["macs_share"] == row["macs"] / (64 * 24 + 24 * 10)
        assert row["val_accuracy"] == accuracy(slim)
        refit = dp.load_slim(make_model(run), point / "refit")
        assert row["refit_val_accuracy"] == accuracy(refit)
        assert sum(param.numel() for param in refit.parameters()) == size
        if number > 1:
            before = folder / f"{number - 1:02}" / "model.safetensors"
            assert (point / "start.safetensors").read_bytes() == before.read_bytes()
        assert row["point"] in printed
    assert rows[2]["params"] < rows[0]["params"]
    with open(folder / "path.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(line["val_loss"]) for line in table] == [row["val_loss"] for row in rows]
    assert (folder / "path.png").read_bytes().startswith(b"\x89PNG")
    dense = json.loads((folder / "dense" / "metrics.jsonl").read_text().splitlines()[-1])
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["dense_val_accuracy"] == dense["val_accuracy"]

    assert main(["path", "--resume", str(folder)]) == 0
    assert "is finished already" in capsys.readouterr().out
    assert main(["show", str(folder)]) == 0
    assert f"path: {folder}" in capsys.readouterr().out
    assert main(["train", "--resume", str(folder)]) == 2
    assert "was made by `dualprox path`" in capsys.readouterr().err


def test_a_warm_start_begins_at_the_weights_of_the_file(tmp_path: Path) -> None:
    """At a learning rate of nearly nothing the first epoch ends where it began."""
    options = ["--strengths", "0.001,0.002", "--out", str(tmp_path / "path")]
    assert main(["path", "digits_mlp_rmda", *options, *SHORT, "optimizer.lr=1e-12"]) == 0
    first, second = (load_file(tmp_path / "path" / n / "model.safetensors") for n in ("01", "02"))
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("recipe", ["digits_mlp_lowrank", "digits_mlp_ramda"])
def test_low_rank_and_coupled_groups_have_paths_too(recipe: str, tmp_path: Path) -> None:
    coupled = [] if recipe == "digits_mlp_lowrank" else ["coupled=true", "epochs=9"]
    options = ["--strengths", "2", "--from", "1", "--to", "0.01", "--out", str(tmp_path / "path")]
    assert main(["path", recipe, *options, *SHORT, *coupled]) == 0
    weak, strong = rows_of(tmp_path / "path")
    assert strong["params"] < weak["params"]
    kind = "low_rank_level" if recipe == "digits_mlp_lowrank" else "weighted_group_sparsity"
    assert strong[kind] > weak[kind]


def same_files(one: Path, other: Path) -> None:
    names = {str(p.relative_to(one)) for p in one.rglob("*") if p.suffix != ".pt"}
    names -= {name for name in names if name.endswith("timing.jsonl")}
    assert len([name for name in names if name.endswith(".safetensors")]) >= 3
    for name in names:
        if (one / name).is_file():
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_a_path_stopped_in_or_behind_a_point_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    args = ["path", "digits_mlp_ramda", "--strengths", "3", "--refit", "1", *SHORT]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main([*args, "--out", str(whole)]) == 0
    epoch, place = Training.train_epoch, "dualprox.lab.path.sweep.shrink_run"

    def stop_in_the_last_point(self):
        if self.epoch == 1:
            raise KeyboardInterrupt
        return epoch(self)

    def stop_behind_the_second(*args, **kwargs):
        if len(rows) == 1:
            raise KeyboardInterrupt
        rows.append(0)
        return shrink_run(*args, **kwargs)

    rows: list[int] = []
    monkeypatch.setattr(place, stop_behind_the_second)
    assert main([*args, "--out", str(stopped)]) == 130
    assert f"go on with: dualprox path --resume {stopped}" in capsys.readouterr().err
    assert len(rows_of(stopped)) == 1
    assert main(["show", str(stopped)]) == 0
    assert "unfinished, 1 of 3 strengths" in capsys.readouterr().out
    monkeypatch.setattr(place, shrink_run)
    monkeypatch.setattr(Training, "train_epoch", stop_in_the_last_point)
    torch.manual_seed(12345)
    assert main(["path", "--resume", str(stopped)]) == 130
    monkeypatch.undo()
    assert main(["path", "--resume", str(stopped)]) == 0
    same_files(whole, stopped)


def farthest(sizes: list[float], accuracies: list[float]) -> int:
    """The point with the largest distance to the line through the ends, by the cross product."""
    x = [math.log(s / min(sizes)) / math.log(max(sizes) / min(sizes)) for s in sizes]
    low, high = min(accuracies), max(accuracies)
    y = [(a - low) / (high - low) for a in accuracies]
    first, last = sizes.index(min(sizes)), sizes.index(max(sizes))
    u, v = x[last] - x[first], y[last] - y[first]
    away = [u * (b - y[first]) - v * (a - x[first]) for a, b in zip(x, y, strict=True)]
    return max(range(len(x)), key=lambda i: away[i] / math.hypot(u, v))


@pytest.mark.parametrize("kink", range(1, 8))
def test_the_knee_of_two_straight_lines_is_where_they_meet(kink: int) -> None:
    sizes = [2.0**i for i in range(9)]
    accuracies = [0.2 + 0.1 * min(i, kink) + 0.01 * max(0, i - kink) for i in range(9)]
    assert knee(sizes, accuracies) == kink == farthest(sizes, accuracies)
    # Neither the order of the points nor the units of either axis matter.
    order = [3, 8, 0, 6, 1, 7, 4, 2, 5]
    found = knee([7 * sizes[i] for i in order], [50 * accuracies[i] - 3 for i in order])
    assert found is not None and order[found] == kink


def test_the_knee_agrees_with_distances_to_the_chord_on_rough_curves() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        sizes = torch.rand(12, generator=generator).mul(6).exp().tolist()
        accuracies = [
            1 - 0.9 / (1 + s) + 0.02 * float(torch.rand((), generator=generator)) for s in sizes
        ]
        assert knee(sizes, accuracies) == farthest(sizes, accuracies)


@pytest.mark.parametrize(
    ("sizes", "accuracies"),
    [
        ([1, 2], [0.1, 0.9]),
        ([1, 1, 2, 2], [0.1, 0.2, 0.9, 0.8]),
        ([1, 10, 100], [0.5, 0.5, 0.5]),
        ([1, 10, 100], [0.1, 0.2, 0.3]),
        ([1, 10, 100], [0.1, 0.15, 0.9]),
    ],
)
def test_a_curve_that_never_rises_above_its_chord_has_no_knee(sizes, accuracies) -> None:
    assert knee(sizes, accuracies) is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "path needs a recipe"),
        (["digits_mlp_ramd"], "did you mean digits_mlp_ramda?"),
        (["digits_mlp_dense"], "penalty must be one with a strength"),
        (["digits_mlp_ramda", "--strengths", "1"], "strengths must be an int >= 2, got 1"),
        (["digits_mlp_ramda", "--strengths", "many"], "--strengths must be a whole number or"),
        (["digits_mlp_ramda", "--strengths", "0.1,-1"], "strengths must be different numbers > 0"),
        (["digits_mlp_ramda", "--strengths", "0.1,0.1"], "strengths must be different numbers"),
        (["digits_mlp_ramda", "--strengths", "0.1,1", "--to", "2"], "go with a number of"),
        (["digits_mlp_ramda", "--from", "0"], "from must be a number > 0, got 0.0"),
        (["digits_mlp_ramda", "--from", "0.1", "--to", "0.1"], "to must be another number"),
        (["digits_mlp_ramda", "--share", "0"], "share must be in (0, 1], got 0"),
        (["digits_mlp_ramda", "--refit", "-1"], "refit must be an int >= 0, got -1"),
        (["digits_mlp_lowrank", "--select-inputs"], "select_inputs must be false without groups"),
        (["digits_mlp_ramda", "--set", "epochs=0"], "epochs must be an int >= 1, got 0"),
        (["fsdd_conv1d_ramda"], "data_dir must be a folder that holds fsdd/fsdd.npz"),
        (["--resume", "nowhere"], "nowhere is not a run folder: it has no config.json"),
        (["--resume", "x", "--strengths", "3"], "--resume takes everything from its folder"),
    ],
)
def test_mistakes_cost_one_line_and_leave_nothing(args, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["path", *args]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_run_folder_or_a_damaged_one_is_no_path(tmp_path: Path, capsys) -> None:
    assert main(["train", "--out", str(tmp_path / "run"), *SHORT]) == 0
    assert main(["path", "--resume", str(tmp_path / "run")]) == 2
    assert "was not made by `dualprox path`" in capsys.readouterr().err
    assert main(["path", "digits_mlp_ramda", "--out", str(tmp_path / "run"), *SHORT]) == 2
    assert "is not empty" in capsys.readouterr().err
    (tmp_path / "run" / "config.json").write_text('{"command": "path", "run": {}}')
    assert main(["path", "--resume", str(tmp_path / "run")]) == 2
    assert "is damaged" in capsys.readouterr().err
