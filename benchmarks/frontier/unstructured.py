"""Sparsity without structure: gradual magnitude pruning, and RigL.

Their size counts the entries that are not zero, although the network stays as large and as slow as
the dense one. Weights of Linear layers and convolutions are pruned, biases and norms are not.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

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


def erdos_renyi(weights: dict[str, nn.Parameter], keep: int) -> dict[str, int]:
    """How many entries of each weight live: Erdős-Rényi-Kernel densities, none above one.

    The density of a weight is in proportion to the sum of its sizes over their product. Source:
    Evci et al., arXiv:1911.11134, section 3 and appendix.
    """
    raw = {name: sum(p.shape) / p.numel() for name, p in weights.items()}
    full: set[str] = set()
    while True:
        free = keep - sum(weights[name].numel() for name in full)
        scale = free / sum(raw[name] * weights[name].numel() for name in raw if name not in full)
        over = {name for name in raw if name not in full and scale * raw[name] > 1}
        if not over:
            break
        full |= over
    return {
        name: p.numel() if name in full else max(1, int(scale * raw[name] * p.numel()))
        for name, p in weights.items()
    }


@dataclass
class Rigl:
    """Random sparse weights, of which the smallest are dropped and others grown by gradient.

    Args:
        weights: by name.
        keep: entries of all weights that live.
        steps: of the training.
        every: steps between updates.
        share: of the live entries replaced at the first update; it follows a cosine to 0.
        end: the fraction of the training after which nothing is replaced.
        seed: of the first masks.

    Source: Evci et al., arXiv:1911.11134, algorithm 1.
    """

    weights: dict[str, nn.Parameter]
    keep: int
    steps: int
    every: int
    share: float
    end: float
    seed: int

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        self.masks = {}
        for name, count in erdos_renyi(self.weights, self.keep).items():
            p = self.weights[name]
            mask = torch.zeros(p.numel(), dtype=torch.bool)
            mask[torch.randperm(p.numel(), generator=generator)[:count]] = True
            self.masks[name] = mask.view_as(p)
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        for name, mask in self.masks.items():
            self.weights[name].mul_(mask)

    @torch.no_grad()
    def before_step(self, step: int, opt: torch.optim.Optimizer) -> None:
        """Replace entries if it is time, and let no gradient reach the dead ones."""
        if step % self.every == 0 and 0 < step < self.end * self.steps:
            share = self.share / 2 * (1 + math.cos(math.pi * step / (self.end * self.steps)))
            for name in self.masks:
                self.replace(name, share, opt)
        for name, mask in self.masks.items():
            grad = self.weights[name].grad
            if grad is not None:
                grad.mul_(mask)

    @torch.no_grad()
    def replace(self, name: str, share: float, opt: torch.optim.Optimizer) -> None:
        """Drop the smallest live entries, then grow as many among all that are dead.

        What is dropped may grow again at once, and then keeps its value; what is new starts at 0,
        in the optimizer's buffers too.
        """
        p, mask = self.weights[name], self.masks[name]
        live = int(mask.sum())
        count = min(int(share * live), p.numel() - live)
        if count == 0 or p.grad is None:
            return
        size = torch.where(mask, p.abs(), torch.inf).flatten()
        dropped = size.topk(count, largest=False).indices
        flat = mask.flatten().clone()
        flat[dropped] = False
        slope = torch.where(flat, -torch.inf, p.grad.abs().flatten())
        flat[slope.topk(count).indices] = True
        old, self.masks[name] = mask, flat.view_as(mask)
        stays = old & self.masks[name]
        p.mul_(stays)
        for value in opt.state[p].values():
            if isinstance(value, Tensor) and value.shape == p.shape:
                value.mul_(stays)


def train_rigl(task: Task, seed: int, target: float, setting: Setting) -> Outcome:
    """RigL from random masks, in one training."""
    model, clock, loader = task.make_model(seed), Clock(), task.loader(seed)
    steps = task.epochs * len(loader)
    every = max(1, round(setting["every"] * steps))
    rigl = Rigl(
        weights_of(model), budget(model, target), steps, every, setting["share"], 0.75, seed
    )
    recipe = task.recipes[0]
    opt = make_optimizer(recipe, model, recipe.lr * setting["lr"])
    taken = 0

    def before_step() -> None:
        nonlocal taken
        rigl.before_step(taken, opt)
        taken += 1

    train(
        task,
        model,
        loader,
        task.epochs,
        opt,
        clock,
        before_step=before_step,
        after_step=lambda step: rigl.apply(),
    )
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
