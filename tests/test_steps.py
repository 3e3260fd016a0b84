"""What happens in one step of a run: where, in which precision, clipped, scaled and looked at."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from dualprox.lab import checkpoints, train
from dualprox.lab.networks import make_model
from dualprox.lab.recipes import RECIPES
from dualprox.lab.settings import Run, with_settings
from dualprox.lab.specs import AdamSpec, SgdSpec
from dualprox.lab.training import Training

pytestmark = pytest.mark.usefixtures("torch_as_before")


def short(*more: str, recipe: str = "digits_mlp_ramda") -> Run:
    fields = ["epochs=2", "milestones=1", "model.hidden=12", "baseline=none"]
    return with_settings(RECIPES[recipe](), [*fields, *more])


def by_hand(run: Run, steps: int) -> nn.Module:
    """SGD without momentum, written out: clip, step."""
    torch.manual_seed(run.seed)
    model = make_model(run)
    training = Training(run)
    for number, (x, y) in enumerate(training.task.batches(1)):
        if number == steps:
            break
        model.zero_grad()
        smooth = run.label_smoothing
        scores = functional.log_softmax(model(x), 1)
        wanted = functional.one_hot(y, 10) * (1 - smooth) + smooth / 10
        (-(wanted * scores).sum(1).mean()).backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in grads))
        factor = 1.0 if run.clip is None else min(1.0, run.clip / norm)
        assert run.clip is None or factor < 1
        with torch.no_grad():
            for param, grad in zip(model.parameters(), grads, strict=True):
                param -= 0.1 * factor * grad
    return model


@pytest.mark.parametrize("fields", [(), ("clip=0.05",), ("label_smoothing=0.3",)])
def test_steps_are_clipped_and_labels_smoothed_as_by_hand(fields):
    sgd = SgdSpec(lr=0.1, momentum=0.0, weight_decay=0.0, nesterov=False)
    run = replace(short("epoch_steps=5", recipe="digits_mlp_dense"), optimizer=sgd)
    run = with_settings(run, list(fields))
    training = Training(run)
    training.train_epoch()
    wanted = by_hand(run, 5)
    for ours, theirs in zip(training.model.parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_run_in_half_precision_ends_near_the_whole_and_resumes_to_the_same_bits(
    precision, tmp_path
):
    run = short(f"precision={precision}", "clip=10")
    whole = Training(short())
    losses = [whole.train_epoch()["loss"] for _ in range(2)]

    def stop(run, row):
        if row["epoch"] == 1:
            raise KeyboardInterrupt

    for name, show in (("a", lambda run, row: None), ("b", stop)):
        train.start(run, tmp_path / name)
        if show is stop:
            with pytest.raises(KeyboardInterrupt):
                train.go_on(tmp_path / name, show)
        train.go_on(tmp_path / name, lambda run, row: None)
    for name in ("metrics.jsonl", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    found = [row["loss"] for row in rows]
    assert found == pytest.approx(losses, rel=0.05) and found != losses


def test_a_step_whose_scaled_gradient_overflows_is_skipped_and_does_not_count():
    adam = replace(short("precision=float16", recipe="digits_mlp_dense"), optimizer=AdamSpec())
    run = replace(adam, milestones=(), schedule="linear", epoch_steps=2)
    training = Training(run)
    training.scaler = torch.GradScaler("cpu", init_scale=2.0**60, backoff_factor=2.0**-50)
    before = [p.clone() for p in training.model.parameters()]
    training.train_steps()
    # Of two steps the first was too large, the second was taken.
    assert training.schedule.last_epoch == 1
    assert training.scaler.get_scale() == 2.0**10
    assert any((p != q).any() for p, q in zip(training.model.parameters(), before, strict=True))


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cpu:0", "mps"])
def test_a_device_is_named_as_torch_names_it(device):
    with pytest.raises(ValueError, match="device must be cpu, cuda or cuda:N, got"):
        short(f"device={device}")


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device must be cpu, for torch finds no CUDA device"):
        train.check(short("device=cuda"))


def test_a_run_begun_on_another_device_goes_on_here(tmp_path):
    run = short()
    train.start(run, tmp_path / "whole")
    train.go_on(tmp_path / "whole", lambda run, row: None)

    def stop(run, row):
        raise KeyboardInterrupt

    folder = tmp_path / "moved"
    train.start(run, folder)
    with pytest.raises(KeyboardInterrupt):
        train.go_on(folder, stop)
    saved = torch.load(checkpoints.listed(folder)[0], weights_only=True)
    saved["run"] = saved["run"].replace('"device": "cpu"', '"device": "cuda"')
    assert "cuda" in saved["run"]
    checkpoints.save(folder, saved, keep=1)
    train.go_on(folder, lambda run, row: None)
    ours, theirs = (tmp_path / name / "metrics.jsonl" for name in ("moved", "whole"))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("recipe", ["digits_mlp_ramda", "digits_mlp_dense"])
def test_a_run_on_a_gpu_ends_near_the_one_on_the_cpu(recipe, tmp_path):
    here, there = (Training(short(f"device={name}", recipe=recipe)) for name in ("cpu", "cuda"))
    ours, theirs = here.train_epoch(), there.train_epoch()
    assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-3)
    torch.save(there.state_dict(), tmp_path / "state.pt")
    here.load_state_dict(torch.load(tmp_path / "state.pt", map_location="cpu", weights_only=True))
    assert here.evaluate() == pytest.approx(there.evaluate(), rel=1e-3)
