"""`dualprox study planted`: what its files say, against runs made by hand."""

import csv
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

import dualprox as dp
from dualprox.lab.cli import main
from dualprox.lab.data.planted import planted_convolutions, planted_logistic
from dualprox.lab.experiments import planted_study, study_command
from dualprox.lab.experiments.planted_study import follow, variance_steps

pytestmark = pytest.mark.usefixtures("torch_as_before")


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def dead_or_live_as_planted(model: nn.Module, truth: dict[str, torch.Tensor]) -> float:
    weights = dict(model.named_parameters())
    right = [
        bool((weights[name][:, i] != 0).any()) == bool(live)
        for name, mask in truth.items()
        for i, live in enumerate(mask)
    ]
    return sum(right) / len(right)


@pytest.mark.parametrize("method", ["RMDA", "ProxSGD"])
def test_an_epoch_is_measured_at_the_structured_point_of_a_run_by_hand(method: str) -> None:
    """Without stages: the last stage's ramp is one plain assignment here."""
    made = planted_convolutions(3)
    model = made.start(3)
    groups = dp.param_groups(model, dp.GroupLasso(0.01), include=made.truth)
    opt = {"RMDA": dp.RMDA, "ProxSGD": dp.ProxSGD}[method](groups, lr=0.1)
    stages = dp.StageSchedule(opt, milestones=[], gamma=0.1)
    records = follow("convolutions", method, epochs=2, seed=3)
    assert [record.epoch for record in records] == [1, 2]
    for epoch, record in enumerate(records):
        for x, y in made.split.batches(64, 3, epoch):
            opt.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            opt.step()
        stages.step()
        with opt.structured(), torch.no_grad():
            told = model(made.split.x).argmax(1) == made.split.y
            val_told = model(made.split.val_x).argmax(1) == made.split.val_y
            assert record.support_correctness == dead_or_live_as_planted(model, dict(made.truth))
        assert record.train_accuracy == int(told.sum()) / 4000
        assert record.val_accuracy == int(val_told.sum()) / 1000


def test_dual_averaging_finds_the_support_and_its_error_vanishes(tmp_path: Path, capsys) -> None:
    args = ["study", "planted", "--problems", "logistic", "--seeds", "0,1", "--out", str(tmp_path)]
    assert main(args) == 0
    assert "RMDA     support 100.0% 100.0%" in capsys.readouterr().out
    rows = read(tmp_path / "planted-logistic.csv")
    assert len(rows) == 4 * 2 * 20
    last = {
        method: [
            float(row["support_correctness"])
            for row in rows
            if row["method"] == method and int(row["epoch"]) > 12
        ]
        for method in planted_study.METHODS
    }
    for method in ("RMDA", "RAMDA"):
        assert len(last[method]) == 16 and set(last[method]) == {1.0}
    for method in ("ProxSGD", "ProxGen"):
        assert min(last[method]) < 1
    errors = read(tmp_path / "planted-variance.csv")
    assert {row["seed"] for row in errors} == {"0", "1"} and len(errors) % 8 == 0
    late = {
        method: [
            sum(
                float(row[name])
                for row in errors
                if row["method"] == method and int(row["step"]) > 500
            )
            for name in ("estimate", "minibatch")
        ]
        for method in planted_study.METHODS
    }
    # All batches that are measured have one size.
    assert all(int(row["step"]) % 32 for row in errors)
    shares = {method: estimate / batch for method, (estimate, batch) in late.items()}
    assert max(shares["RMDA"], shares["RAMDA"]) < min(shares["ProxSGD"], shares["ProxGen"]) / 3
    # Zeros of the support that was planted, not of another.
    made = planted_logistic(0)
    assert int(made.truth["fc1.weight"].sum()) == 20
    plots = {path.name for path in tmp_path.glob("*.png")}
    assert plots == {"planted-logistic.png", "planted-variance.png"}


def test_steps_are_even_on_a_logarithmic_scale_and_end_at_the_last() -> None:
    steps = variance_steps(640)
    assert steps[0] == 1 and steps[-1] == 640 and steps == sorted(set(steps))
    ratios = [b / a for a, b in pairwise(steps[15:])]
    assert max(ratios) < 1.3 and len(steps) > 25
    assert variance_steps(1) == [1]


def test_every_problem_has_a_learning_rate_for_every_method() -> None:
    assert tuple(planted_study.PROBLEMS) == study_command._PROBLEMS
    for problem in planted_study.PROBLEMS.values():
        assert problem.lr.keys() == planted_study.METHODS.keys()


@pytest.mark.parametrize("wrong", [["--epochs", "0"], ["--seeds", ""], ["--seeds", "a"]])
def test_mistakes_cost_one_line(wrong: list[str], tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert main(["study", "planted", "--out", str(out), *wrong]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not out.exists()
