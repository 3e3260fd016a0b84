"""The papers' large networks on real data: a few hundred steps, then the same ones in two parts."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from dualprox.files import read_json_lines
from dualprox.lab import checkpoints, data, train
from dualprox.lab.data import imagenet
from dualprox.lab.settings import with_settings
from dualprox.lab.training import Training
from lab_runs import assert_same_run, finish
from test_tasks import of

FOLDER = os.environ.get("DUALPROX_DATA")
pytestmark = [
    pytest.mark.data,
    pytest.mark.slow,
    pytest.mark.skipif(FOLDER is None, reason="DUALPROX_DATA names no data folder"),
    pytest.mark.usefixtures("torch_as_before"),
    # Of other packages, and of processes that fork while other threads run.
    pytest.mark.filterwarnings("ignore"),
]
EXACT = ("optimizer.solver=none", "optimizer.momentum=0.9")
# What is shortened of a table's row of RAMDA; the strength is one that tells in so few steps.
SHORT = {
    "ramda-table3": (  # the network as published
        *("precision=float32", "batch_size=8", "epochs=4", "epoch_steps=50", "milestones=2"),
        *("optimizer.lr=0.01", "penalty.strength=1e-4", *EXACT),
    ),
    "ramda-table4": (  # all words of the text
        *("data=wikitext-2", "model.tokens=33278", "model.cutoffs=2000,10000"),
        *("model.width=64", "model.layers=4", "model.heads=4", "model.inner=256"),
        *("model.length=64", "model.memory_length=64"),
        *("batch_size=8", "epochs=5", "epoch_steps=50", "milestones=3"),
        *("optimizer.lr=0.005", "penalty.strength=1e-5", *EXACT),
    ),
    "ramda-table5": (  # 30 sentences, one at a time
        *("model.width=64", "model.prenet=32", "model.decoder=64", "model.postnet=64"),
        *("batch_size=1", "epochs=7", "milestones=3"),
        *("optimizer.lr=0.01", "penalty.strength=1e-4", *EXACT),
    ),
    "ramda-table9": (  # images as they are, with the published solver
        *("data=cifar10_first4000", "model.image=32", "model.patch=4", "model.mask_patch=8"),
        *("model.width=96", "model.inner=384"),
        *("batch_size=32", "epochs=5", "epoch_steps=50", "milestones=3"),
        *("optimizer.lr=0.01", "penalty.strength=1e-4"),
    ),
}
# The step that a killed run has saved last: within an epoch of each, before or after the restart.
KILLED = 135


@pytest.fixture
def image_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four classes of CIFAR-10 as ImageNet lies, twice as large; crops of 64 pixels, not 224."""
    split = data.load_split("cifar10_first4000", FOLDER)
    parts = (("train", split.x, split.y, 100), ("val", split.val_x, split.val_y, 25))
    for part, x, y, count in parts:
        for label in range(4):
            folder = tmp_path / "imagenet" / part / f"n{label}"
            folder.mkdir(parents=True)
            for number, pixels in enumerate(x[y == label][:count]):
                image = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((64, 64))
                image.save(folder / f"{number}.png")
    for name, value in (("SIZE", 64), ("RESIZED", 73), ("SHAPE", (3, 64, 64))):
        monkeypatch.setattr(imagenet, name, value)
    # Processes may begin without what was changed here.
    monkeypatch.setattr(data, "load", lambda *of, load=data.load: replace(load(*of), workers=0))
    return tmp_path


def keep_what_a_kill_leaves(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Copy a run's folder when it has saved after step `KILLED`; returns the steps, as they go."""
    steps: list[int] = []

    class Keeper(checkpoints.Keeper):
        def is_due(self) -> bool:
            steps.append(len(steps) + 1)
            return steps[-1] == KILLED

        def save(self) -> None:
            super().save()
            if steps[-1] == KILLED:
                shutil.copytree(self.folder, folder)

    monkeypatch.setattr(checkpoints, "Keeper", Keeper)
    return steps


@pytest.mark.parametrize("table", SHORT)
def test_a_large_network_learns_from_real_data_gets_sparse_and_resumes(
    table, request, tmp_path, monkeypatch
):
    if table == "ramda-table9":
        pytest.importorskip("transformers")
    place = request.getfixturevalue("image_folders") if table == "ramda-table3" else FOLDER
    run = with_settings(of(table, "RAMDA"), [f"data_dir={place}", *SHORT[table]])
    train.check(run)
    before = Training(run).evaluate()["val_loss"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with monkeypatch.context() as patch:
        steps = keep_what_a_kill_leaves(killed, patch)
        finish(whole, run)
    assert len(steps) >= 200
    rows = read_json_lines(whole / "metrics.jsonl")
    losses = [row["loss"] for row in rows]
    assert losses[-1] < 0.95 * losses[0], losses
    # At the structured point, as is all that follows.
    assert rows[-1]["val_loss"] < 0.85 * before, (before, rows)
    metric = "low_rank_level" if table == "ramda-table9" else "weighted_group_sparsity"
    levels = [row[metric] for row in rows]
    assert levels[0] + 0.15 < levels[-1] < 0.9, levels
    assert len(read_json_lines(killed / "metrics.jsonl")) < len(rows)
    torch.manual_seed(12345)
    finish(killed)
    assert_same_run(whole, killed)
