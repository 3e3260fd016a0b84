"""What runs learn beside classes: each task trained in small, stopped, resumed and told."""

import json
import math
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch.nn import functional

from dualprox.lab import train
from dualprox.lab.data import DataError
from dualprox.lab.data.wikitext import segments
from dualprox.lab.experiments.published import TABLES
from dualprox.lab.networks import make_model
from dualprox.lab.report import rows, write_report
from dualprox.lab.settings import Run, with_settings
from dualprox.lab.specs import ProxAdamwSpec, RamdaSpec
from dualprox.lab.tasks import Language, MaskedImages, Speech, task_of
from dualprox.lab.tasks.masked_images import hidden_patches
from dualprox.lab.training import Training
from tiny_data import write_images, write_speech, write_text

pytestmark = [
    pytest.mark.usefixtures("torch_as_before"),
    # Of other packages, and of processes that fork while other threads run.
    pytest.mark.filterwarnings("ignore"),
]
SMALL = {
    "ramda-table4": (
        *("model.tokens=12", "model.width=8", "model.layers=2", "model.heads=2", "model.inner=12"),
        *("model.cutoffs=5", "model.length=16", "model.memory_length=24"),
        *("data=wikitext-2", "batch_size=4", "epoch_steps=15"),
    ),
    "ramda-table5": (
        *("model.width=8", "model.prenet=4", "model.decoder=8", "model.postnet=8"),
        "batch_size=4",
    ),
    "ramda-table9": (
        *("model.image=32", "model.patch=4", "model.mask_patch=8", "model.width=8"),
        *("model.layers=1", "model.heads=2", "model.inner=12", "batch_size=8"),
    ),
}
WRITE = {"ramda-table4": write_text, "ramda-table5": write_speech, "ramda-table9": write_images}
ROWS = [
    pytest.param(name, row.run, id=row.run.recipe) for name in SMALL for row in TABLES[name].rows
]


def small(table: str, run: Run, data_dir: object, *more: str) -> Run:
    """A published run in a minute's worth of it."""
    if table == "ramda-table9":
        pytest.importorskip("transformers")
    times = ["epochs=3", "milestones=1,2" if run.milestones else "milestones="]
    return with_settings(run, [*SMALL[table], *times, f"data_dir={data_dir}", *more])


def of(table: str, label: str) -> Run:
    return next(row.run for row in TABLES[table].rows if row.label == label)


def network(run: Run) -> Any:
    return make_model(run)


def task(kind: type, run: Run) -> Any:
    assert task_of(run) is kind
    return kind(run)


@pytest.mark.parametrize(("table", "published"), ROWS)
def test_a_published_row_in_small_trains_resumes_to_the_same_bits_and_is_told(
    table, published, tmp_path
):
    WRITE[table](tmp_path)
    run = small(table, published, tmp_path)
    train.check(run)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train.start(run, whole)
    training = train.go_on(whole, lambda run, row: None)

    def stop(run: Run, row: dict[str, Any]) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    train.start(run, stopped)
    with pytest.raises(KeyboardInterrupt):
        train.go_on(stopped, stop)
    torch.manual_seed(12345)
    train.go_on(stopped, lambda run, row: None)
    for name in ("metrics.jsonl", "model.safetensors"):
        assert (whole / name).read_bytes() == (stopped / name).read_bytes()
    metrics = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(row["val_loss"]) for row in metrics)
    told = dict(rows(write_report(training, whole)))
    label = "perplexity" if table == "ramda-table4" else "validation loss"
    assert f"{label} at the structured point" in told


def test_lr_falls_with_every_step_along_a_line_or_a_cosine(tmp_path):
    write_text(tmp_path)
    run = small("ramda-table4", of("ramda-table4", "ProxSGD"), tmp_path, "optimizer.lr=1.0")
    training = Training(run)
    rates = []
    step = training.step
    training.step = lambda: (rates.append(training.opt.param_groups[0]["lr"]), step())[1]
    for _ in range(run.epochs):
        training.train_epoch()
    cosine = [(1 + math.cos(math.pi * t / 45)) / 2 for t in range(45)]
    assert rates == pytest.approx(cosine, abs=1e-12)
    linear = Training(replace(run, schedule="linear", warmup=5))
    linear.train_epoch()
    # After 15 of 45 steps: 10 of the 40 that it falls in.
    assert linear.opt.param_groups[0]["lr"] == pytest.approx(0.75)


def test_a_language_task_reads_on_where_the_epoch_before_ended_and_remembers(tmp_path):
    write_text(tmp_path)
    run = small("ramda-table4", of("ramda-table4", "RAMDA"), tmp_path)
    ours = task(Language, run)
    # 375 words in each of four rows; the last segment is short.
    assert len(ours) == 24
    shapes, seen = [], []
    for epoch in (1, 2):
        for words, _ in islice(ours.batches(epoch), 15):
            seen.append(words)
            shapes.append(words.shape[1])
    corpus = ours.corpus
    first = [words for words, _ in corpus.batches(4, 16, run.seed, 1)]
    second = [words for words, _ in corpus.batches(4, 16, run.seed, 2)]
    assert all(map(torch.equal, seen, [*first, *second[:6]])) and shapes[23] < 16
    assert (ours.round, ours.taken) == (2, 6)
    model = network(run)
    ours.load_state_dict({"round": 1, "taken": 0, "memory": None})
    batch = first[0], first[1]
    plain = ours.loss(model.eval(), batch)
    again = ours.loss(model, batch)
    assert plain != again and ours.memory.shape == (2, 4, 24, 8)
    # A new pass begins with nothing remembered.
    ours.taken = len(ours)
    next(ours.batches(3))
    assert ours.memory is None and ours.taken == 1


def test_perplexity_is_that_of_every_validation_word_given_what_came_before(tmp_path):
    write_text(tmp_path)
    more = ("model.memory_length=400", "model.cutoffs=")
    run = small("ramda-table4", of("ramda-table4", "Adam"), tmp_path, *more)
    ours, model = task(Language, run), network(run).double()
    found = ours.evaluate(model)
    # With room for everything, a row of 18 words is one segment.
    (words, targets), *none = segments(ours.corpus.validation, 16, 300)
    assert not none and words.shape == (16, 17)
    hidden, _ = model.hidden(words)
    scores = hidden @ model.embedding.weight.T + model.softmax.bias
    wanted = functional.cross_entropy(scores.flatten(0, 1), targets.flatten()).item()
    assert found["val_loss"] == pytest.approx(wanted, rel=1e-6)
    assert found["val_perplexity"] == pytest.approx(math.exp(wanted), rel=1e-6)


def test_a_text_with_more_words_than_the_network_is_refused(tmp_path):
    write_text(tmp_path)
    run = small("ramda-table4", of("ramda-table4", "Adam"), tmp_path, "model.tokens=9")
    with pytest.raises(DataError, match=r"model\.tokens must be at least the 10 words of wikite"):
        Training(run)


def test_the_validation_loss_of_speech_is_a_mean_over_frames(tmp_path):
    write_speech(tmp_path)
    run = small("ramda-table5", of("ramda-table5", "RMDA"), tmp_path)
    ours, model = task(Speech, run), network(run)
    ours.recordings = replace(ours.recordings, val=torch.arange(3), workers=0)
    model.decoder.prenet.rate = 0.0
    together = ours.evaluate(model)["val_loss"]
    losses, frames = [], []
    for place in range(3):
        ours.recordings = replace(ours.recordings, val=torch.tensor([place]))
        losses.append(ours.evaluate(model)["val_loss"])
        frames.append(len(ours.recordings.sentences[place][1][0]))
    wanted = sum(a * b for a, b in zip(losses, frames, strict=True)) / sum(frames)
    assert together == pytest.approx(wanted, rel=1e-5) and len(set(frames)) == 3


@pytest.mark.parametrize(("cell", "ratio", "cells"), [(2, 0.6, 30), (1, 0.5, 98), (2, 1.0, 49)])
def test_the_same_number_of_square_cells_is_hidden_in_each_image(cell, ratio, cells):
    hidden = hidden_patches(20, 14, cell, ratio, torch.Generator().manual_seed(0))
    assert hidden.shape == (20, 196) and hidden.dtype == torch.bool
    squares = hidden.view(20, 14 // cell, cell, 14 // cell, cell).transpose(2, 3).flatten(3)
    assert torch.equal(squares.any(-1), squares.all(-1))
    assert (squares.any(-1).flatten(1).sum(1) == cells).all()
    assert ratio == 1 or not torch.equal(hidden[0], hidden[1])


def test_masked_images_hold_out_the_same_part_and_validate_alike_each_time(tmp_path):
    write_images(tmp_path)
    run = small("ramda-table9", of("ramda-table9", "AdamW"), tmp_path)
    ours = task(MaskedImages, run)
    assert (len(ours), len(ours.split), len(ours.split.val_x)) == (5, 34, 6)
    other = task(MaskedImages, replace(run, seed=7))
    assert torch.equal(ours.split.val_x, other.split.val_x)
    model = network(run)
    assert ours.evaluate(model) == ours.evaluate(model) == other.evaluate(model)
    (x, hidden), (y, _) = next(ours.batches(1)), next(ours.batches(2))
    assert x.shape == (8, 3, 32, 32) and -1 <= x.min() < -0.5 and 0.5 < x.max() <= 1
    assert not torch.equal(x, y) and torch.equal(x, next(ours.batches(1))[0])
    # As it stands: the mean absolute error on hidden pixels.
    with torch.no_grad():
        out = model(x, bool_masked_pos=hidden).reconstruction
        pixels = hidden.view(-1, 8, 8).repeat_interleave(4, 1).repeat_interleave(4, 2)
        wanted = (out - x).abs().permute(0, 2, 3, 1)[pixels].mean()
        assert ours.loss(model, (x, hidden)).item() == pytest.approx(wanted.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("table", "assignment", "message"),
    [
        ("ramda-table4", "augment=true", "augment must be false for data=wikitext-2"),
        ("ramda-table5", "label_smoothing=0.1", "label_smoothing must be 0 without labels"),
        ("ramda-table9", "normalization=published", "normalization must be own for masked images"),
        ("ramda-table9", "data=mnist", "model must be MlpSpec or Lenet5Spec for data=mnist, got"),
        ("ramda-table4", "coupled=true", "coupled must be false"),
    ],
)
def test_settings_of_other_tasks_are_refused(table, assignment, message, tmp_path):
    WRITE[table](tmp_path)
    run = small(table, of(table, "RMDA"), tmp_path)
    with pytest.raises(ValueError, match=message):
        train.check(with_settings(run, [assignment]))


def test_a_run_without_stages_belongs_to_methods_without_restarts(tmp_path):
    write_text(tmp_path)
    run = small("ramda-table4", of("ramda-table4", "ProxGen"), tmp_path)
    assert isinstance(run.optimizer, ProxAdamwSpec)
    with pytest.raises(ValueError, match="schedule must be multistep for RAMDA and RMDA"):
        replace(run, optimizer=RamdaSpec())
    with pytest.raises(ValueError, match="milestones must be none for schedule=cosine"):
        replace(run, milestones=(1,))
