"""The command line makes networks smaller: at the end of a run, within one, and afterwards."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import dualprox as dp
from dualprox.lab.cli import main
from dualprox.lab.folders import read_run
from dualprox.lab.networks import example_input, make_model
from dualprox.lab.recipes import RECIPES
from dualprox.lab.slim import shrink_run
from dualprox.lab.training import Training

SHORT = ["--set", "epochs=4", "milestones=1,3", "model.hidden=24,12", "baseline=none"]
SHORT += ["penalty.strength=2e-3"]


pytestmark = pytest.mark.usefixtures("torch_as_before")


def test_a_run_ends_with_a_smaller_network_that_scores_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert main(["train", "--out", str(folder), *SHORT, "coupled=true"]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["params_dense"] == 64 * 24 + 24 + 24 * 12 + 12 + 12 * 10 + 10
    assert summary["params_slim"] < summary["params_dense"]
    assert summary["macs_slim"] < summary["macs_dense"] == 64 * 24 + 24 * 12 + 12 * 10
    assert summary["latency_dense_ms"] > 0 and summary["latency_slim_ms"] > 0
    assert summary["slim_max_abs_diff"] < 1e-4
    run = read_run(folder)
    slim = dp.load_slim(make_model(run), folder).eval()
    dense = make_model(run).eval()
    dense.load_state_dict(load_file(folder / "model.safetensors"))
    x = example_input(run)
    torch.testing.assert_close(slim(x), dense(x))
    assert (folder / "shrink.png").stat().st_size > 5000
    report = json.loads((folder / "shrink.json").read_text())
    assert report["after"]["parameters"] == summary["params_slim"]


def test_a_network_of_low_rank_ends_thin(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ["epochs=3", "milestones=1,2", "baseline=none", "penalty.strength=2e-2"]
    assert main(["train", "digits_mlp_lowrank", "--out", str(folder), "--set", *options]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["params_slim"] < summary["params_dense"]
    run = read_run(folder)
    assert (
        sum(p.numel() for p in dp.load_slim(make_model(run), folder).parameters())
        == (summary["params_slim"])
    )


def test_a_run_that_shrinks_as_it_goes_ends_with_the_same_bits_when_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*SHORT, "coupled=true", "shrink_at_restart=true"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main(["train", "--out", str(whole), *options]) == 0
    epoch = Training.train_epoch

    def until_the_third(self):
        if self.epoch == 3:
            raise KeyboardInterrupt
        return epoch(self)

    monkeypatch.setattr(Training, "train_epoch", until_the_third)
    assert main(["train", "--out", str(stopped), *options]) == 130
    monkeypatch.undo()
    assert main(["train", "--resume", str(stopped)]) == 0
    for name in ("metrics.jsonl", "model.safetensors", "plan.json", "slim.safetensors"):
        assert (whole / name).read_bytes() == (stopped / name).read_bytes()
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    shares = [row["weighted_group_sparsity"] for row in rows]
    assert 0 < shares[0] <= shares[-1] < 1  # what has left counts
    # The weights kept are those of a smaller network than the recipe's.
    weights = load_file(whole / "model.safetensors")
    assert weights["fc1.weight"].shape[0] < 24
    slim = dp.load_slim(make_model(read_run(whole)), whole)
    assert slim.get_parameter("fc1.weight").shape[0] <= weights["fc1.weight"].shape[0]


def test_the_shrink_command_writes_what_it_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder, out = tmp_path / "run", tmp_path / "slim"
    assert main(["train", "--out", str(folder), *SHORT, "coupled=true"]) == 0
    options = ["--out", str(out), "--round-to", "4", "--onnx", "--program"]
    assert main(["shrink", str(folder), *options]) == 0
    printed = capsys.readouterr().out
    assert "parameters" in printed and "onnxruntime's outputs differ" in printed
    written = {path.name for path in out.iterdir()}
    assert written == {
        "slim.safetensors", "plan.json", "shrink.json", "shrink.png", "slim.onnx", "slim.pt2",
    }  # fmt: skip
    slim = dp.load_slim(make_model(read_run(folder)), out)
    assert slim.get_parameter("fc2.weight").shape[1] % 4 == 0


def test_the_shrink_command_lets_layers_select_pixels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "run", tmp_path / "slim"
    assert main(["train", "--out", str(folder), *SHORT]) == 0
    assert main(["shrink", str(folder), "--out", str(out), "--select-inputs"]) == 0
    run = read_run(folder)
    weights = load_file(folder / "model.safetensors")
    live = (weights["fc1.weight"] != 0).any(0)
    assert 0 < int(live.sum()) < 64
    slim: Any = dp.load_slim(make_model(run), out).eval()
    assert 0 < slim.fc1.in_features <= int(live.sum())
    assert f"selects {slim.fc1.in_features} of 64 inputs" in capsys.readouterr().out
    dense = make_model(run).eval()
    dense.load_state_dict(weights)
    x = example_input(run)
    torch.testing.assert_close(slim(x), dense(x))


def test_inputs_are_not_selected_where_layers_are_factorized(tmp_path: Path) -> None:
    run = RECIPES["digits_mlp_lowrank"]()
    with pytest.raises(ValueError, match="select_inputs must be False for NuclearNorm"):
        shrink_run(run, make_model(run), dp.Plan(), tmp_path, select_inputs=True)


def test_an_unfinished_run_is_not_shrunk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["shrink", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err
