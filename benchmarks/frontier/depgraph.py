"""Torch-Pruning: one-shot pruning by group magnitude, and sparse training with group norms.

The recipes are those of its examples: global pruning of channels by the group L2 importance, after
dense training; or training with `GroupNormPruner.regularize` between gradient and step, then
pruning. Fine-tuning follows. The ratio of channels that hits the size asked for is found by
bisection on copies of the trained network. The output layer keeps its outputs, and attention loses
whole heads. Source: Fang et al., arXiv:2301.12900.
"""

import copy
from typing import Any

from torch import nn

from .methods import Method, Outcome, Setting, largest_within, parameters, split_epochs
from .tasks import Loader, Task
from .training import Clock, make_optimizer, train


def make_pruner(
    task: Task, model: nn.Module, ratio: float, normalizer: str | None, reg: float | None
) -> Any:
    """A pruner of the model in place; with `reg`, one that can regularize."""
    import torch_pruning as tp  # pyright: ignore[reportMissingImports]

    modules = dict(model.named_modules())
    # Documented as a dict, read as pairs: parameters of no layer, and the axis of their channels.
    loose = [(p, 1) for name, p in model.named_parameters() if "." not in name and p.ndim == 2]
    kind = tp.pruner.BasePruner if reg is None else tp.pruner.GroupNormPruner
    return kind(
        model,
        task.example_input,
        importance=tp.importance.GroupMagnitudeImportance(p=2, normalizer=normalizer),
        global_pruning=True,
        pruning_ratio=ratio,
        ignored_layers=[modules[name] for name in task.fixed],
        num_heads={modules[name]: heads for name, heads in task.heads.items()},
        prune_num_heads=bool(task.heads),
        prune_head_dims=not task.heads,
        head_pruning_ratio=ratio if task.heads else 0.0,
        unwrapped_parameters=loose or None,
        # Its defaults are dicts that all pruners share.
        in_channel_groups={},
        out_channel_groups={},
        **({} if reg is None else {"reg": reg}),
    )


def pruned(task: Task, model: nn.Module, target: float, normalizer: str | None) -> nn.Module:
    """A copy with the largest number of parameters that is within the target.

    If none is, the smallest: a ratio at which a layer would lose everything prunes nothing.
    """
    whole = parameters(model)
    made: dict[float, nn.Module] = {}

    def size_at(ratio: float) -> float:
        trial = copy.deepcopy(model)
        make_pruner(task, trial, ratio, normalizer, None).step()
        made[ratio] = trial
        return parameters(trial) / whole

    size_at(0.999)
    found = made[largest_within(size_at, target, 0.0, 0.999, steps=9)]
    return found if parameters(found) <= target * whole else min(made.values(), key=parameters)


def fine_tune(
    task: Task, slim: nn.Module, loader: Loader, epochs: int, share: float, clock: Clock
) -> None:
    """Train with a fresh optimizer from a share of the recipe's lr."""
    for p in slim.parameters():
        p.requires_grad_(True)
    opt = make_optimizer(task.recipes[0], slim, task.recipes[0].lr * share)
    train(task, slim, loader, epochs, opt, clock)


def train_magnitude(task: Task, seed: int, target: float, setting: Setting) -> Outcome:
    """Dense training, pruning, fine-tuning."""
    model, clock, loader = task.make_model(seed), Clock(), task.loader(seed)
    first, last = split_epochs(task.epochs, 1 - setting["finetune"], setting["finetune"])
    train(task, model, loader, first, make_optimizer(task.recipes[0], model), clock)
    slim = pruned(task, model, target, setting["normalizer"])
    fine_tune(task, slim, loader, last, setting["lr"], clock)
    return Outcome(slim, clock)


def train_group_norm(task: Task, seed: int, target: float, setting: Setting) -> Outcome:
    """Dense training, sparse training, pruning, fine-tuning."""
    model, clock, loader = task.make_model(seed), Clock(), task.loader(seed)
    dense, sparse, last = split_epochs(task.epochs, *setting["shares"])
    recipe = task.recipes[0]
    train(task, model, loader, dense, make_optimizer(recipe, model), clock)
    model.eval()
    pruner = make_pruner(task, model, 0.5, setting["normalizer"], setting["reg"])
    pruner.update_regularizer()
    opt = make_optimizer(recipe, model, recipe.lr * setting["sparse_lr"])
    train(task, model, loader, sparse, opt, clock, before_step=lambda: pruner.regularize(model))
    slim = pruned(task, model, target, setting["normalizer"])
    fine_tune(task, slim, loader, last, setting["lr"], clock)
    return Outcome(slim, clock)


TP_MAGNITUDE = Method(
    name="tp_magnitude",
    train=train_magnitude,
    settings=(
        {"finetune": 0.5, "lr": 1.0, "normalizer": "mean"},
        {"finetune": 0.7, "lr": 1.0, "normalizer": "mean"},
        {"finetune": 0.5, "lr": 1.0, "normalizer": "max"},
        {"finetune": 0.5, "lr": 0.3, "normalizer": "mean"},
        {"finetune": 0.7, "lr": 1.0, "normalizer": "max"},
    ),
    packages=("torch-pruning",),
)
TP_GROUP_NORM = Method(
    name="tp_group_norm",
    train=train_group_norm,
    settings=tuple(
        {"shares": shares, "reg": reg, "sparse_lr": rate, "lr": 1.0, "normalizer": normalizer}
        for shares, reg, rate, normalizer in (
            ((0.3, 0.3, 0.4), 5e-4, 0.5, "mean"),
            ((0.3, 0.3, 0.4), 5e-3, 0.5, "mean"),
            ((0.3, 0.3, 0.4), 5e-4, 0.5, "max"),
            ((0.1, 0.4, 0.5), 2e-3, 1.0, "mean"),
            ((0.3, 0.3, 0.4), 5e-3, 0.5, "max"),
        )
    ),
    packages=("torch-pruning",),
)
