"""Only-Train-Once: the HESSO optimizer and its own construction of the smaller network.

HESSO takes the share of groups to remove, not a size, so the share is found by bisection: groups
of a fresh network are zeroed at random (its own `random_set_zero_groups`) and counted. The output
layer is kept by `mark_unprunable_by_param_names`. Source: Chen et al., arXiv:2409.09085.
"""

import contextlib
import copy
import io
import math
import tempfile
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import nn

from .methods import Method, Outcome, Setting, largest_within, parameters
from .tasks import Task
from .training import Clock, train


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


def share_for(task: Task, seed: int, target: float) -> float:
    """The share of groups whose random removal leaves the target size."""
    model = task.make_model(seed)
    whole = parameters(model)

    def size_at(share: float) -> float:
        trial = copy.deepcopy(model)
        oto = prepared(task, trial)
        with on_cpu():
            oto.random_set_zero_groups(target_group_sparsity=share)
        return parameters(subnet(oto)) / whole

    return largest_within(size_at, target, 0.0, 0.99, steps=7)


def train_hesso(task: Task, seed: int, target: float, setting: Setting) -> Outcome:
    """Warm-up, removal over some periods, then training of what is left."""
    model, clock, loader = task.make_model(seed), Clock(), task.loader(seed)
    recipe, steps = task.recipes[0], task.epochs * len(loader)
    with clock.counted():
        share = share_for(task, seed, target)
        oto = prepared(task, model)
    begin, during = round(setting["start"] * steps), round(setting["during"] * steps)
    periods = setting["periods"]
    with on_cpu():
        opt = oto.hesso(
            variant=recipe.optimizer,
            lr=recipe.lr * setting["lr"],
            first_momentum=0.9,
            second_momentum=0.999 if recipe.optimizer == "adamw" else None,
            weight_decay=recipe.weight_decay,
            target_group_sparsity=share,
            start_pruning_step=begin,
            pruning_periods=periods,
            pruning_steps=math.ceil(during / periods) * periods,
        )
        train(task, model, loader, task.epochs, opt, clock)
    with clock.counted():
        slim = subnet(oto)
    return Outcome(slim, clock, notes={"group_sparsity": share})


HESSO = Method(
    name="oto_hesso",
    train=train_hesso,
    settings=(
        {"start": 0.1, "during": 0.4, "periods": 5, "lr": 1.0},
        {"start": 0.1, "during": 0.4, "periods": 5, "lr": 2.0},
        {"start": 0.3, "during": 0.3, "periods": 5, "lr": 1.0},
        {"start": 0.1, "during": 0.6, "periods": 10, "lr": 1.0},
        {"start": 0.1, "during": 0.4, "periods": 5, "lr": 0.5},
    ),
    packages=("only-train-once",),
    caveat="its calls of .cuda() are made the identity on the CPU",
)
