"""Beginning new work: folders that are free, and what stays of work that is refused."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dualprox.lab import console
from dualprox.lab.folders import make
from dualprox.lab.usage import UsageError

begin = functools.partial(make, config={"whose": "ours"})


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_unnamed_folder_is_another_one() -> None:
    with console.begun(None, "x", begin) as one, console.begun(None, "x", begin) as other:
        assert [one, other] == [Path("runs/x-1"), Path("runs/x-2")]
    Path("runs/x-3").mkdir()
    with console.begun(None, "x", begin) as third:
        assert third == Path("runs/x-4")


@pytest.mark.parametrize("out", [None, Path("deep/down")])
def test_refused_work_leaves_nothing(out: Path | None) -> None:
    with pytest.raises(UsageError, match="no data"), console.begun(out, "x", begin) as folder:
        (folder / "dense").mkdir()
        (folder / "dense" / "config.json").touch()
        raise UsageError("no data")
    assert not any(Path().iterdir())


def test_an_epoch_that_was_trained_stays() -> None:
    with pytest.raises(UsageError), console.begun(None, "x", begin) as folder:
        (folder / "metrics.jsonl").touch()
        raise UsageError("the data went away")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "metrics.jsonl"]


def test_what_another_process_has_begun_stays() -> None:
    def theirs_first(folder: Path) -> None:
        make(folder, {"whose": "theirs"})  # while we were about to
        begin(folder)

    folder = Path("out")
    with pytest.raises(UsageError, match="out is not empty"):
        with console.begun(folder, "x", theirs_first):
            raise AssertionError
    assert json.loads((folder / "config.json").read_text()) == {"whose": "theirs"}
    with pytest.raises(UsageError, match="no data"):
        with console.begun(folder, "x", lambda folder: False):  # added to what was there
            raise UsageError("no data")
    assert (folder / "config.json").exists()


def test_a_folder_that_cannot_be_made_costs_one_line() -> None:
    Path("runs").touch()
    with pytest.raises(UsageError, match="runs"), console.begun(None, "x", begin):
        raise AssertionError


@pytest.mark.slow
def test_fits_begun_at_once_take_folders_of_their_own() -> None:
    settings = ["--params", "0.5", "--epochs", "2", "--set", "model.hidden=8"]
    command = [sys.executable, "-m", "dualprox", "fit", "digits_mlp_ramda", *settings]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    named = [*command, "--out", "same"]
    runs = [
        subprocess.Popen(each, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
        for each in (command, command, named, named)
    ]
    said = [process.communicate()[0] for process in runs]
    codes = [process.returncode for process in runs]
    # A size that two epochs do not reach ends with 1.
    assert all(code in (0, 1) for code in codes[:2]), said
    assert sorted(code == 2 for code in codes[2:]) == [False, True], said
    for folder in ("runs/digits_mlp_ramda-fit-1", "runs/digits_mlp_ramda-fit-2", "same"):
        assert (Path(folder) / "summary.json").exists(), said
