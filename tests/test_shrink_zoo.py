"""Every network of the zoo, with random parts of it dead, shrinks to what the oracle counts."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import dualprox as dp
from oracles.channels import Channels
from zoo import CONVOLUTIONAL, Net
from zoo_sequences import SEQUENTIAL
from zoo_shapes import SPATIAL

ZOO = {**CONVOLUTIONAL, **SPATIAL, **SEQUENTIAL}


def damage(model: nn.Module, seed: int, share: float) -> None:
    """Kill random slices of random weights.

    Input slices become zero; rows become zero, with biases or shifts of norms that leave a
    constant or nothing; runs of slices go, as heads do; and now and then all of a layer.
    """
    rng = np.random.default_rng(seed)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        with torch.no_grad():
            if "var" in name:
                tensor.copy_(torch.from_numpy(rng.uniform(0.5, 2, tensor.shape)))
            else:
                tensor.copy_(torch.from_numpy(rng.normal(size=tensor.shape)))
            for axis in range(min(tensor.dim(), 2)):
                if rng.random() < 0.6:
                    kill(tensor, axis, rng, share)
            if tensor.dim() > 1 and rng.random() < 0.03:
                tensor.zero_()


def kill(tensor: Tensor, axis: int, rng: np.random.Generator, share: float) -> None:
    length = tensor.shape[axis]
    run = int(rng.choice([1, 1, 2, max(1, length // 2)]))
    for start in range(0, length, run):
        if rng.random() < share:
            tensor.narrow(axis, start, min(run, length - start)).zero_()


def entries(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def require_exact(make, seed: int, share: float) -> None:
    """Shrink a damaged network, and hold the result against the original and the oracle."""
    torch.manual_seed(seed)
    model: Net = make().double().eval()
    damage(model, seed, share)
    example = model.example()
    if example.is_floating_point():
        example = example.double()
    state = copy.deepcopy(model.state_dict())

    slim: Any = dp.shrink(model, example, latency=False)

    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), f"{name} of the original was changed"
    for run in range(3):
        x = example if run == 0 else model.example().to(example)
        torch.testing.assert_close(slim(x), model(x), rtol=1e-9, atol=1e-9)
    channels = Channels()
    model.count(channels)
    assert entries(slim) == channels.left()
    plan = dp.Plan.from_dict(slim.report.plan)
    dp.apply_plan(make().double(), plan).load_state_dict(slim.state_dict())


shares = st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.8, 1.0])
seeds = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("name", ZOO)
@settings(max_examples=5, deadline=None, derandomize=True, database=None)
@given(seed=seeds, share=shares)
def test_what_is_left_is_what_the_oracle_counts(name, seed, share):
    require_exact(ZOO[name], seed, share)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ZOO)
@settings(max_examples=100, deadline=None, database=None)
@given(seed=seeds, share=shares)
def test_what_is_left_is_what_the_oracle_counts_on_many_patterns(name, seed, share):
    require_exact(ZOO[name], seed, share)
