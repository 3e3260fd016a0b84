"""A network with masked weights, and optimizers that RigL wraps."""

from typing import Any

import pytest
import torch
from torch import nn

import dualprox as dp

TORCH: dict[str, Any] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "plain SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "AdamW amsgrad": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, weight_decay=0.1),
    "RMDA": lambda p: dp.RMDA(p, lr=0.05),
}
every_torch = pytest.mark.parametrize("name", TORCH)


class Net(nn.Module):
    """Every kind of parameter: masked ones under a norm, biases, an embedding, a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.words = nn.Embedding(7, 5)
        self.up = nn.Linear(5, 12)
        self.tied = nn.Linear(5, 7, bias=False)
        self.tied.weight = self.words.weight


def network(
    dtype: torch.dtype = torch.float64, layout: torch.memory_format = torch.contiguous_format
) -> tuple[Net, Any]:
    """A network and a function that sets its gradients for step t, which depend on the weights."""
    torch.manual_seed(0)
    model: Any = Net().to(dtype)
    model = model.to(memory_format=layout)
    targets = [torch.randn(p.shape, dtype=torch.float64) for p in model.parameters()]

    def set_gradients(step: int) -> None:
        noise = torch.Generator().manual_seed(step)
        for param, target in zip(model.parameters(), targets, strict=True):
            random = torch.randn(param.shape, generator=noise, dtype=torch.float64)
            param.grad = (param.detach().double() - target + 0.3 * random).to(dtype)

    return model, set_gradients


def made(name: str = "SGD", **settings: Any) -> tuple[Net, dp.RigL, Any]:
    model, set_gradients = network()
    opt = TORCH[name](model.parameters())
    settings = {"sparsity": 0.7, "t_end": 80, "delta_t": 5, **settings}
    return model, dp.RigL(opt, model, **settings), set_gradients


def sgd_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def masked_weights(model: Net) -> dict[str, torch.Tensor]:
    return {"conv.weight": model.conv.weight, "up.weight": model.up.weight}
