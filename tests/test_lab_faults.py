"""What a run does when it is told to stop, the disk is full, or numbers are not finite."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import dualprox as dp
from dualprox import files
from dualprox.lab import checkpoints, finite, interrupts, train
from dualprox.lab.cli import main
from dualprox.lab.folders import read_run
from dualprox.lab.report import rows as summary_rows
from dualprox.lab.report import summarize
from dualprox.lab.settings import Run
from dualprox.lab.tasks.classification import evaluate
from lab_runs import SHORT, assert_same_run, finish, short, stop_at
from promises import Tries

pytestmark = pytest.mark.usefixtures("torch_as_before")
ARGS = ["train", "digits_mlp_ramda", "--set", *SHORT]


def send_at(step: int, sent: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have signals sent to this process within a step."""
    take, taken = train.Training.step, [0]

    def counted(self: train.Training) -> None:
        take(self)
        taken[0] += 1
        if taken[0] == step:
            for number in sent:
                os.kill(os.getpid(), number)

    monkeypatch.setattr(train.Training, "step", counted)


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
    evaluate = train.Training.evaluate

    def interrupted(self: train.Training):
        if self.epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self)

    monkeypatch.setattr(train.Training, "evaluate", interrupted)
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


def test_a_fit_ends_at_once_and_says_that_it_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args)

    monkeypatch.setattr("dualprox.lab.fit_run.evaluate", interrupted)
    fit = ["fit", "digits_mlp_ramda", "--params", "0.4", "--epochs", "4"]
    assert main([*fit, "--set", "model.hidden=12", "--out", str(tmp_path / "fit")]) == 143
    assert "a fit begins anew" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "fit").iterdir()] == ["config.json"]


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


def spoil(steps: Collection[int], name: str, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a value into the gradient of a parameter, in steps counted over all runs."""
    make, seen = train.Training.__init__, [0]

    def spoiled(param: torch.Tensor) -> None:
        seen[0] += 1
        if seen[0] in steps:
            assert param.grad is not None
            param.grad.view(-1)[-1] = value

    def made(self: train.Training, run: Run) -> None:
        make(self, run)
        self.model.get_parameter(name).register_post_accumulate_grad_hook(spoiled)

    monkeypatch.setattr(train.Training, "__init__", made)


@pytest.mark.promise(
    "faults", "NaN and Inf end a run before the step, named, or are skipped", "runs"
)
@pytest.mark.parametrize(
    ("value", "kind"), [(math.nan, "NaN"), (math.inf, "Inf"), (-math.inf, "Inf")]
)
@pytest.mark.parametrize("recipe", ["digits_mlp_ramda", "digits_mlp_dense"])
def test_a_gradient_that_is_not_finite_stops_the_run_before_the_step(
    recipe, value, kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, tries: Tries
) -> None:
    folder = tmp_path / "run"
    spoil([100], "fc2.weight", value, monkeypatch)
    # At the end of the steps that were taken, as it is if the bad one was not.
    states = []
    monkeypatch.setattr(
        train.Training, "place", lambda self: (states.append(self), "epoch 3, step 10")[1]
    )
    with tries.one():
        assert main(["train", recipe, "--out", str(folder), "--set", *SHORT]) == 1
        error = capsys.readouterr().err
        assert f"the gradient of fc2.weight holds {kind} in epoch 3, step 10;" in error
        [last, _] = checkpoints.listed(folder)
        assert last.name.startswith("epoch-2-step-0-") and f"the last checkpoint is {last}" in error
        assert all(bool(p.isfinite().all()) for p in states[-1].model.parameters())
    monkeypatch.undo()
    finish(folder)
    finish(tmp_path / "whole", read_run(folder))
    assert_same_run(tmp_path / "whole", folder)


@pytest.mark.promise(
    "faults", "NaN and Inf end a run before the step, named, or are skipped", "runs"
)
def test_skipped_steps_are_left_out_counted_and_survive_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tries: Tries
) -> None:
    run = short("nonfinite=skip")
    with tries.one():
        spoil([50, 51, 52], "fc1.weight", math.nan, monkeypatch)
        steps: list[int] = []
        step = train.Training.step
        monkeypatch.setattr(train.Training, "step", lambda self: (steps.append(0), step(self))[1])
        finish(tmp_path / "whole", run)
        rows = [
            json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()
        ]
        assert [row["skipped_steps"] for row in rows] == [0, 3, 0, 0]
        told = summarize(train.go_on(tmp_path / "whole", lambda run, row: None), tmp_path / "whole")
        assert told["skipped_steps"] == 3
        assert ("steps skipped, not finite", "3") in summary_rows(told)
        assert len(steps) == 4 * 45 - 3
    monkeypatch.undo()
    spoil([50, 51, 52], "fc1.weight", math.nan, monkeypatch)
    with monkeypatch.context() as patch:
        stop_at((55,), tmp_path / "stopped", run, patch)
    finish(tmp_path / "stopped")
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_skipping_ends_after_thirty_in_a_row(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tries: Tries
) -> None:
    """Of float16 a scaler skips them, which counts apart."""
    run = short("nonfinite=skip", f"precision={precision}")
    spoil([*range(20, 49), 60, 61], "fc1.weight", math.inf, monkeypatch)
    training = finish(tmp_path / "short", run)
    rows = [
        json.loads(line) for line in (tmp_path / "short/metrics.jsonl").read_text().splitlines()
    ]
    field = "skipped_steps" if precision == "float32" else "overflowed_steps"
    assert sum(row[field] for row in rows) == 31 and training.epoch == 4
    monkeypatch.undo()
    spoil(range(20, 1000), "fc1.weight", math.inf, monkeypatch)
    with pytest.raises(FloatingPointError, match="30 steps were left out one after the other"):
        finish(tmp_path / "long", run)


def test_a_batch_that_spoils_running_statistics_ends_the_run_by_name() -> None:
    """A step that is left out has gone through the network all the same."""
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    finite.require_finite(model, "epoch 1")
    model(torch.tensor([[1.0, 2.0, math.nan], [1.0, 2.0, 3.0]]))
    message = "1.running_mean holds NaN after epoch 2"
    with pytest.raises(FloatingPointError, match=message):
        finite.require_finite(model, "epoch 2")


def test_a_loss_that_is_not_finite_is_named(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    opt = dp.RMDA(model.named_parameters(), lr=0.1)
    watch = finite.Finite(opt, skips=False, is_scaled=False)
    assert watch.allows(torch.tensor(2.5), "epoch 1, step 1") and watch.losses == [2.5]
    model.weight.grad = torch.tensor([[0.0, math.nan]])
    model.bias.grad = torch.tensor([math.inf])
    message = "the loss is inf and the gradient of weight holds NaN, as do 1 others in epoch 1, st"
    with pytest.raises(FloatingPointError, match=message):
        watch.allows(torch.tensor(math.inf), "epoch 1, step 2")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_nonfinite_gradients_agree_with_a_look_at_every_entry(dtype: torch.dtype) -> None:
    """Of any torch optimizer, with and without names; large finite entries are none."""
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.zeros(3, 4, dtype=dtype)) for _ in range(5)]
    named = [(f"layer{number}", param) for number, param in enumerate(params)]
    largest = torch.finfo(dtype).max
    for _ in range(60):
        values = [math.nan, math.inf, -math.inf, largest, 0.0, 1.0, None]
        expected = {}
        for name, param in named:
            value = values[int(torch.randint(7, (), generator=generator))]
            param.grad = None if value is None else torch.ones(3, 4, dtype=dtype)
            if value is not None and param.grad is not None:
                param.grad.view(-1)[int(torch.randint(12, (), generator=generator))] = value
                if not math.isfinite(value):
                    expected[name] = "NaN" if math.isnan(value) else "Inf"
        assert dp.nonfinite_gradients(torch.optim.SGD(named, lr=0.1)) == expected
        assert list(dp.nonfinite_gradients(dp.RMDA(named, lr=0.1))) == list(expected)
        places = [{"params": params[:2]}, {"params": params[2:]}]
        found = dp.nonfinite_gradients(torch.optim.SGD(places, lr=0.1))
        where = {"0.0": 0, "0.1": 1, "1.0": 2, "1.1": 3, "1.2": 4}
        assert {f"layer{where[place]}": kind for place, kind in found.items()} == expected


def test_the_worst_kind_is_named() -> None:
    param = nn.Parameter(torch.zeros(3))
    param.grad = torch.tensor([math.inf, 0.0, math.nan])
    assert dp.nonfinite_gradients(torch.optim.SGD([param], lr=0.1)) == {"0.0": "NaN"}
