"""`dualprox train` as torchrun starts it: what is printed, refused, restarted and given up."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dualprox.lab import folders, ranks, train
from dualprox.lab.checkpoints import listed
from dualprox.lab.cli import main
from dualprox.lab.recipes import RECIPES
from dualprox.lab.settings import with_settings
from processes import environment, started
from test_ranks import assert_alike

pytestmark = [
    pytest.mark.usefixtures("torch_as_before"),
    pytest.mark.skipif(
        not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
        reason="torch was built without gloo",
    ),
]
FAILING = Path(__file__).with_name("failing_rank.py")
SHORT = ("epochs=3", "milestones=1,2", "model.hidden=12", "baseline=none")


def torchrun(*command):
    """A finished `torchrun` of two processes."""
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*starter, "--nproc-per-node=2", *map(str, command)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.promise(
    "faults", "a run whose process is killed (kill -9) goes on by itself under torchrun"
)
def test_torchrun_restarts_a_killed_run_which_goes_on_and_prints_once(tmp_path):
    alone, folder = tmp_path / "alone", tmp_path / "run"
    train.start(with_settings(RECIPES["digits_mlp_ramda"](), list(SHORT)), alone)
    train.go_on(alone, lambda run, row: None)
    options = ["train", "--out", folder, "--set", *SHORT]
    done = torchrun("--max-restarts=1", FAILING, "kill", *options)
    assert done.returncode == 0, done.stderr
    assert_alike(folder, alone)
    # Epoch 2 is shown again by the processes that go on from it.
    shown = [line.split("epoch")[1].split("/")[0].strip() for line in done.stdout.splitlines()[:4]]
    assert shown == ["1", "2", "2", "3"]
    assert done.stdout.count(f"run folder: {folder}") == 1
    again = torchrun("-m", "dualprox", "train", "--resume", folder)
    assert again.returncode == 0 and again.stdout.count("is finished already") == 1
    refused = torchrun("-m", "dualprox", *options)
    assert refused.returncode == 1 and refused.stderr.count("is not empty; continue it") == 1


@pytest.mark.promise("faults", "a failure on any process ends all of them, with one message")
@pytest.mark.parametrize(
    ("how", "codes", "message"),
    [
        ("raise", [1, 1], "dualprox: one process alone has failed"),
        ("kill", [1, -9], "dualprox: another process of this run is gone"),
    ],
)
def test_a_failing_process_ends_all_with_one_message(how, codes, message, tmp_path):
    folder = tmp_path / "run"
    done = started(2, FAILING, how, "train", "--out", folder, "--set", *SHORT)
    assert [code for code, _, _ in done] == codes, done
    errors = "".join(error for _, _, error in done)
    assert errors.count("dualprox: ") == errors.count(message) == 1, errors
    assert "Traceback" not in errors
    assert done[0][1].count("epoch   2/3") == 1 and done[1][1] == ""
    assert listed(folder)[0].name.startswith("epoch-2-step-0-")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fit", "digits_mlp_ramda", "--params", "0.1"], "fit is for one process: run it without"),
        (["doctor"], "doctor is for one process"),
        (["train", "--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
@pytest.mark.parametrize("rank", ["0", "1"])
def test_what_is_no_work_for_several_is_refused_once(args, message, rank, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    try:
        code = main(args)
    except SystemExit as left:
        code = left.code
    assert code == 2
    assert (message in capsys.readouterr().err) == (rank == "0")


def test_only_the_torchrun_that_made_a_folder_goes_on_with_it(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    args = ["train", "--out", str(folder), "--set", *SHORT]
    for name, value in (("MAX_RESTARTS", "3"), ("RESTART_COUNT", "0"), ("RUN_ID", "mine")):
        monkeypatch.setenv(f"TORCHELASTIC_{name}", value)
    assert main(["train", "--set", *SHORT]) == 2
    assert "--max-restarts needs --out DIR" in capsys.readouterr().err
    assert main(args) == 0
    assert folders.marked_launch(folder) == ranks.launch() == "mine"
    assert main(args) == 2
    assert "is not empty" in capsys.readouterr().err
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert main(args) == 0
    assert "is finished already" in capsys.readouterr().out
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
    assert main(args) == 2
    assert "is not empty" in capsys.readouterr().err
    (folder / "launch.json").write_text("[]")
    assert main(args) == 2
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert ranks.launch() != "none"


def test_weights_that_came_apart_end_the_run(monkeypatch):
    monkeypatch.setattr(ranks, "world", lambda: 2)

    def other_is_larger(extremes, op):
        extremes[0] += 1

    monkeypatch.setattr(torch.distributed, "all_reduce", other_is_larger)
    with pytest.raises(FloatingPointError, match="after epoch 3 the processes have different"):
        ranks.require_same([torch.ones(2)], "after epoch 3")
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda extremes, op: None)
    ranks.require_same([torch.ones(2)], "after epoch 3")
