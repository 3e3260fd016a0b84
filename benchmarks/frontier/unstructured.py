"""Sparsity without structure: gradual magnitude pruning, and RigL.

Their size counts the entries that are not zero, although the network stays as large and as slow as
the dense one. Weights of Linear layers and convolutions are pruned, biases and norms are not.
"""

import torch
from torch import Tensor, nn

import dualprox as dp

from .methods import Method, Outcome, Setting, parameters, weighted_layers
from .tasks import Task
from .training import Clock, make_optimizer, train


def weights_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights of Linear layers and convolutions, by name."""
    own = dict(model.named_parameters())
    return {f"{name}.weight": own[f"{name}.weight"] for name in weighted_layers(model)}


def budget(model: nn.Module, target: float) -> int:
    """Entries of the weights that may live so that the model has the target size, at least one."""
    whole = parameters(model)
    others = whole - sum(p.numel() for p in weights_of(model).values())
    return max(1, int(target * whole) - others)


def nonzero(model: nn.Module) -> int:
    """Entries of the parameters that are not zero; biases and norms all count."""
    weights = {id(p) for p in weights_of(model).values()}
    return sum(int((p != 0).sum()) if id(p) in weights else p.numel() for p in model.parameters())


@torch.no_grad()
def largest(weights: dict[str, nn.Parameter], keep: int) -> dict[str, Tensor]:
    """Masks of the largest entries of all weights together."""
    sizes = torch.cat([p.abs().flatten() for p in weights.values()])
    chosen = torch.zeros(len(sizes), dtype=torch.bool)
    chosen[sizes.topk(keep).indices] = True
    parts = chosen.split([p.numel() for p in weights.values()])
    return {n: part.view_as(p) for (n, p), part in zip(weights.items(), parts, strict=True)}


def train_gradual(task: Task, seed: int, target: float, setting: Setting) -> Outcome:
    """Global magnitude pruning on a cubic ramp; pruned weights may come back until it ends.

    The share that lives after a fraction t of the ramp is s + (1 - s)(1 - t)^3. Source: Zhu &
    Gupta, arXiv:1710.01878.
    """
    model, clock, loader = task.make_model(seed), Clock(), task.loader(seed)
    weights, keep = weights_of(model), budget(model, target)
    whole = sum(p.numel() for p in weights.values())
    steps = task.epochs * len(loader)
    begin, end = (round(share * steps) for share in setting["ramp"])
    every = max(1, (end - begin) // setting["prunings"])
    masks: dict[str, Tensor] = {}

    @torch.no_grad()
    def after_step(step: int) -> None:
        if begin < step <= end and ((step - begin) % every == 0 or step == end):
            left = (1 - (step - begin) / (end - begin)) ** 3
            masks.update(largest(weights, round(keep + (whole - keep) * left)))
        for name, mask in masks.items():
            weights[name].mul_(mask)

    opt = make_optimizer(task.recipes[0], model)
    train(task, model, loader, task.epochs, opt, clock, after_step=after_step)
    return Outcome(model, clock, nonzero=nonzero(model))


def train_rigl(task: Task, seed: int, target: float, setting: Setting) -> Outcome:
    """RigL from random masks, in one training."""
    model, clock, loader = task.make_model(seed), Clock(), task.loader(seed)
    steps, recipe = task.epochs * len(loader), task.recipes[0]
    whole = sum(p.numel() for p in weights_of(model).values())
    opt = dp.RigL(
        make_optimizer(recipe, model, recipe.lr * setting["lr"]),
        model,
        sparsity=1 - budget(model, target) / whole,
        t_end=round(0.75 * steps),
        delta_t=max(1, round(setting["every"] * steps)),
        drop_fraction=setting["share"],
        seed=seed,
    )
    train(task, model, loader, task.epochs, opt, clock)
    return Outcome(model, clock, nonzero=nonzero(model))


CAVEAT = "size counts nonzeros; MACs and latency are those of the dense network"
MAGNITUDE = Method(
    name="magnitude_unstructured",
    train=train_gradual,
    settings=(
        {"ramp": (0.2, 0.7), "prunings": 20},
        {"ramp": (0.1, 0.5), "prunings": 20},
        {"ramp": (0.3, 0.8), "prunings": 20},
        {"ramp": (0.5, 0.6), "prunings": 5},
        {"ramp": (0.0, 0.7), "prunings": 40},
    ),
    unstructured=True,
    caveat=CAVEAT,
)
RIGL = Method(
    name="rigl",
    train=train_rigl,
    settings=(
        {"share": 0.3, "every": 0.02, "lr": 1.0},
        {"share": 0.5, "every": 0.02, "lr": 1.0},
        {"share": 0.3, "every": 0.02, "lr": 2.0},
        {"share": 0.3, "every": 0.04, "lr": 1.0},
        {"share": 0.3, "every": 0.02, "lr": 0.5},
    ),
    unstructured=True,
    caveat=CAVEAT,
)
