"""Runs that one and several processes must train alike."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

from torch import nn
from torch.nn import functional

from dualprox.lab import train
from dualprox.lab.experiments.published import TABLES
from dualprox.lab.recipes import RECIPES
from dualprox.lab.settings import Run, with_settings
from dualprox.lab.specs import RiglSpec
from dualprox.lab.training import Training
from test_tasks import SMALL
from tiny_data import write_images, write_speech, write_text

STOPPED = 2  # epochs of a run that is stopped


def write_data(folder: Path) -> None:
    """Everything that `runs` read."""
    for write in (write_images, write_speech, write_text):
        write(folder)


def runs(data: Path) -> dict[str, Run]:
    """By name; batches of digits leave 29 or 1 for the last one, so that shares are uneven."""
    mlp = ["epochs=3", "model.hidden=12", "baseline=none", "epoch_steps=45"]
    staged, place = "milestones=1,2", f"data_dir={data}"
    sgd = [*mlp, "milestones=", "schedule=cosine", "clip=0.5", "batch_size=1436"]
    sparse = RiglSpec(sparsity=0.6, delta_t=7, drop_fraction=0.5)
    conv = ["model.widths=6,8", "model.blocks=1", "coupled=true", "shrink_at_restart=true"]
    conv += [
        "epochs=3",
        staged,
        "batch_size=7",
        "threads=1",
        "penalty.strength=0.02",
        "baseline=none",
        place,
    ]
    text = [*SMALL["ramda-table4"], "model.dropout=0", "epochs=3", staged, place, "batch_size=3"]
    spoken = [*SMALL["ramda-table5"], "epochs=3", staged, place, "batch_size=5"]
    return {
        "ramda": with_settings(RECIPES["digits_mlp_ramda"](), [*mlp, staged]),
        "clipped": with_settings(RECIPES["digits_mlp_prox_sgd"](), sgd),
        "rigl": replace(
            with_settings(RECIPES["digits_mlp_dense"](), [*mlp, staged]), optimizer=sparse
        ),
        "convolutions": with_settings(RECIPES["cifar_resnet_ramda"](), conv),
        "text": with_settings(_of("ramda-table4"), text),
        "speech": with_settings(_of("ramda-table5"), spoken),
    }


def _of(table: str) -> Run:
    return next(row.run for row in TABLES[table].rows if row.label == "RAMDA")


@contextlib.contextmanager
def without_dropout() -> Iterator[None]:
    """Its random numbers differ from process to process, and so would the runs."""
    with (
        mock.patch.object(nn.Dropout, "forward", lambda self, x: x),
        mock.patch.object(functional, "dropout", lambda x, *settings, **named: x),
    ):
        yield


def go_on(folder: Path, until: int | None = None) -> None:
    """Train the run of a folder, all of it or up to an epoch."""
    epoch = Training.train_epoch

    def stopping(training: Training) -> dict[str, object]:
        if training.epoch == until:
            raise KeyboardInterrupt
        return epoch(training)

    stop = mock.patch.object(Training, "train_epoch", stopping)
    with without_dropout(), stop, contextlib.suppress(KeyboardInterrupt):
        train.go_on(folder, lambda run, row: None)
