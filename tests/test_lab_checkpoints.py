"""Checkpoints of run folders: within epochs, the last few, whole or not used."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch

from dualprox.files import append_json_line
from dualprox.lab import checkpoints, interrupts, train
from dualprox.lab.cli import main
from dualprox.lab.folders import RunFolderError, read_run
from dualprox.lab.recipes import RECIPES
from dualprox.lab.settings import with_settings
from lab_runs import assert_same_run, finish, short, stop_at
from promises import Tries
from test_tasks import ROWS, WRITE, small
from tiny_data import write_images

pytestmark = pytest.mark.usefixtures("torch_as_before")
SHRINKS = ("coupled=true", "shrink_at_restart=true")
SAME_BITS = "a run stopped within an epoch goes on to the same bits"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that keeps three checkpoints; copy it before you change it."""
    folder = tmp_path_factory.mktemp("run") / "run"
    finish(folder, short("keep_checkpoints=3"))
    return folder


@pytest.mark.promise("checkpoints", SAME_BITS, "stops")
@pytest.mark.parametrize(
    ("recipe", "more", "stops"),
    [
        # Within the first, the second and the last stage, at the last step of an epoch, twice in
        # a row.
        ("digits_mlp_ramda", (), (7, 45, 80, 81, 170)),
        ("digits_mlp_ramda_refit", (), (45, 80, 120)),
        ("digits_mlp_ramda", (*SHRINKS, "model.hidden=16,12"), (80, 100)),
        ("digits_mlp_lowrank", ("precision=float16",), (7, 100)),
        ("digits_mlp_dense", ("milestones=", "schedule=cosine", "warmup=50", "clip=0.1"), (30, 99)),
    ],
)
def test_a_run_stopped_within_its_epochs_ends_with_the_same_bits(
    recipe, more, stops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tries: Tries
) -> None:
    run = short(*more, recipe=recipe)
    finish(tmp_path / "whole", run)
    stop_at(stops, tmp_path / "stopped", run, monkeypatch)
    torch.manual_seed(12345)
    finish(tmp_path / "stopped")
    with tries.one():
        assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    tries.add(len(stops) - 1)


@pytest.mark.promise("checkpoints", SAME_BITS, "stops")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("table", "published"),
    [ROWS[0], next(r for r in ROWS if r.values[0] == "ramda-table5"), ROWS[-1]],
)
def test_text_speech_and_masked_images_go_on_within_an_epoch_too(
    table, published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tries: Tries
) -> None:
    """Memories of text, dropout, and data that are read by other processes."""
    WRITE[table](tmp_path)
    run = small(table, published, tmp_path)
    finish(tmp_path / "whole", run)
    stop_at((2, 4), tmp_path / "stopped", run, monkeypatch)
    finish(tmp_path / "stopped")
    with tries.one():
        assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    tries.add(1)


@pytest.mark.promise("checkpoints", SAME_BITS, "stops")
@pytest.mark.parametrize(
    ("recipe", "stops"),
    [
        ("cifar_resnet_dense", (3, 6, 7)),
        # Groups of several weights, in a network that was cut where nothing was dead.
        pytest.param("cifar_resnet_ramda", (6,), marks=pytest.mark.slow),
    ],
)
def test_random_changes_of_images_go_on_within_an_epoch_too(
    recipe, stops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tries: Tries
) -> None:
    write_images(tmp_path, 16, 4)
    fields = ["epochs=2", "milestones=1", "baseline=none", f"data_dir={tmp_path}", "batch_size=4"]
    network = ["augment=true", "model.widths=4,4", "model.blocks=1"]
    run = with_settings(RECIPES[recipe](), [*fields, *network])
    finish(tmp_path / "whole", run)
    stop_at(stops, tmp_path / "stopped", run, monkeypatch)
    finish(tmp_path / "stopped")
    with tries.one():
        assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    tries.add(len(stops) - 1)


def test_long_epochs_are_saved_in_time_and_the_last_few_kept(tmp_path: Path) -> None:
    run = short("epochs=2", "milestones=", "checkpoint_minutes=0", "keep_checkpoints=4")
    names = []

    def look(run, row) -> None:
        names.append([path.name.rpartition("-")[0] for path in checkpoints.listed(tmp_path)])

    train.start(run, tmp_path)
    train.go_on(tmp_path, look)
    assert names[0] == ["epoch-1-step-0", *(f"epoch-0-step-{step}" for step in (45, 44, 43))]
    assert names[1] == ["epoch-2-step-0", *(f"epoch-1-step-{step}" for step in (45, 44, 43))]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 4
    seldom = short("epochs=2", "milestones=", "keep_checkpoints=4")
    finish(tmp_path / "seldom", seldom)
    kept = [path.name[:14] for path in checkpoints.listed(tmp_path / "seldom")]
    assert kept == ["epoch-2-step-0", "epoch-1-step-0"]
    assert_same_run(tmp_path, tmp_path / "seldom")


@pytest.mark.promise(
    "checkpoints", "a checkpoint with a damaged byte, or a part, is not used", "files"
)
def test_no_damage_of_a_checkpoint_goes_unseen(trained: Path, tmp_path: Path, tries: Tries) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    newest, before, _ = checkpoints.listed(folder)
    run = read_run(folder)
    content, moments = newest.read_bytes(), random.Random(0)
    sizes = [0, 1, 100, len(content) // 2, len(content) - 1]
    damages = [content[:size] for size in sizes] + [content + b"\0", b"\0" * len(content)]
    for place in [0, len(content) - 1, *moments.sample(range(len(content)), 60)]:
        changed = bytearray(content)
        changed[place] ^= 1 << moments.randrange(8)
        damages.append(bytes(changed))
    for damage in damages:
        newest.write_bytes(damage)
        with tries.one():
            found = checkpoints.newest(folder, run)
            assert found is not None and found.path == before
            assert found.damaged == {newest: "is damaged, its checksum is not that of its name"}


def test_the_checkpoint_before_a_damaged_one_is_used_and_that_is_said(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    newest, second, third = checkpoints.listed(folder)
    newest.write_bytes(b"")
    second.write_bytes(second.read_bytes()[:-1])
    (folder / "model.safetensors").unlink()
    finish(folder)
    said = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in said] == [str(newest), str(second)]
    assert all(
        f"is damaged, its checksum is not that of its name: going on from {third.name}" in s
        for s in said
    )
    assert_same_run(trained, folder)
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == sorted(
        [f"damaged-{newest.name}", f"damaged-{second.name}"]
        + [path.name for path in checkpoints.listed(folder)]
    )


def test_what_is_no_checkpoint_of_ours_is_not_used(trained: Path, tmp_path: Path) -> None:
    """Whole files by the right kind of name, but of another program, or with code in them."""

    class Code:
        def __reduce__(self):
            return (print, ("executed",))

    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    run, newest = read_run(folder), checkpoints.listed(folder)[0]
    for content in ({"weights": torch.ones(2)}, [1, 2], Code()):
        torch.save(content, tmp_path / "foreign")
        name = f"epoch-9-step-0-{checkpoints._sum_of(tmp_path / 'foreign')}.pt"
        shutil.move(tmp_path / "foreign", folder / "checkpoints" / name)
        found = checkpoints.newest(folder, run)
        assert found is not None and found.path == newest
        [(path, reason)] = found.damaged.items()
        assert path.name == name and reason.startswith("is no checkpoint of dualprox (")
        path.unlink()


def test_the_checkpoint_of_another_run_is_refused(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    run = read_run(folder)
    with pytest.raises(RunFolderError, match="belongs to another run than config"):
        checkpoints.newest(folder, with_settings(run, ["seed=5"]))
    found = checkpoints.newest(folder, with_settings(run, ["keep_checkpoints=1"]))
    assert found is not None and found.path == checkpoints.listed(folder)[0]


def test_files_of_a_killed_process_are_cleared_away_and_torn_lines_cut(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = short()
    stop_at((100,), tmp_path, run, monkeypatch)
    # No process has a number beyond the largest that Linux gives; this one's own is of a container.
    left = [tmp_path / ".4194999.model.safetensors", tmp_path / "checkpoints" / ".4194999.epoch-3"]
    alive = tmp_path / ".1.config.json"
    for path in (*left, alive):
        path.write_bytes(b"half of it")
    for name, lines in (("metrics", '{"epoch": 3}\n{"epoch'), ("timing", '{"epoch": 3, "sec')):
        with open(tmp_path / f"{name}.jsonl", "a") as file:
            file.write(lines)
    finish(tmp_path)
    assert not any(path.exists() for path in left) and alive.exists()
    for name in ("metrics.jsonl", "timing.jsonl"):
        rows = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    finish(tmp_path / "whole", run)
    assert_same_run(tmp_path / "whole", tmp_path)


def test_an_epoch_adds_a_line_and_writes_no_line_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs of a million epochs: the work for each must not grow with those before it."""
    written = []
    monkeypatch.setattr(
        "dualprox.lab.train.append_json_line",
        lambda path, row: (written.append(path.name), append_json_line(path, row)),
    )
    nodes = []

    def look(run, row) -> None:
        nodes.append((tmp_path / "metrics.jsonl").stat().st_ino)

    train.start(short(), tmp_path)
    train.go_on(tmp_path, look)
    assert written == ["metrics.jsonl", "timing.jsonl"] * 4 and len(set(nodes)) == 1


def test_show_reads_a_folder_that_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_at((60,), tmp_path, short(), monkeypatch)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 2, "lo')
    assert main(["show", str(tmp_path)]) == 0
    assert "unfinished, 1 of 4 epochs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("field", "rule"),
    [
        ("keep_checkpoints=0", "keep_checkpoints must be an int >= 1, got 0"),
        ("checkpoint_minutes=-1", "checkpoint_minutes must be a number >= 0, got -1.0"),
        ("nonfinite=ignore", "nonfinite must be one of stop, skip, got 'ignore'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(field: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        short(field)


def test_interrupts_are_none_where_nobody_listens() -> None:
    with interrupts.postponed():
        assert not interrupts.asked()
