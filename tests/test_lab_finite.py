"""What a run does with losses, gradients and weights that are not finite."""

import json
import math
from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from torch import nn

import dualprox as dp
from dualprox.lab import checkpoints, finite, train
from dualprox.lab.cli import main
from dualprox.lab.folders import read_run
from dualprox.lab.report import rows as summary_rows
from dualprox.lab.report import summarize
from dualprox.lab.settings import Run
from dualprox.lab.training import Training
from lab_runs import SHORT, assert_same_run, finish, short, stop_at
from promises import Tries

pytestmark = pytest.mark.usefixtures("torch_as_before")


def spoil(steps: Collection[int], name: str, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a value into the gradient of a parameter, in steps counted over all runs."""
    make, seen = Training.__init__, [0]

    def spoiled(param: torch.Tensor) -> None:
        seen[0] += 1
        if seen[0] in steps:
            assert param.grad is not None
            param.grad.view(-1)[-1] = value

    def made(self: Training, run: Run) -> None:
        make(self, run)
        self.model.get_parameter(name).register_post_accumulate_grad_hook(spoiled)

    monkeypatch.setattr(Training, "__init__", made)


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
        Training, "place", lambda self: (states.append(self), "epoch 3, step 10")[1]
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
        step = Training.step
        monkeypatch.setattr(Training, "step", lambda self: (steps.append(0), step(self))[1])
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
