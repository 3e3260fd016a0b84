"""The foreseen size of a network is the size that it has after shrinking."""

from typing import Any

import pytest
import torch
from torch import nn

import dualprox as dp
from dualprox.shrinking.footprint import Footprint, Size
from test_shrink_zoo import ZOO

# Networks whose attention scores cost less when heads go, which the footprint does not foresee.
SCORES = {name for name in ZOO if "coder" in name or "attention" in name}


def killed(model: nn.Module, example: Any, seed: int, whole: bool = False) -> dict[str, Any]:
    """Make random coupled groups zero, with `whole` all of the first set and no others.

    Returns for each weight with groups which slices live.
    """
    generator = torch.Generator().manual_seed(seed)
    live = {}
    for group in dp.param_groups(model, dp.GroupLasso(1.0), coupled=True, example_input=example):
        penalty = group["penalty"]
        if penalty is None:
            continue
        if isinstance(penalty, dp.Coupled):
            members = penalty.coupling.members
        else:
            shape, cut = tuple(group["params"][0][1].shape), penalty.slices
            members = [dp.Member(shape, cut, range(cut.count(shape)))] * len(group["params"])
        count = 1 + max(max(member.groups) for member in members)
        alive = torch.rand(count, generator=generator) < 0.6
        alive[torch.randint(count, (), generator=generator)] = True
        if whole:
            alive[:] = bool(live)
        for (name, param), member in zip(group["params"], members, strict=True):
            groups = torch.tensor(list(member.groups))
            slices = torch.where(groups < 0, True, alive[groups.clamp_min(0)])
            view = member.slices.view(param.data)
            inner = member.slices.inner(view)
            view.mul_(slices.reshape([1 if i in inner else n for i, n in enumerate(view.shape)]))
            live[name] = slices.repeat_interleave(member.slices.block).numpy()
    return live


@pytest.mark.parametrize("name", sorted(ZOO.keys() - {"shufflenet"}))  # there all channels stay
def test_the_footprint_is_what_shrinking_leaves(name: str) -> None:
    seed = sum(map(ord, name))
    torch.manual_seed(seed)
    model = ZOO[name]().eval()
    example = model.example()
    whole = dp.measure(model, example, latency=False)
    footprint = Footprint(model, example)
    assert whole.macs is not None
    assert footprint.dense == Size(whole.parameters, whole.macs)
    live = killed(model, example, seed)
    slim = dp.shrink(model, example, latency=False)
    foreseen, left = footprint.of(live), dp.measure(slim, example, latency=False)
    assert left.macs is not None
    assert foreseen.parameters == left.parameters <= whole.parameters
    if name not in SCORES:
        assert foreseen.macs == left.macs <= whole.macs
    else:
        assert left.macs <= foreseen.macs <= whole.macs


@pytest.mark.parametrize("round_to", [3, 8])
@pytest.mark.parametrize("name", ["lenet", "resnet_basic", "mobilenet", "densenet", "lstm"])
def test_widths_are_rounded_as_shrinking_rounds_them(name: str, round_to: int) -> None:
    name = next(known for known in sorted(ZOO) if known.startswith(name))
    torch.manual_seed(0)
    model = ZOO[name]().eval()
    example = model.example()
    live = killed(model, example, round_to)
    slim = dp.shrink(model, example, round_to=round_to, latency=False)
    foreseen = Footprint(model, example, round_to=round_to).of(live)
    left = dp.measure(slim, example, latency=False)
    assert (foreseen.parameters, foreseen.macs) == (left.parameters, left.macs)
    exact = Footprint(model, example).of(live).parameters
    assert foreseen.parameters >= exact
    assert foreseen.parameters > exact or name not in ("resnet_basic", "densenet")


@pytest.mark.parametrize("name", ["lenet", "resnet_basic", "encoder_norm_first"])
def test_a_layer_that_is_dead_throughout_is_not_foreseen_smaller_than_it_can_be(name: str) -> None:
    torch.manual_seed(0)
    model = ZOO[name]().eval()
    example = model.example()
    live = killed(model, example, 0, whole=True)
    assert any(not own.any() for own in live.values())
    left = dp.measure(dp.shrink(model, example, latency=False), example, latency=False)
    foreseen = Footprint(model, example).of(live)
    assert left.parameters <= foreseen.parameters
    if name == "encoder_norm_first":  # nothing is constant but what one head of attention makes
        assert left.parameters == foreseen.parameters
