"""Processes that train one run together train the run that one process trains."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dualprox.lab import ranks, train
from dualprox.lab.data.ljspeech import Utterances
from dualprox.lab.tasks import task_of
from processes import started
from ranks_cases import STOPPED, go_on, runs, write_data

pytestmark = [
    pytest.mark.xdist_group("ranks"),  # processes are started once for all
    pytest.mark.usefixtures("torch_as_before"),
    pytest.mark.filterwarnings("ignore"),  # of processes that fork while other threads run
    pytest.mark.skipif(
        not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
        reason="torch was built without gloo",
    ),
]
WORKER = Path(__file__).with_name("ranks_worker.py")
NAMES = ("ramda", "clipped", "rigl", "convolutions", "text", "speech")
# How some go on: begun by one process they go on with several ("up"), or the other way round
# ("down"), or begin and go on with as many ("again"). These have a state of their own: a network
# that shrinks, a memory of the text.
WAYS = (("convolutions", "up"), ("text", "up"), ("text", "down"), ("text", "again"))
RESIZED = tuple(pair for pair in WAYS if pair[1] != "again")
# Of four processes one has none of the text's three rows, and two none of the last batch's one.
FOUR = ("clipped", "text")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folders of the runs, each trained by one process."""
    folder = tmp_path_factory.mktemp("alone")
    data = folder / "data"
    write_data(data)
    for name, run in runs(data).items():
        train.start(run, folder / name)
        go_on(folder / name)
    return folder


def trained_by(
    world: int,
    alone: Path,
    folder: Path,
    names: Sequence[str] = NAMES,
    ways: Sequence[tuple[str, str]] = WAYS,
) -> Path:
    """The folders of the same runs trained by several processes, and "NAME WAY"."""
    whole = [[str(folder / name), False] for name in names]
    stopped, resumed = [], []
    known = runs(alone / "data")
    for name in names:
        train.start(known[name], folder / name)
    for name, way in ways:
        run, place = known[name], folder / f"{name} {way}"
        train.start(run, place)
        if way == "up":
            go_on(place, STOPPED)
        else:
            stopped.append([str(place), True])
        if way != "down":
            resumed.append([str(place), False])
    for code, _, error in started(world, WORKER, json.dumps(whole + stopped + resumed)):
        assert code == 0, error
    for name, way in ways:
        if way == "down":
            go_on(folder / f"{name} {way}")
    return folder


@pytest.fixture(scope="module")
def by_two(alone, tmp_path_factory):
    return trained_by(2, alone, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def by_four(alone, tmp_path_factory):
    ways = WAYS[1:3]
    return trained_by(4, alone, tmp_path_factory.mktemp("four"), FOUR, ways)


def assert_alike(ours: Path, theirs: Path) -> None:
    """The same run up to rounding: metrics of all epochs, and weights with the same zeros."""
    rows, wanted = (
        [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        for path in (ours, theirs)
    )
    assert len(rows) == len(wanted) == 3
    for row, other in zip(rows, wanted, strict=True):
        # Of quotients of small differences rounding leaves fewer digits.
        stationarity = row.pop("stationarity", 0), other.pop("stationarity", 0)
        assert stationarity[0] == pytest.approx(stationarity[1], rel=1e-3)
        assert row.keys() == other.keys()
        for key, value in other.items():
            assert row[key] == (value if value is None else pytest.approx(value, rel=1e-5)), key
    weights, others = (load_file(path / "model.safetensors") for path in (ours, theirs))
    for name, weight in weights.items():
        assert torch.equal(weight == 0, others[name] == 0), name
    # All together: a bias ahead of a batch norm has rounding errors for its gradient.
    point, other = (
        torch.cat([tensors[name].double().flatten() for name in weights])
        for tensors in (weights, others)
    )
    assert torch.linalg.vector_norm(point - other) <= 1e-5 * torch.linalg.vector_norm(other)


TRAIN = "`dualprox train` on 2 or 4 processes trains the run that one process trains, up to 1e-5"


@pytest.mark.promise("processes", TRAIN)
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_train_what_one_does(alone, by_two, name):
    assert_alike(by_two / name, alone / name)


@pytest.mark.exhaustive
@pytest.mark.promise("processes", TRAIN)
@pytest.mark.parametrize("name", FOUR)
def test_four_processes_train_what_one_does(alone, by_four, name):
    assert_alike(by_four / name, alone / name)


RESUME = "a run folder of `dualprox train` goes on with another number of processes"


@pytest.mark.promise("checkpoints", RESUME)
@pytest.mark.parametrize(("name", "way"), RESIZED)
def test_a_run_goes_on_with_two_processes_or_one(alone, by_two, name, way):
    assert_alike(by_two / f"{name} {way}", alone / name)


@pytest.mark.exhaustive
@pytest.mark.promise("checkpoints", RESUME)
@pytest.mark.parametrize("way", ["up", "down"])
def test_a_run_goes_on_with_four_processes_or_one(alone, by_four, way):
    assert_alike(by_four / f"text {way}", alone / "text")


@pytest.mark.promise(
    "determinism", "a run that goes on with the same number of processes ends with the same bits"
)
def test_the_same_number_of_processes_goes_on_to_the_same_bits(by_two):
    name = "text"
    for file in ("metrics.jsonl", "model.safetensors"):
        assert (by_two / name / file).read_bytes() == (by_two / f"{name} again" / file).read_bytes()


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("count", [1, 2, 5, 32])
def test_rows_are_dealt_out_once_each_and_evenly(monkeypatch, world, count):
    monkeypatch.setattr(ranks, "world", lambda: world)
    dealt = []
    for rank in range(world):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        dealt.append(ranks.rows(count))
    assert dealt[0].start == 0 and dealt[-1].stop == count
    assert all(before.stop == after.start for before, after in pairwise(dealt))
    sizes = [rows.stop - rows.start for rows in dealt]
    assert max(sizes) - min(sizes) <= 1


def test_shares_of_speech_stay_padded_and_weigh_by_frames(alone):
    run = runs(alone / "data")["speech"]
    task = task_of(run)(run)
    batch = next(task.batches(1))
    share = task.share(batch, slice(1, 3))
    assert isinstance(share, Utterances)
    assert share.mel.shape[1:] == batch.mel.shape[1:] and len(share.text) == 2
    assert int(task.weight(share)) == int(batch.mel_lengths[1:3].sum())
