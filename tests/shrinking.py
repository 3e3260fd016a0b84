"""A network with dead channels, and what must hold for whatever is made of it."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import LayerNorm, Linear, ReLU, Sequential
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


def selected(model: Any, example: Any, **options: Any) -> Any:
    """The slim network, after all that must hold for any."""
    return shrunk(model, example, select_inputs=True, **options)


class Block(nn.Module):
    """A transformer block behind a LayerNorm that keeps the width of its stream."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.second = nn.Embedding(9, 12), LayerNorm(12), LayerNorm(12)
        self.q, self.k, self.v, self.o = (Linear(12, 12) for _ in range(4))
        self.up, self.down = Linear(12, 20), Linear(20, 12)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        y = self.first(x)
        q, k, v = (layer(y).unflatten(-1, (3, -1)).mT for layer in (self.q, self.k, self.v))
        x = x + self.o((torch.softmax(q @ k.mT, -1) @ v).mT.flatten(-2))
        return x + self.down(torch.relu(self.up(self.second(x))))


def block() -> tuple[Block, Tensor]:
    torch.manual_seed(0)
    model = Block().eval()
    for layer, dead in ((model.q, (0, 1, 5)), (model.k, (2,)), (model.v, range(11))):
        kill(layer, dead)
    kill(model.up, (3, 4))
    return model, torch.randint(0, 9, (2, 6))


def mlp() -> Sequential:
    torch.manual_seed(0)
    return Sequential(Linear(10, 6), ReLU(), Linear(6, 3)).eval()
