"""RigL as a run of the lab: when its masks rest, what is counted, and that it goes on."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

import dualprox as dp
from dualprox.lab import settings, train
from dualprox.lab.recipes import RECIPES
from dualprox.lab.report import rows, write_report
from dualprox.lab.specs import RiglSpec
from dualprox.lab.train import check
from dualprox.lab.training import Training

pytestmark = pytest.mark.usefixtures("torch_as_before")

# 45 steps in an epoch of digits: masks move up to step 135.
RUN = replace(
    settings.with_settings(
        RECIPES["digits_mlp_dense"](), ["epochs=4", "milestones=2", "model.hidden=24,12"]
    ),
    recipe="digits_mlp_rigl",
    optimizer=RiglSpec(sparsity=0.8, delta_t=13, drop_fraction=0.5),
)


def masks_of(training: Training) -> dict[str, torch.Tensor]:
    assert isinstance(training.opt, dp.RigL)
    return training.opt.masks


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_masks_move_in_three_quarters_of_the_steps_and_rest_in_the_last() -> None:
    training = Training(RUN)
    assert isinstance(training.opt, dp.RigL)
    steps = len(training.task)
    assert training.opt.t_end == pytest.approx(0.75 * 4 * steps, abs=0.5)
    seen = [masks_of(training)]
    lrs = []
    for _ in range(4):
        lrs.append(training.train_epoch()["lr"])
        seen.append(masks_of(training))
    assert [same(a, b) for a, b in pairwise(seen)] == [False] * 3 + [True]
    # The schedule of dense runs drives it.
    assert lrs == pytest.approx([0.1, 0.1, 0.01, 0.01])


def test_settings_reach_both_optimizers_and_the_seed_the_masks() -> None:
    spec = RiglSpec(0.3, 0.7, 1e-3, False, 0.5, "uniform", 7, 0.2)
    run = replace(RUN, optimizer=spec)
    assert settings.from_json(json.loads(json.dumps(settings.to_json(run)))) == run
    opt = Training(run).opt
    assert isinstance(opt, dp.RigL) and isinstance(opt.optimizer, torch.optim.SGD)
    (group,) = opt.param_groups
    assert [group[n] for n in ("lr", "momentum", "weight_decay")] == [0.3, 0.7, 1e-3]
    assert not group["nesterov"] and (opt.delta_t, opt.drop_fraction) == (7, 0.2)
    shares = {name: float(mask.double().mean()) for name, mask in opt.masks.items()}
    assert shares == pytest.approx(dict.fromkeys(shares, 0.5), abs=0.01)
    other = masks_of(Training(replace(run, seed=1)))
    assert not same(opt.masks, other)
    assert same(opt.masks, masks_of(Training(run)))


def test_sparsity_is_that_of_the_weights_on_disk(tmp_path) -> None:
    train.start(RUN, tmp_path)
    training = train.go_on(tmp_path, lambda run, row: None)
    summary = write_report(training, tmp_path)
    weights = [w for w in load_file(tmp_path / "model.safetensors").values() if w.dim() == 2]
    zeros = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    assert zeros == pytest.approx(0.8, abs=1e-3)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["unstructured_sparsity"] == zeros
    assert summary["unstructured_sparsity"] == zeros and summary["val_accuracy"] > 0.4
    assert ("unstructured sparsity", "80.0%") in rows(summary)


@pytest.mark.parametrize("last", [1, 3])
def test_a_run_stopped_while_masks_move_ends_with_the_same_bits(tmp_path, last) -> None:
    def stop(run, row):
        if row["epoch"] == last:
            raise KeyboardInterrupt

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train.start(RUN, whole)
    train.go_on(whole, lambda run, row: None)
    train.start(RUN, stopped)
    with pytest.raises(KeyboardInterrupt):
        train.go_on(stopped, stop)
    torch.manual_seed(12345)
    train.go_on(stopped, lambda run, row: None)
    for name in ("metrics.jsonl", "model.safetensors"):
        assert (whole / name).read_bytes() == (stopped / name).read_bytes()


def test_a_penalty_and_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="penalty must be None for AdamW, Adam, SGD and RigL"):
        replace(RUN, penalty=dp.L1(1e-3))
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\), got 1.5"):
        check(settings.with_settings(RUN, ["optimizer.sparsity=1.5"]))
    with pytest.raises(ValueError, match=r"optimizer\.distribution must be one of erk, uniform"):
        settings.with_settings(RUN, ["optimizer.distribution=er"])
