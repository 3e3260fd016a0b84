"""Parts of a run: the network that reads its data, where it starts, who solves its subproblem."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import dualprox as dp
from dualprox.lab import settings, specs
from dualprox.lab.data import CATALOGUE
from dualprox.lab.data.normalization import PUBLISHED, published
from dualprox.lab.networks import NETWORKS, example_input, make_model
from dualprox.lab.optimizers import make_optimizer
from dualprox.lab.recipes import RECIPES
from dualprox.lab.settings import Run
from dualprox.lab.train import check

PG = dp.ProximalGradient(max_iter=7, rtol=1e-3)
CASES = [(name, kind) for name in CATALOGUE for kind in NETWORKS]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_network_reads_its_data_or_says_which_do(name, kind) -> None:
    run = replace(RECIPES["digits_mlp_dense"](), data=name, model=kind())
    if NETWORKS[kind].reads(CATALOGUE[name].shape):
        with torch.device("meta"):
            model = make_model(run)
            scores = model(torch.empty(2, *CATALOGUE[name].shape))
        assert scores.shape == (2, CATALOGUE[name].classes)
        assert example_input(run).shape == (2, *CATALOGUE[name].shape)
    else:
        with pytest.raises(ValueError, match=f"model must be .*Spec for data={name}, got"):
            make_model(run)


def test_every_data_set_has_a_network() -> None:
    for known in CATALOGUE.values():
        assert any(network.reads(known.shape) for network in NETWORKS.values())


@pytest.mark.parametrize("solver", [None, PG, dp.NewtonRaphson(max_iter=3), dp.Exact()])
@pytest.mark.parametrize("kind", [specs.RamdaSpec, specs.ProxAdamwSpec])
def test_a_solver_reaches_the_optimizer_and_survives_json(kind, solver) -> None:
    run = replace(RECIPES["digits_mlp_ramda"](), optimizer=kind(solver=solver))
    assert settings.from_json(json.loads(json.dumps(settings.to_json(run)))) == run
    opt = make_optimizer(run, make_model(run))
    used = {group["solver"] for group in opt.param_groups if group.get("penalty") is not None}
    assert used == {solver}


def test_a_solver_is_set_field_by_field_or_taken_away() -> None:
    run = replace(RECIPES["digits_mlp_ramda"](), optimizer=specs.RamdaSpec(solver=PG))
    changed = settings.with_settings(run, ["optimizer.solver.max_iter=3"])
    assert changed.optimizer == specs.RamdaSpec(solver=replace(PG, max_iter=3))
    gone = settings.with_settings(run, ["optimizer.solver=none"])
    assert gone.optimizer == specs.RamdaSpec()
    with pytest.raises(ValueError, match="its fields are set one by one"):
        settings.with_settings(run, ["optimizer.solver=exact"])


def test_the_origin_is_where_every_parameter_is_zero_and_one_layer_alone_can_learn() -> None:
    run = replace(RECIPES["digits_mlp_rmda"](), model=specs.MlpSpec(hidden=()), init="origin")
    model = make_model(run)
    assert all((param == 0).all() for param in model.parameters())
    with pytest.raises(ValueError, match="init must be torch for a network of several layers"):
        replace(run, model=specs.MlpSpec(hidden=(3,)))
    # From there a first step does move.
    x = example_input(run)
    nn.functional.cross_entropy(model(x), torch.tensor([1, 2])).backward()
    opt = make_optimizer(settings.with_settings(run, ["penalty.strength=0"]), model)
    opt.step()
    assert any((param != 0).any() for param in model.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_constants_normalize_each_channel_by_its_own(name) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, *CATALOGUE[name].shape), np.uint8)
    means, scales = PUBLISHED[name]
    wanted = np.empty(pixels.shape)
    for channel, (mean, scale) in enumerate(zip(means, scales, strict=True)):
        part = pixels[:, channel] if len(means) > 1 else pixels
        scaled = (part.astype(np.float64) / 255 - mean) / scale
        if len(means) > 1:
            wanted[:, channel] = scaled
        else:
            wanted = scaled
    found = published(name)(torch.from_numpy(pixels))
    np.testing.assert_allclose(found.numpy(), wanted, rtol=2e-6, atol=2e-6)
    assert found.dtype == torch.float32


def test_data_without_published_constants_refuses_them() -> None:
    run = Run(recipe="x", optimizer=specs.SgdSpec(), normalization="published")
    with pytest.raises(ValueError, match="normalization must be own for data=digits"):
        check(run)
