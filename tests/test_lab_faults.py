"""What a run does when it is told to stop, or the disk is full."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from dualprox import files
from dualprox.lab import checkpoints, interrupts
from dualprox.lab.cli import main
from dualprox.lab.folders import alone
from dualprox.lab.tasks.classification import evaluate
from dualprox.lab.training import Training
from lab_runs import SHORT, assert_same_run, finish, short, stop_at
from promises import Tries

pytestmark = pytest.mark.usefixtures("torch_as_before")
ARGS = ["train", "digits_mlp_ramda", "--set", *SHORT]


def send_at(step: int, sent: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have signals sent to this process within a step."""
    take, taken = Training.step, [0]

    def counted(self: Training) -> None:
        take(self)
        taken[0] += 1
        if taken[0] == step:
            for number in sent:
                os.kill(os.getpid(), number)

    monkeypatch.setattr(Training, "step", counted)


@pytest.mark.promise(
    "faults", "a signal finishes the step, saves, and says how to go on", "signals"
)
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGINT, 130)]
)
def test_a_signal_ends_a_run_in_good_order(
    number: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, tries: Tries
) -> None:
    folder = tmp_path / "run"
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    send_at(60, [number], monkeypatch)
    with tries.one():
        assert main([*ARGS, "--out", str(folder)]) == code
        assert f"stopped; go on with: dualprox train --resume {folder}" in capsys.readouterr().err
        [saved, _] = checkpoints.listed(folder)
        assert saved.name.startswith("epoch-1-step-15-")
    after = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    assert before == after


@pytest.fixture(autouse=True)
def hears_interrupts() -> Iterator[None]:
    """Ctrl-C, which processes in a shell's background ignore from birth."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_signal_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    send_at(60, [signal.SIGINT, signal.SIGINT], monkeypatch)
    assert main([*ARGS, "--out", str(tmp_path / "run")]) == 130
    assert [path.name[:14] for path in checkpoints.listed(tmp_path / "run")] == ["epoch-1-step-0"]


def test_a_signal_in_an_evaluation_waits_for_the_end_of_the_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = Training.evaluate

    def interrupted(self: Training):
        if self.epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self)

    monkeypatch.setattr(Training, "evaluate", interrupted)
    assert main([*ARGS, "--out", str(tmp_path / "run")]) == 143
    monkeypatch.undo()
    assert checkpoints.listed(tmp_path / "run")[0].name.startswith("epoch-2-step-0")
    finish(tmp_path / "run")
    finish(tmp_path / "whole", short())
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_where_nothing_would_be_lost_a_signal_does_not_wait() -> None:
    with pytest.raises(interrupts.Stopped) as stopped, interrupts.listening():
        os.kill(os.getpid(), signal.SIGUSR1)
        pytest.fail("went on")
    assert stopped.value.code == 143


def test_a_signal_that_the_process_was_started_to_ignore_is_ignored() -> None:
    """As after `nohup`, or in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts.listening():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("command", ["path", "reproduce"])
def test_paths_and_tables_stop_within_a_run_and_go_on(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    folder = tmp_path / "out"
    path = ["path", "digits_mlp_ramda", "--strengths", "0.02,0.1", "--set", *SHORT]
    if command == "path":
        first, again = [*path, "--out", str(folder)], ["path", "--resume", str(folder)]
    else:
        data = os.environ.get("DUALPROX_DATA")
        if data is None:
            pytest.skip("DUALPROX_DATA names no folder")
        more = [f"data_dir={data}", "epochs=2", "epoch_steps=20"]
        rows = ["--rows", "logistic_mnist_rmda", "--seeds", "1"]
        first = again = ["reproduce", "ramda-table7", *rows, "--set", *more, "--out", str(folder)]
    send_at(30, [signal.SIGTERM], monkeypatch)
    assert main(first) == 143
    assert "go" in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.undo()
    names = [p.name for p in folder.rglob("epoch-*")]
    assert any("-step-0-" not in name for name in names), names
    assert main(again) == 0
    if command == "path":
        assert main([*path, "--out", str(tmp_path / "whole")]) == 0
        for point in ("01", "02"):
            assert_same_run(tmp_path / "whole" / point, folder / point)


def test_a_fit_ends_at_once_and_goes_on_after_its_last_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    epochs = [0]

    def interrupted(*args):
        epochs[0] += 1
        if epochs[0] in (1, 4):
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args)

    fit = ["fit", "digits_mlp_ramda", "--params", "0.4", "--epochs", "4", "--set"]
    fit += ["model.hidden=12", "--out"]
    folder = tmp_path / "fit"
    with monkeypatch.context() as patch:
        patch.setattr("dualprox.lab.fit_run.evaluate", interrupted)
        assert main([*fit, str(folder)]) == 143
        assert f"go on with: dualprox fit --resume {folder}" in capsys.readouterr().err
        assert [path.name for path in folder.iterdir()] == ["config.json"]
        assert main(["fit", "--resume", str(folder)]) == 143
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
        assert main(["show", str(folder)]) == 0
        assert "a fit that did not end; go on with" in capsys.readouterr().out
        assert main(["fit", "--resume", str(folder)]) == 0
    assert main([*fit, str(tmp_path / "whole")]) == 0
    for name in ("metrics.jsonl", "slim.safetensors", "plan.json"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    capsys.readouterr()
    assert main(["fit", "--resume", str(folder)]) == 0
    assert "is finished already" in capsys.readouterr().out
    for more in (["digits_mlp_ramda"], ["--params", "0.1"], ["--select-inputs"]):
        assert main(["fit", "--resume", str(folder), *more]) == 2
        assert "give nothing beside it" in capsys.readouterr().err
    assert main(["fit"]) == 2 and "needs a recipe" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "path", "fit"])
def test_a_folder_is_trained_in_by_one_process(
    command: str, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fcntl")
    folder = tmp_path / "run"
    more = {"path": ["--strengths", "0.1,0.2"], "fit": ["--params", "0.4"], "train": []}[command]
    with monkeypatch.context() as patch:
        # A folder that is begun: its process is gone before the first step.
        for place in ("train.Training", "fit_run.make_model", "path.sweep.go_on_dense"):
            patch.setattr(f"dualprox.lab.{place}", mock.Mock(side_effect=KeyboardInterrupt))
        args = [command, "digits_mlp_ramda", *more, "--out", str(folder), "--set", "epochs=2"]
        assert (
            main([*args, "model.hidden=12", *([] if command == "fit" else ["milestones="])]) == 130
        )
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    with alone(folder):
        assert main([command, "--resume", str(folder)]) == 2
    assert f"another process is training in {folder}" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Files are limited to a size: what a full disk does, for any user.
LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
from dualprox.lab.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.promise("faults", "a full disk costs one line and leaves the last checkpoint", "runs")
@pytest.mark.slow
def test_a_full_disk_costs_one_line_and_leaves_what_was_there(tmp_path: Path, tries: Tries) -> None:
    """The limit hits the run's settings, its first checkpoint, and a later one."""
    run = short()
    finish(tmp_path / "whole", run)
    size = max(path.stat().st_size for path in checkpoints.listed(tmp_path / "whole"))
    stop = tmp_path / "stopped"
    command = [sys.executable, "-c", LIMITED]
    for limit in (64, size // 2):
        folder = tmp_path / str(limit)
        args = [*ARGS, "--out", str(folder)]
        with tries.one():
            found = subprocess.run([*command, str(limit), *args], capture_output=True, text=True)
            assert found.returncode == 1, found.stderr
            assert found.stderr.count("\n") == 1 and "Traceback" not in found.stderr
            assert found.stderr.startswith(f"dualprox: cannot write {folder}")
            assert "File too large" in found.stderr
            left = [path.name for path in folder.rglob(".*")]
            assert not left
        if limit > 64:
            assert "there is no checkpoint yet" in found.stderr
            finish(folder)
            assert_same_run(tmp_path / "whole", folder)
    with pytest.MonkeyPatch.context() as patch:
        stop_at((100,), stop, run, patch)
    kept = {path: path.read_bytes() for path in checkpoints.listed(stop)}
    limited = [*command, str(size // 2), "train", "--resume", str(stop)]
    with tries.one():
        found = subprocess.run(limited, capture_output=True, text=True)
        assert found.returncode == 1 and "the last checkpoint is " in found.stderr
        assert {path: path.read_bytes() for path in checkpoints.listed(stop)} == kept
    finish(stop)
    assert_same_run(tmp_path / "whole", stop)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 KiB, where one may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "dualprox-test", str(place)]
    try:
        found = subprocess.run(mount, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if found.returncode:
        pytest.skip("no file system may be mounted")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.promise("faults", "a full disk costs one line and leaves the last checkpoint", "runs")
def test_a_run_goes_on_when_there_is_room_again(small_disk: Path, capsys, tries: Tries) -> None:
    finish(small_disk.parent / "whole", short())
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(150 * 1024))
    folder = small_disk / "run"
    with tries.one():
        assert main([*ARGS, "--out", str(folder)]) == 1
        error = capsys.readouterr().err
        assert "No space left on device" in error and error.count("\n") == 1
        assert f"when that is mended go on with: dualprox train --resume {folder}" in error
    ballast.unlink()
    finish(folder)
    assert_same_run(small_disk.parent / "whole", folder)


def test_content_is_on_the_disk_before_its_name_and_the_name_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append("fsync"), sync(handle))[1])
    monkeypatch.setattr(os, "replace", lambda *to: (calls.append("replace"), replace(*to))[1])
    files.write_text(tmp_path / "file", "content")
    assert calls == ["fsync", "replace", "fsync"]
    calls.clear()
    files.append_json_line(tmp_path / "lines", {})
    files.append_json_line(tmp_path / "lines", {})
    assert calls == ["fsync", "fsync", "fsync"]


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_faults_of_the_system_are_told_apart_from_mistakes(
    call: str, fault: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    files.write_text(path, "old")

    def fail(*args: object) -> None:
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(files.WriteError, match=f"cannot write {path}: {os.strerror(fault)}"):
        files.write_text(path, "new")
    if call == "fsync":
        with pytest.raises(files.WriteError, match="cannot write"):
            files.append_json_line(path, {})
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    with pytest.raises(FileNotFoundError):
        files.write_text(tmp_path / "nowhere" / "file", "new")
