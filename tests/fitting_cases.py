"""Small networks to be fitted to a size, and separable data for them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import dualprox as dp


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 32), nn.ReLU(), nn.Linear(32, 3)
    )


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip


class Transformer(nn.Module):
    """An embedding, a pre-norm block of attention and two layers, a head on the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 16)
        self.before, self.between = nn.LayerNorm(16), nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.wide, self.narrow = nn.Linear(16, 48), nn.Linear(48, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.before(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.narrow(self.wide(self.between(x)).relu())
        return self.head(x.mean(1))


SHAPES = {"mlp": (8,), "cnn": (1, 8, 8), "transformer": (5, 4)}
NETWORKS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "cnn": cnn, "transformer": Transformer}


def network(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return NETWORKS[name]()


def batches(name: str, count: int = 8, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    """Gaussian clouds around one random centre for each of three classes."""
    generator = torch.Generator().manual_seed(11)
    centres = torch.randn(3, *SHAPES[name], generator=generator)
    y = torch.randint(3, (count * size,), generator=generator)
    x = centres[y] + 0.5 * torch.randn(len(y), *SHAPES[name], generator=generator)
    return list(zip(x.split(size), y.split(size), strict=True))


def groups_of(model: nn.Module, data: Any, penalty: Any = None, **more: Any) -> dp.ParamGroups:
    """Coupled groups."""
    return dp.param_groups(
        model, penalty or dp.GroupLasso(1.0), coupled=True, example_input=data[0][0], **more
    )


def train(model: nn.Module, opt: Any, control: Any, data: Any, steps: int) -> None:
    """Steps of the optimizer and the control, batch after batch, again and again."""
    for step in range(steps):
        x, y = data[step % len(data)]
        opt.zero_grad()
        cross_entropy(model(x), y).backward()
        opt.step()
        control.step()


def shrunk(model: nn.Module, opt: Any, data: Any) -> nn.Module:
    with opt.structured():
        return dp.shrink(model, data[0][0], latency=False)


def share(model: nn.Module, small: nn.Module, data: Any, measure: str) -> float:
    before = dp.measure(model, data[0][0], latency=False)
    after = dp.measure(small, data[0][0], latency=False)
    if measure == "macs":
        assert after.macs is not None and before.macs is not None
        return after.macs / before.macs
    return after.parameters / before.parameters


class StopError(Exception):
    """The process is gone."""


def fitted(name: str = "mlp", epochs: int = 6, target: Any = None, **more: Any) -> dp.Fit:
    settings = {"latency": False, **more}
    model = settings.pop("model") if "model" in settings else network(name)
    loader = settings.pop("loader") if "loader" in settings else batches(name)
    return dp.fit(model, loader, epochs, target or dp.TargetSize(params=0.4), **settings)
