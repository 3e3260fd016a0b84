"""Only-Train-Once: the HESSO optimizer and its own construction of the smaller network.

HESSO takes the share of groups to remove, not a size, so the share is found by bisection after the
dense warm-up: on copies of the network, it removes them at once, by its own scores, and its
smaller network is counted. The output layer is kept by `mark_unprunable_by_param_names`.
Source: Chen et al., arXiv:2409.09085.
"""

import contextlib
import copy
import io
import tempfile
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from .methods import Method, Outcome, Setting, largest_within, parameters, split_epochs
from .tasks import Recipe, Task
from .training import Clock, make_optimizer, train

Batch = tuple[Tensor, Tensor]


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """Let the package run without a GPU and without its prints.

    HESSO calls `.cuda()` on a mask, whatever device the network is on; here that is the identity.
    """
    with (
        mock.patch.object(torch.Tensor, "cuda", lambda tensor: tensor),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        yield


def prepared(task: Task, model: nn.Module) -> Any:
    """The package's view of a model, its output layer marked."""
    from only_train_once import OTO  # pyright: ignore[reportMissingImports]

    with on_cpu():
        oto = OTO(model=model, dummy_input=task.example_input)
        oto.mark_unprunable_by_param_names(
            [f"{name}.{kind}" for name in task.fixed for kind in ("weight", "bias")]
        )
    return oto


def subnet(oto: Any) -> nn.Module:
    """The package's smaller network, read back from the file that it writes."""
    with tempfile.TemporaryDirectory() as folder, on_cpu():
        oto.construct_subnet(out_dir=folder, save_full_group_sparse_model=False)
        return torch.load(oto.compressed_model_path, weights_only=False)


def make_optimizer_of(
    oto: Any, recipe: Recipe, lr: float, share: float, steps: int, periods: int
) -> Any:
    """HESSO, to remove a share of the groups within `steps` steps from now on."""
    return oto.hesso(
        variant=recipe.optimizer,
        lr=lr,
        first_momentum=0.9,
        second_momentum=0.999 if recipe.optimizer == "adamw" else None,
        weight_decay=recipe.weight_decay,
        target_group_sparsity=share,
        start_pruning_step=1,
        pruning_periods=periods,
        pruning_steps=max(1, steps // periods) * periods,
    )


def share_for(task: Task, model: nn.Module, batch: Batch, target: float) -> float:
    """The share of groups that leaves the target size, were they removed now."""
    whole = parameters(model)

    def size_at(share: float) -> float:
        trial = copy.deepcopy(model)
        oto = prepared(task, trial)
        with on_cpu():
            opt = make_optimizer_of(oto, task.recipes[0], 0.0, share, 1, 1)
            task.loss(trial(batch[0]), batch[1]).backward()
            for _ in range(3):
                opt.step()
        return parameters(subnet(oto)) / whole

    share = largest_within(size_at, target, 0.0, 0.99, steps=8)
    if size_at(share) > 0.99:
        raise ValueError("only_train_once removes nothing from this network")
    return share


def train_hesso(task: Task, seed: int, target: float, setting: Setting) -> Outcome:
    """Dense warm-up, removal over some periods, then training of what is left."""
    model, clock, loader = task.make_model(seed), Clock(), task.loader(seed)
    recipe = task.recipes[0]
    lr, periods = recipe.lr * setting["lr"], setting["periods"]
    warm, during, rest = split_epochs(task.epochs, *setting["shares"])
    opt = make_optimizer(recipe, model, lr)
    train(task, model, loader, warm, opt, clock, span=(0, task.epochs))
    share = share_for(task, model, next(iter(task.loader(seed))), target)
    oto = prepared(task, model)
    with on_cpu():
        opt = make_optimizer_of(oto, recipe, lr, share, during * len(loader), periods)
        span = (warm, task.epochs)
        train(task, model, loader, during + rest, opt, clock, span=span)
    return Outcome(subnet(oto), clock, notes={"group_sparsity": share})


HESSO = Method(
    name="oto_hesso",
    train=train_hesso,
    settings=(
        {"shares": (0.1, 0.4, 0.5), "periods": 5, "lr": 1.0},
        {"shares": (0.3, 0.3, 0.4), "periods": 5, "lr": 1.0},
        {"shares": (0.1, 0.6, 0.3), "periods": 10, "lr": 1.0},
        {"shares": (0.1, 0.4, 0.5), "periods": 5, "lr": 2.0},
        {"shares": (0.1, 0.4, 0.5), "periods": 5, "lr": 0.5},
    ),
    packages=("only-train-once",),
    caveat="its calls of .cuda() are made the identity on the CPU",
)
