"""What `fit` tells: its progress, what it decided, and what came of it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from ..grouping import ParamGroups
from ..penalties import SeparablePenalty
from ..shrinking.report import ShrinkReport
from .target import TargetSize

Stage = Literal["warmup", "search", "hold", "refit"]
Watch = Callable[["Progress"], None]
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# The warmup ends with this many times the share of the size, of its learning rate; see docs/fit.md.
_SETTLED = 10.0
# By their names: model libraries have their own.
_LAYER_NORMS = ("LayerNorm", "RMSNorm")


@dataclass(frozen=True)
class Progress:
    """Where a fit stands, at the end of an epoch.

    Args:
        epoch: from 1.
        epochs: in all.
        stage: "warmup" without penalty, "search" while the strength is steered, "hold" after the
            last restart, "refit" once the structure is fixed.
        loss: mean over the epoch's batches.
        size: share of the dense network's size that the structured point, or the slim network has.
        strength: of the penalty, before the weights of its param groups.
        model: the network that is being trained; at the structured point inside the call.
    """

    epoch: int
    epochs: int
    stage: Stage
    loss: float
    size: float
    strength: float
    model: nn.Module


@dataclass(frozen=True)
class Choices:
    """What `fit` decided: everything that it was not told.

    Args:
        optimizer: "rmda" or "ramda", of search and hold.
        lr: its learning rate.
        momentum: its momentum.
        warmup_epochs: epochs without penalty at the start; may be a fraction, as all epochs here.
        search_epochs: epochs from there until the last restart.
        hold_epochs: epochs from there until the structure is fixed, at constant strength; 0 for
            nonconvex penalties on entries, for which no penalty of groups can step in.
        refit_epochs: epochs of the slim network without penalty.
        refit_optimizer: "sgd" (Nesterov momentum 0.9) or "adamw", with cosine decay.
        warmup_lr: the learning rate of the warmup at the start, by the same optimizer.
        warmup_end: the share of it that is left at the end of the warmup: the less of the network
            is to stay, the more it comes to rest before there is a choice.
        width_lr: over the width of the slim network, the learning rate of a refit by AdamW, unless
            the warmup's is higher; 0 for SGD, whose rate does not depend on the width.
        refit_lr: that of the refit; in the result of a `fit` the number that `refit_rate` found.
        weight_decay: of the refit.
        penalty: as text.
        ramp: share of the search in which the goal falls to the target.
        restart: share of the search after which dual averaging begins anew, until the sums are
            those of a network as small as asked for.
        steer: share of the search in which the strength is steered; from there to the hold it stays
            what it was.
        every: optimizer steps between two looks at the size.
        clip: how many times as long as usual a gradient may be, see `fit`.
        narrow_norms: whether layer norms may look at fewer channels in the end.
        least_width: share of its channels that each convolution keeps at least, and the layer
            behind the last; or, where convolutions share channels, each that does; 0 for no bound.
    """

    optimizer: str
    lr: float
    momentum: float
    warmup_epochs: float
    search_epochs: float
    hold_epochs: float
    refit_epochs: float
    refit_optimizer: str
    warmup_lr: float
    warmup_end: float
    width_lr: float
    refit_lr: float | None
    weight_decay: float
    penalty: str
    ramp: float
    restart: float
    steer: float
    every: int
    clip: float | None
    narrow_norms: bool
    least_width: float

    def __str__(self) -> str:
        return "\n".join(
            f"{name.replace('_', ' '):16}{value}" for name, value in vars(self).items()
        )


@dataclass(frozen=True, eq=False)
class Fit:
    """What `fit` returns.

    Args:
        model: the slim network, in training mode.
        report: what shrinking changed, with the costs of the dense and the slim network.
        history: one row of plain values per epoch: those of `Progress`, without the model.
        plan: what was decided.
        target: what was asked for.
        reached: the slim network's value of the target's measure, in the target's units.
        is_reached: whether that is within the target's tolerance, or below it.
        seconds: of wall time, those before an interruption included.
        notes: why not, if so; and whatever else should be known.
    """

    model: nn.Module
    report: ShrinkReport
    history: list[dict[str, Any]]
    plan: Choices
    target: TargetSize
    reached: float
    is_reached: bool
    seconds: float
    notes: list[str] = field(default_factory=list)


def search_share(search: float | None, refit: bool) -> float:
    """The share of the epochs until the structure is fixed; without a refit all of them."""
    if not refit:
        return 1.0
    return 0.5 if search is None else search


def has_layer_norms(model: nn.Module) -> bool:
    """Whether a network has layer norms, as transformers do."""
    return any(type(module).__name__.endswith(_LAYER_NORMS) for module in model.modules())


def choose(
    optimizer: str,
    model: nn.Module,
    groups: ParamGroups,
    epochs: int,
    steps_per_epoch: int,
    refit: bool,
    lr: float | None,
    momentum: float,
    warmup: float | None,
    search: float | None,
    refit_optimizer: str | None,
    refit_lr: float | None,
    weight_decay: float | None,
    looks: int,
    clip: float | None,
    narrow_norms: bool,
    least_width: float,
    share: float | None,
) -> Choices:
    """Fill in what the caller left open; docs/fit.md says where the numbers come from."""
    until_cut = epochs * search_share(search, refit)
    warm = epochs * warmup if warmup is not None else 0.6 * until_cut
    penalties = [group["penalty"] for group in groups if group["penalty"] is not None]
    # At constant strength nothing holds entries that a count charges, and no group LASSO can.
    loose = any(isinstance(p, SeparablePenalty) and not p.is_convex for p in penalties)
    hold = 0.0 if loose else 0.1 * (until_cut - warm)
    is_transformer = has_layer_norms(model)  # these train badly by SGD, and by long steps
    by_adam = optimizer == "ramda" or is_transformer
    chosen = refit_optimizer or ("adamw" if by_adam else "sgd")
    decay = 1e-2 if chosen == "adamw" else 5e-4
    end = None if share is None else min(1.0, _SETTLED * share)
    # With batch norms the scale of weights does not matter, and longer steps are safe.
    has_batch_norms = any(isinstance(module, _BATCH_NORMS) for module in model.modules())
    if chosen == "sgd":
        rate, width_lr = (0.1 if has_batch_norms else 0.05), 0.0
    elif is_transformer or not has_batch_norms:
        rate, width_lr = (1.5e-3 if is_transformer else 3e-3), 1.5e-3
    else:  # in a warmup that comes down, too
        rate, width_lr = 3e-3 * min(2.0, 1 / (end or 1.0)), 3e-3
    restart = 0.65
    return Choices(
        optimizer=optimizer,
        lr=lr if lr is not None else (2e-3 if optimizer == "ramda" else 0.5),
        momentum=momentum,
        warmup_epochs=warm,
        search_epochs=until_cut - warm - hold,
        hold_epochs=hold,
        refit_epochs=epochs - until_cut,
        refit_optimizer=chosen,
        warmup_lr=rate if refit_lr is None else refit_lr,
        warmup_end=end or 0.0,
        width_lr=width_lr,
        refit_lr=refit_lr,
        weight_decay=decay if weight_decay is None else weight_decay,
        penalty=str(penalties[0]),
        ramp=0.52,
        restart=restart,
        # Heads are few and large: at a strength left alone RMDA lost all but one of each block.
        steer=1.0 if optimizer == "rmda" and is_transformer else restart,
        every=max(1, round(restart * (until_cut - warm - hold) * steps_per_epoch / looks)),
        clip=clip,
        narrow_norms=narrow_norms,
        least_width=least_width,
    )


def refit_rate(plan: Choices, share: float) -> float:
    """The refit's learning rate for a network with this share of the dense one's parameters.

    For a target of nonzeros it is their share: an entry that is zero adds nothing to a sum.

    Adam's best rate goes with 1 / width: `plan.width_lr` / width, but no less than in the warmup.
    The width is that of an even cut, the square root of the share, or that of the stream, if it is
    kept wider. The rate of SGD stays.

    Source: Yang et al., Tensor Programs V (2022), table 3.
    """
    if plan.refit_lr is not None:
        return plan.refit_lr
    width = max(math.sqrt(share), plan.least_width)
    return max(plan.warmup_lr, plan.width_lr / width)
