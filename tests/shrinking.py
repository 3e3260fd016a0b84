"""A network with dead channels, and what must hold for whatever is made of it."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Linear
from torch.utils import _pytree as pytree

import dualprox as dp

WIDTH = 8
DEAD = (0, 2, 3, 6)


def kill(layer, dead=DEAD):
    """The layer does not read these inputs."""
    with torch.no_grad():
        layer.weight[:, list(dead)] = 0


class Between(nn.Module):
    """Two layers with `between` in the middle; the second does not read half of its inputs."""

    def __init__(self, between=None, width=WIDTH):
        super().__init__()
        self.first, self.last = Linear(4, width), Linear(width, 3)
        if between is not None:
            self.between = between
        kill(self.last)

    def between(self, x):
        return torch.relu(x)

    def forward(self, x):
        return self.last(self.between(self.first(x)))


def shrunk(model: Any, example: Any, **options: Any) -> Any:
    """The slim network, after all that must hold for any."""
    torch.manual_seed(0)
    state = copy.deepcopy(model.state_dict())
    training = [module.training for module in model.modules()]
    slim: Any = dp.shrink(model, example, latency=False, **options)
    assert training == [module.training for module in model.modules()]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])
    arguments = example if isinstance(example, tuple | dict) else (example,)
    with torch.inference_mode():
        for scale in (1.0, 2.0, -1.0):
            scaled = pytree.tree_map_only(
                Tensor, lambda t, s=scale: t * s if t.is_floating_point() else t, arguments
            )
            torch.manual_seed(0)
            ours = run(copy.deepcopy(slim).eval(), scaled)
            torch.manual_seed(0)
            theirs = run(copy.deepcopy(model).eval(), scaled)
            loose = ours[0].dtype == torch.bfloat16
            tolerance: Any = {"rtol": 0.05, "atol": 0.1} if loose else {"rtol": 1e-4, "atol": 1e-5}
            torch.testing.assert_close(ours, theirs, **tolerance)
    plan = dp.Plan.from_dict(slim.report.plan)
    dp.apply_plan(copy.deepcopy(model), plan).load_state_dict(slim.state_dict())
    return slim


def run(model, arguments):
    out = model(**arguments) if isinstance(arguments, dict) else model(*arguments)
    return [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)]


def why(slim, name):
    """What the report says about a layer."""
    return next(row.stayed for row in slim.report.layers if row.name == name)


class Method(Between):
    def __init__(self, function):
        super().__init__()
        self.function = [function]

    def between(self, x):
        return self.function[0](x)
