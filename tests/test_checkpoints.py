import copy
import io

import pytest
import torch
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import dualprox as dp
from contracts import OPTIMIZERS, assert_same, grouped, run, small_problem

every = pytest.mark.parametrize("maker", OPTIMIZERS, ids=str)


def through_a_file(saved):
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("saved_at", [0, 1, 4, 7, 9])
@pytest.mark.parametrize("schedule_first", [True, False])
def test_saving_and_loading_changes_no_bit_of_what_follows(maker, dtype, saved_at, schedule_first):
    """Stages begin at 3 and 6; 7 and 9 are in the middle of the ramp."""

    def steps(opt, stages, set_gradients, which):
        for step in which:
            run(opt, set_gradients, range(step, step + 1))
            stages.step()

    def made():
        params, set_gradients = small_problem(dtype)
        opt = maker(grouped(params))
        return params, set_gradients, opt

    params, set_gradients, opt = made()
    stages = dp.StageSchedule(opt, [3, 6], 0.1)
    steps(opt, stages, set_gradients, range(saved_at))
    saved = through_a_file(
        {
            "params": [p.detach() for p in params],
            "opt": opt.state_dict(),
            "stages": stages.state_dict(),
        }
    )
    steps(opt, stages, set_gradients, range(saved_at, 12))

    others, set_others, twin = made()
    for p, value in zip(others, saved["params"], strict=True):
        p.data.copy_(value)
    twin_stages = dp.StageSchedule(twin, [3, 6], 0.1) if schedule_first else None
    twin.load_state_dict(saved["opt"])
    twin_stages = twin_stages or dp.StageSchedule(twin, [3, 6], 0.1)
    twin_stages.load_state_dict(saved["stages"])
    steps(twin, twin_stages, set_others, range(saved_at, 12))
    assert_same([*params], [*others])
    for p, q in zip(params, others, strict=True):
        assert_same([*opt.state[p].values()], [*twin.state[q].values()])
        assert [t.dtype for t in opt.state[p].values()] == [t.dtype for t in twin.state[q].values()]


@every
def test_a_loaded_state_shares_no_memory_with_what_it_came_from(maker):
    params, set_gradients = small_problem()
    opt = maker(grouped(params))
    run(opt, set_gradients, range(2))
    saved = copy.deepcopy(opt.state_dict())
    kept = copy.deepcopy(saved)
    opt.load_state_dict(state_dict=saved)
    run(opt, set_gradients, range(2, 5))
    for ours, theirs in zip(saved["state"].values(), kept["state"].values(), strict=True):
        assert_same([*ours.values()], [*theirs.values()])


def test_the_penalty_is_text_and_the_solver_stays_the_optimizers_own():
    params, set_gradients = small_problem()
    opt = dp.RAMDA(grouped(params), solver=dp.ProximalGradient(max_iter=7))
    run(opt, set_gradients, range(1))
    saved = through_a_file(opt.state_dict())
    assert saved["param_groups"][0]["penalty"] == repr(dp.GroupLasso(0.05))
    assert saved["param_groups"][1]["penalty"] == "None"
    others, _ = small_problem()
    twin = dp.RAMDA(grouped(others), solver=dp.Exact())
    twin.load_state_dict(saved)
    assert twin.param_groups[0]["solver"] == dp.Exact()
    assert twin.param_groups[0]["penalty"] == dp.GroupLasso(0.05)


def broken_shape(saved):
    saved["state"][0]["grad_sum"] = torch.zeros(2, 2)


def without_anchor(saved):
    del saved["state"][1]["anchor"]


def other_penalty(saved):
    saved["param_groups"][0]["penalty"] = "L1(strength=1.0)"


def fewer_groups(saved):
    saved["param_groups"].pop()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (broken_shape, "the saved grad_sum of parameter 0.0 has shape"),
        (without_anchor, "parameter 0.1 lacks anchor: it is not a state of RAMDA"),
        (other_penalty, r"group 0 was saved with penalty L1\(strength=1.0\), this .* GroupLasso"),
        (fewer_groups, "different number of parameter groups"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_nothing_changes(damage, message):
    params, set_gradients = small_problem()
    opt = dp.RAMDA(grouped(params))
    run(opt, set_gradients, range(3))
    saved = copy.deepcopy(opt.state_dict())
    damage(saved)
    before = copy.deepcopy(opt.state_dict())
    with pytest.raises(ValueError, match=message):
        opt.load_state_dict(saved)
    after = opt.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for ours, theirs in zip(after["state"].values(), before["state"].values(), strict=True):
        assert_same([*ours.values()], [*theirs.values()])


def test_another_optimizers_state_is_refused():
    params, set_gradients = small_problem()
    adamw = torch.optim.AdamW([{"params": params[:2]}, {"params": params[2:]}])
    run(adamw, set_gradients, range(1))
    opt = dp.RMDA([{"params": params[:2]}, {"params": params[2:]}])
    with pytest.raises(ValueError, match="lacks penalty_sum, restart, anchor, grad_sum"):
        opt.load_state_dict(adamw.state_dict())


def network(maker):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 3)
    )
    return model, maker(dp.param_groups(model, dp.GroupLasso(0.01)))


def train(model, opt, which):
    for step in which:
        x = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(step))
        opt.zero_grad()
        model(x).square().sum().backward()
        opt.step()
    opt.zero_grad()


@every
@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize(("trained", "frozen"), [(0, False), (3, False), (3, True)])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_distributed_checkpoints_continue_bit_by_bit(maker, flatten, trained, frozen, tmp_path):
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    model, opt = network(maker)
    train(model, opt, range(trained))
    if frozen:
        opt.freeze_structure_()
    weights = {name: t.clone() for name, t in model.state_dict().items()}
    saved = get_optimizer_state_dict(model, opt, options=options)
    assert_same([*model.state_dict().values()], [*weights.values()])
    state_dict_saver.save({"model": weights, "opt": saved}, checkpoint_id=tmp_path, no_dist=True)
    train(model, opt, range(trained, 6))

    other, twin = network(maker)
    if frozen:  # a checkpoint is loaded into a state with the same keys
        twin.freeze_structure_()
    target = {
        "model": other.state_dict(),
        "opt": get_optimizer_state_dict(other, twin, options=options),
    }
    state_dict_loader.load(target, checkpoint_id=tmp_path, no_dist=True)
    other.load_state_dict(target["model"])
    set_optimizer_state_dict(other, twin, target["opt"], options=options)
    train(other, twin, range(trained, 6))
    assert_same([*model.state_dict().values()], [*other.state_dict().values()])
