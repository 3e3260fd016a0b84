"""Every public name given bad arguments: it works, or it says which one is bad, and why."""

import logging
import random
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import dualprox as dp
from api_cases import CALLS, RECORDS, abstract
from fuzzing import BAD_VALUES, try_call

PROMISE = pytest.mark.promise(
    "input",
    "a public function or class given a bad argument works or says which, why and what it got, "
    "and leaves model and optimizer bit by bit as they were",
    "calls",
)


@pytest.fixture(autouse=True)
def quiet():
    """Torch warns of odd tensors, and logs what it cannot trace."""
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def test_every_public_name_is_tried():
    names = {name for name in dp.__all__ if not abstract(name)}
    assert names == CALLS.keys() | RECORDS and not CALLS.keys() & RECORDS


def spoil(name, folder, spoilt):
    """Call it with some arguments replaced, given as pairs (parameter, name of a bad value)."""
    call = CALLS[name]
    given = call.given(folder)
    given.update({param: BAD_VALUES[value]() for param, value in spoilt})
    try:
        try_call(call.call, given, [param for param, _ in spoilt], call.may_raise)
    except Exception as error:
        raise AssertionError(f"{name} with {spoilt}: {error}") from error


def all_pairs(name, folder):
    return [(param, value) for param in CALLS[name].given(folder) for value in BAD_VALUES]


@pytest.fixture(autouse=True)
def same_networks() -> None:
    """Else one in some hundred has no live unit, and so no gradient."""
    torch.manual_seed(0)


@PROMISE
@pytest.mark.parametrize("name", CALLS)
def test_one_bad_argument(name, tmp_path, tries):
    call = CALLS[name]
    call.call(**call.given(tmp_path / "good"))
    pairs = all_pairs(name, tmp_path / "some")
    most = 6 if call.is_slow else 80
    for pair in random.Random(name).sample(pairs, min(most, len(pairs))):
        with tries.one():
            spoil(name, tmp_path / "some", [pair])


@PROMISE
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", CALLS)
def test_every_bad_value_of_every_argument(name, tmp_path, tries):
    for pair in all_pairs(name, tmp_path / "some"):
        with tries.one():
            spoil(name, tmp_path / "some", [pair])


@PROMISE
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", CALLS)
def test_several_bad_arguments(name, tmp_path, tries):
    pairs = all_pairs(name, tmp_path / "some")
    rng = random.Random(name)
    for _ in range(100 if CALLS[name].is_slow else 2000):
        with tries.one():
            spoil(name, tmp_path / "some", rng.sample(pairs, min(3, len(pairs))))


@PROMISE
def test_numbers_of_numpy_are_numbers_and_a_checkpoint_holds_them(tmp_path, tries):
    for name in ("RMDA", "RAMDA", "ProxSGD", "ProxAdamW"):
        with tries.one():
            w = nn.Parameter(torch.ones(2, 2))
            numbers = [np.float32(0.5), np.float64(0.1), np.int64(1), np.int32(1)]
            penalty = dp.GroupLasso(*numbers[:1], axis=numbers[2], block=numbers[3])  # pyright: ignore
            groups = [{"params": [w], "penalty": penalty, "lr": numbers[1]}]
            opt = getattr(dp, name)(groups)
            stages = dp.StageSchedule(opt, [numbers[2]], numbers[0])  # pyright: ignore
            saved = {"opt": opt.state_dict(), "stages": stages.state_dict()}
            torch.save(saved, tmp_path / name)
            read = torch.load(tmp_path / name, weights_only=True)
            other = getattr(dp, name)([{"params": [w], "penalty": dp.GroupLasso(0.5), "lr": 0.1}])
            other.load_state_dict(read["opt"])
            assert str(penalty) == str(dp.GroupLasso(0.5))


@PROMISE
@settings(max_examples=60, deadline=None)
@given(strength=st.one_of(st.floats(), st.integers()), step=st.floats(0, 1e6))
def test_a_strength_is_refused_or_can_be_used(strength, step):
    for kind in (dp.L1, dp.L0, dp.GroupLasso, dp.GroupHalf, dp.NuclearNorm, dp.ElasticNet):
        try:
            penalty = kind(strength)
        except ValueError as error:
            assert "strength must be" in str(error)
            continue
        assert penalty.prox(torch.ones(2, 3, dtype=torch.float64), step).shape == (2, 3)


MODELS = {
    "no parameters": nn.ReLU,
    "empty": nn.Sequential,
    "shared": lambda: nn.Sequential(layer := nn.Linear(4, 4), layer),
    "frozen": lambda: nn.Linear(4, 4).requires_grad_(False),
    "lazy": lambda: nn.LazyLinear(4),
    "meta": lambda: nn.Linear(4, 4, device="meta"),
    "complex": lambda: nn.Linear(4, 4, dtype=torch.complex64),
    "parametrized": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
    "no axes": lambda: nn.ParameterList([nn.Parameter(torch.tensor(1.0))]),
    "no entries": lambda: nn.Linear(0, 4),
    "half": lambda: nn.Linear(4, 4).half(),
    "int": lambda: nn.ParameterList(
        [nn.Parameter(torch.ones(2, 2, dtype=torch.int64), requires_grad=False)]
    ),
}


@PROMISE
@pytest.mark.parametrize("kind", MODELS)
def test_odd_models_are_refused_in_words_or_trained(kind, tries):
    for penalty in (dp.GroupLasso(0.1), dp.L1(0.1), dp.NuclearNorm(0.1), dp.Rank):
        with tries.one():
            torch.manual_seed(0)
            model = MODELS[kind]()
            given = {
                "model": model,
                "penalty": penalty,
                "axes": {"*": 0} if kind == "int" else None,
            }
            try_call(dp.param_groups, given, ["model", "penalty"])
            try:
                opt = dp.RMDA(dp.param_groups(**given))
            except (TypeError, ValueError) as error:
                assert str(error)
                continue
            for param in model.parameters():
                if param.requires_grad:
                    param.grad = torch.ones_like(param)
            opt.step()


@PROMISE
@pytest.mark.parametrize(
    "damage",
    [
        lambda saved: saved.pop("state"),
        lambda saved: saved.pop("param_groups"),
        lambda saved: saved["state"].update({0: {"step": "x"}}),
        lambda saved: saved["state"].update({0: 5}),
        lambda saved: saved["state"][0].update(anchor=torch.ones(3)),
        lambda saved: saved["state"][0].update(anchor=None),
        lambda saved: saved["state"][0].update(step=torch.ones(2)),
        lambda saved: saved["param_groups"].append(5),
        lambda saved: saved["param_groups"][0].pop("params"),
        lambda saved: saved["param_groups"][0].update(params=[]),
        lambda saved: saved["param_groups"][0].update(penalty=5),
        lambda saved: saved["param_groups"][0].update(momentum="x"),
        lambda saved: saved["param_groups"][0].update(lr=float("nan")),
        lambda saved: saved["param_groups"][0].update(lr=None),
        lambda saved: saved["param_groups"][0].update(eps=-1.0),
        lambda saved: saved["param_groups"][0].update(frozen="x"),
        lambda saved: saved["param_groups"][0].update(ramp=7),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(damage):
    opt = _stepped()
    saved = opt.state_dict()
    damage(saved)
    w = opt.param_groups[0]["params"][0]
    state = {name: value.clone() for name, value in opt.state[w].items()}
    groups = [dict(group) for group in opt.param_groups]
    with pytest.raises((ValueError, TypeError)) as raised:
        opt.load_state_dict(saved)
    assert str(raised.value)
    assert [dict(group) for group in opt.param_groups] == groups
    assert all(torch.equal(value, opt.state[w][name]) for name, value in state.items())


def _stepped():
    w = nn.Parameter(torch.ones(2, 2))
    opt = dp.RAMDA([{"params": [w], "penalty": dp.GroupLasso(0.1)}])
    w.grad = torch.ones(2, 2)
    opt.step()
    return opt
