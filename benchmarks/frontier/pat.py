"""torchao's PAT: a base optimizer with proximal steps, then the zeros made to go by dualprox.

PAT leaves zeros in a network of the full size, so `dualprox.shrink` makes it smaller; without that
its size would be that of the dense network. Two penalties: its group LASSO, whose strength is found
here by bisection on the latent weights (its own prox at its own accumulated step size), so that the
widths follow a cubic ramp and the network has the size asked for when healing begins; and its
constraints on the number of groups, in each layer or in all together, whose share is found by
bisection in the same place. During healing the zeros are frozen, as PAT does it.
Source: torchao.prototype.pat.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import dualprox as dp

from .methods import (
    Method,
    Outcome,
    Setting,
    largest_within,
    parameters,
    restored,
    split_epochs,
    weighted_layers,
)
from .tasks import Task
from .training import Clock, make_optimizer, train


def groupings(task: Task, model: nn.Module, axis: int) -> dict[str, dict[str, Any]]:
    """Weights to group, by name, and how: inputs of the readers, or outputs of the writers."""
    layers = list(weighted_layers(model))
    if axis == 1:
        names = task.readers or tuple(layers[1:])
    else:
        names = tuple(name for name in layers if name not in task.fixed)
    found = {}
    for name in names:
        grouper: dict[str, Any] = {"group_type": f"Dim{axis}Grouper"}
        if task.heads and name.endswith("attention.out"):
            grouper = {
                "group_type": "AttentionHeadGrouperDim1",
                "num_heads": next(iter(task.heads.values())),
            }
        found[f"{name}.weight"] = grouper
    return found


def slim_of(task: Task, model: nn.Module) -> nn.Module:
    """The model without its zeros."""
    return dp.shrink(model, task.example_input, latency=False)


def keep_strongest_head(latent: Tensor, value: Tensor, heads: int) -> None:
    """Give the head with the largest norm back; an attention without heads cannot be shrunk."""
    norms = latent.view(len(latent), heads, -1).norm(dim=(0, 2))
    width = latent.shape[1] // heads
    place = int(norms.argmax()) * width
    value[:, place : place + width] = latent[:, place : place + width]


class Targeted:
    """PAT's optimizer over a task's network, steered to a size.

    Args:
        task, model: what is trained.
        prox: "ProxGroupLasso", or "MinSparsityConstraint" or "GlobalMinSparsityConstraint".
        axis: of the groups.
        warmup: steps without prox.
    """

    def __init__(self, task: Task, model: nn.Module, prox: str, axis: int, warmup: int) -> None:
        from torchao.prototype.pat import PruneOptimizer  # pyright: ignore[reportMissingImports]

        self.task, self.model = task, model
        base = make_optimizer(task.recipes[0], model)
        grouped = groupings(task, model, axis)
        self.names = {id(p): name for name, p in model.named_parameters()}
        inside = {id(p) for name, p in model.named_parameters() if name in grouped}
        for group in base.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in inside]
        own = dict(model.named_parameters())
        shapes = {str(sorted(how.items())): how for how in grouped.values()}
        for key, how in shapes.items():
            params = [own[name] for name in grouped if str(sorted(grouped[name].items())) == key]
            extra = {} if prox == "ProxGroupLasso" else {"min_sparsity": 0.0}
            base.add_param_group(
                {
                    "params": params,
                    "weight_decay": task.recipes[0].weight_decay,
                    "prox_type": prox,
                    "reg_lambda": 0.0,
                    **how,
                    **extra,
                }
            )
        self.base = base
        self.opt = PruneOptimizer(base, warmup_steps=warmup)

    def pruned_groups(self) -> list[dict[str, Any]]:
        return list(self.opt.regularized_param_groups())

    def steer(self, knob: float) -> None:
        """Set the strength, or the share of groups that are to be zero."""
        for group in self.pruned_groups():
            group["min_sparsity" if "min_sparsity" in group else "reg_lambda"] = knob

    @torch.no_grad()
    def proxed(self, knob: float) -> Iterator[tuple[str, Tensor]]:
        """Names, and what PAT's prox makes of the latent weights."""
        from torchao.prototype.pat.optim.prox_executor import (  # pyright: ignore[reportMissingImports]
            apply_global_prox,
            apply_prox_to_param,
        )

        self.steer(knob)
        for group in self.pruned_groups():
            latents = [self.opt.state[p]["latent"] for p in group["params"]]
            copies = [nn.Parameter(latent.clone()) for latent in latents]
            if group["prox_type"] == "GlobalMinSparsityConstraint":
                prox, grouper, options = self.opt._build_global_prox_artifacts(group)
                apply_global_prox(copies, prox, grouper, options, knob)
            else:
                prox, grouper, options, rest = self.opt._build_prox_artifacts(group)
                for value in copies:
                    apply_prox_to_param(value, prox, grouper, options, rest)
            for p, latent, value in zip(group["params"], latents, copies, strict=True):
                if "num_heads" in group and not value.any():
                    keep_strongest_head(latent, value, group["num_heads"])
                yield self.names[id(p)], value.detach()

    def top(self) -> float:
        """A knob that leaves nothing."""
        if "min_sparsity" in self.pruned_groups()[0]:
            return 0.999
        largest = 1e-12
        for group in self.pruned_groups():
            for p in group["params"]:
                # A group's norm over the root of its size is at most its largest entry.
                entry = float(self.opt.state[p]["latent"].abs().max())
                largest = max(largest, entry / max(group["gamma"], 1e-12))
        return largest * 1.01

    def live_share(self, knob: float) -> float:
        """Share of the grouped entries that are in live groups, at the latent weights."""
        live = whole = 0
        for _, value in self.proxed(knob):
            live += int((value != 0).sum())
            whole += value.numel()
        return live / whole

    def ramp(self, share: float) -> None:
        """Steer so that this share of the grouped entries lives."""
        self.steer(largest_within(self.live_share, share, 0.0, self.top(), steps=12))

    def finish(self, target: float) -> float:
        """Put the proxed latent weights of the target size into the model; the knob."""
        whole = parameters(self.model)

        def trial(knob: float) -> nn.Module:
            return restored(self.model, dict(self.proxed(knob)))

        def size_at(knob: float) -> float:
            return parameters(slim_of(self.task, trial(knob))) / whole

        empty = largest_within(self.live_share, 0.0, 0.0, self.top(), steps=16)
        knob = largest_within(size_at, target, 0.0, empty, steps=9)
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in list(self.proxed(knob)):
                own[name].copy_(value)
        self.opt.healing_start_step = self.opt.num_steps
        return knob


def train_pat(task: Task, seed: int, target: float, setting: Setting) -> Outcome:
    """Warm-up, proximal training with the widths on a cubic ramp, healing."""
    model, clock, loader = task.make_model(seed), Clock(), task.loader(seed)
    warm, ramp, heal = split_epochs(task.epochs, *setting["shares"])
    steered = Targeted(task, model, setting["prox"], setting["axis"], warm * len(loader))
    notes: dict[str, Any] = {}

    def after_epoch(epoch: int) -> None:
        done = (epoch - warm) / ramp
        if done <= 0 or done > 1:
            return
        if done == 1:
            notes["strength"] = steered.finish(target)
        else:
            # Sizes go with the square of widths.
            steered.ramp(1 + (target**0.5 - 1) * (1 - (1 - done) ** 3))

    # With a restart, healing gets a schedule of its own from the full lr, as fine-tuning does.
    phases = (warm + ramp, heal) if setting["restart"] else (task.epochs,)
    for phase, epochs in enumerate(phases):
        train(
            task,
            model,
            loader,
            epochs,
            steered.opt,
            clock,
            schedule_on=steered.base,
            after_epoch=after_epoch if phase == 0 else lambda epoch: None,
        )
        for group in steered.base.param_groups:
            group["lr"] = group["initial_lr"]
    return Outcome(slim_of(task, model), clock, notes=notes)


EARLY, LATE, NEVER = (0.1, 0.3, 0.6), (0.2, 0.4, 0.4), (0.2, 0.8, 0.0)
SOFT, EACH, ALL = "ProxGroupLasso", "MinSparsityConstraint", "GlobalMinSparsityConstraint"


def method(name: str, *tried: tuple[str, tuple[float, float, float], int, bool]) -> Method:
    """An entry with these settings: prox, shares of the epochs, axis, restart."""
    return Method(
        name=name,
        train=train_pat,
        settings=tuple(
            {"prox": prox, "shares": shares, "axis": axis, "restart": restart}
            for prox, shares, axis, restart in tried
        ),
        packages=("torchao",),
        caveat="zeros made to go by dualprox.shrink",
    )


PAT_GROUP_LASSO = method(
    "pat_group_lasso",
    (SOFT, EARLY, 1, True),
    (SOFT, EARLY, 0, True),
    (SOFT, NEVER, 1, False),
    (SOFT, LATE, 0, True),
    (SOFT, LATE, 1, False),
)
PAT_CONSTRAINT = method(
    "pat_constraint",
    (EACH, EARLY, 1, True),
    (ALL, EARLY, 0, True),
    (EACH, EARLY, 0, True),
    (ALL, EARLY, 1, True),
    (EACH, NEVER, 1, False),
)
