"""`dualprox fit`: a recipe's network in the size that is named, and the exit code that says so."""

import json
from pathlib import Path

import pytest
import torch

import dualprox as dp
from dualprox.lab import settings
from dualprox.lab.cli import main
from dualprox.lab.data.digits import digits
from dualprox.lab.fit_run import Batches
from dualprox.lab.networks import make_model
from dualprox.lab.recipes import RECIPES

SHORT = ["--epochs", "4", "--set", "model.hidden=24"]

pytestmark = pytest.mark.usefixtures("torch_as_before")


def test_the_network_in_the_folder_has_the_size_and_scores_as_told(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "fit"
    args = ["fit", "digits_mlp_ramda", "--params", "0.4", "--out", str(folder), *SHORT]
    assert main([*args, "optimizer.lr=0.02"]) == 0
    printed = capsys.readouterr().out
    assert "params 40.00%" in printed and ", reached" in printed and "fit's lr" in printed
    for name in ("slim.safetensors", "plan.json", "shrink.json", "shrink.png"):
        assert (folder / name).stat().st_size
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert {"stage", "size", "strength", "val_accuracy", "val_loss"} <= rows[0].keys()
    config = json.loads((folder / "config.json").read_text())
    slim = dp.load_slim(make_model(settings.from_json(config["run"])), folder).eval()
    share = sum(p.numel() for p in slim.parameters()) / (64 * 24 + 24 + 24 * 10 + 10)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["reached"] == share <= 0.4 * 1.03
    split = digits()
    with torch.no_grad():
        hits = slim(split.val_x).argmax(1) == split.val_y
    found = float(hits.double().mean())
    assert found == summary["val_accuracy"] == rows[-1]["val_accuracy"]
    assert summary["chosen"]["lr"] == 0.02 and summary["latency_slim_ms"] > 0

    assert main(["show", str(folder)]) == 0
    assert "params 40.00%" in capsys.readouterr().out
    for command in (["train", "--resume"], ["path", "--resume"], ["shrink"]):
        assert main([*command, str(folder)]) == 2
        assert "made by `dualprox" in capsys.readouterr().err


@pytest.mark.parametrize(
    "target",
    [
        ["--macs", "800"],
        ["--weighted-group-sparsity", "0.5"],
        ["--latency-ms", "1000"],
        ["--nonzeros", "0.2"],
    ],
)
def test_other_sizes_can_be_asked_for(target: list[str], tmp_path: Path) -> None:
    args = ["fit", "digits_mlp_rmda", *target, "--out", str(tmp_path / "fit"), *SHORT]
    assert main([*args, "--seed", "1"]) == 0
    summary = json.loads((tmp_path / "fit" / "summary.json").read_text())
    reached, value = summary["reached"], summary["target"]["value"]
    assert summary["is_reached"] and summary["seed"] == 1
    if target[0] == "--weighted-group-sparsity":
        assert reached >= value * 0.97
    else:
        assert reached <= value * 1.03


def test_a_size_that_no_network_has_is_refused_before_training(tmp_path: Path, capsys) -> None:
    """The 64 inputs and the ten outputs stay: five parameters cannot be had."""
    args = ["fit", "digits_mlp_ramda", "--params", "5", "--out", str(tmp_path / "fit"), *SHORT]
    assert main(args) == 2
    assert "params=5 cannot be reached" in capsys.readouterr().err


def test_too_little_sparsity_is_not_taken_for_a_small_network() -> None:
    """Half of the groups have to stay: a sparsity of 0.9 cannot be had."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    loader = [(torch.randn(32, 8), torch.randint(2, (32,))) for _ in range(8)]
    target = dp.TargetSize(weighted_group_sparsity=0.9, at_least={"*": 0.5})
    found = dp.fit(model, loader, 4, target, latency=False)
    assert 0.3 < found.reached <= 0.5 and not found.is_reached and found.notes


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["digits_mlp_ramda"], "one of params, macs, latency_ms, weighted_group_sparsity, non"),
        (["digits_mlp_ramda", "--params", "0.1", "--macs", "9"], "exactly one of params, macs"),
        (["digits_mlp_ramda", "--params", "small"], "--params must be a number, got 'small'"),
        (["digits_mlp_ramda", "--params", "1.5"], "params must be a share in (0, 1] or an int"),
        (["digits_mlp_ramda", "--macs", "0"], "macs must be a share in (0, 1] or an int >= 1"),
        (["digits_mlp_ramda", "--latency-ms", "nan"], "latency_ms must be a number > 0, got nan"),
        (["digits_mlp_ramda", "--weighted-group-sparsity", "1"], "must be in [0, 1), got 1.0"),
        (["digits_mlp_ramda", "--params", "0.1", "--tolerance", "0"], "tolerance must be"),
        (["digits_mlp_ramda", "--params", "0.1", "--epochs", "1"], "epochs must be an int >= 2"),
        (["digits_mlp", "--params", "0.1"], "there is no recipe 'digits_mlp'; did you mean"),
        (["digits_mlp_dense", "--params", "0.1"], "optimizer must be RamdaSpec or RmdaSpec"),
        (["digits_mlp_prox_sgd", "--params", "0.1"], "optimizer must be RamdaSpec or RmdaSpec"),
        (["digits_mlp_lowrank", "--params", "0.1"], "penalty must be one of groups for a fit"),
        (["digits_mlp_lowrank", "--nonzeros", "0.1"], "one of groups or entries for nonzeros"),
        (["fsdd_conv1d_ramda", "--params", "0.1"], "data_dir must be a folder that holds fsdd/"),
        (
            ["digits_mlp_ramda", "--params", "0.1", "--set", "milestones=1"],
            "milestones is decided by fit itself",
        ),
        (
            ["digits_mlp_ramda", "--params", "0.1", "--set", "penalty.strength=1"],
            "penalty.strength is decided by fit itself",
        ),
        (["digits_mlp_ramda", "--params", "0.1", "--set", "epocs=3"], "did you mean epochs?"),
    ],
)
def test_mistakes_cost_one_line_and_leave_nothing(args, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *args]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_every_pass_over_the_batches_has_its_own_order() -> None:
    run, split = RECIPES["digits_mlp_ramda"](), digits()
    batches = Batches(run, split)
    first, second = ([labels for _, labels in batches] for _ in range(2))
    assert len(batches) == len(first) == len(second)
    assert torch.cat(first).bincount().equal(torch.cat(second).bincount())
    assert not torch.cat(first).equal(torch.cat(second))
    expected = [labels for _, labels in split.batches(run.batch_size, run.seed, 2)]
    assert all(map(torch.equal, second, expected))
