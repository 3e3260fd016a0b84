"""Who finds a planted support, and whose gradient error vanishes: the RMDA paper's studies."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

import dualprox as dp

from ...optim import ProximalOptimizer
from ..data.planted import Planted, planted_convolutions, planted_logistic, support_correctness
from .figures import COLORS
from .variance import GradientError, gradient_errors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METHODS: dict[str, Callable[..., ProximalOptimizer]] = {
    "RMDA": dp.RMDA,
    "RAMDA": dp.RAMDA,
    "ProxSGD": dp.ProxSGD,
    "ProxGen": dp.ProxAdamW,
}
PENALTY = dp.GroupLasso(0.01)
BATCH_SIZE = 64


@dataclass(frozen=True)
class Problem:
    """A planted problem, and the learning rates it is trained with.

    Args:
        make: the data and the network that labelled them, of a seed.
        lr: of each method.
    """

    make: Callable[[int], Planted]
    lr: dict[str, float]


PROBLEMS: dict[str, Problem] = {
    "logistic": Problem(
        planted_logistic, {"RMDA": 0.3, "RAMDA": 5e-3, "ProxSGD": 0.1, "ProxGen": 1e-2}
    ),
    "convolutions": Problem(
        planted_convolutions, {"RMDA": 0.1, "RAMDA": 5e-3, "ProxSGD": 0.1, "ProxGen": 1e-2}
    ),
}


@dataclass(frozen=True)
class Epoch:
    """What a method has come to after an epoch, at the structured point.

    Args:
        problem: of `PROBLEMS`.
        method: of `METHODS`.
        seed: of the data, of where training begins, and of the order of the examples.
        epoch: from 1.
        support_correctness: share of the groups that are dead or live as planted.
        train_accuracy: share of the training examples that are told right.
        val_accuracy: of the validation examples.
    """

    problem: str
    method: str
    seed: int
    epoch: int
    support_correctness: float
    train_accuracy: float
    val_accuracy: float


def _begin(problem: str, method: str, seed: int) -> tuple[Planted, nn.Module, ProximalOptimizer]:
    known = PROBLEMS[problem]
    made = known.make(seed)
    model = made.start(seed)
    groups = dp.param_groups(model, PENALTY, include=made.truth)
    return made, model, METHODS[method](groups, lr=known.lr[method])


def follow(problem: str, method: str, epochs: int, seed: int) -> list[Epoch]:
    """Train on a planted problem, in one stage, and measure after every epoch.

    Args:
        problem: of `PROBLEMS`.
        method: of `METHODS`, with its default momentum; subproblems are solved exactly.
        epochs: >= 1.
        seed: determines every bit.

    Returns:
        One record for each epoch.

    Source: Huang & Lee, arXiv:2112.02612, its study on synthetic data.

    Example:
        >>> last = follow("logistic", "RMDA", epochs=15, seed=0)[-1]
        >>> last.support_correctness
        1.0
    """
    made, model, opt = _begin(problem, method, seed)
    stages = dp.StageSchedule(opt, milestones=[], gamma=0.1)
    records = []
    for epoch in range(epochs):
        for inputs, labels in made.split.batches(BATCH_SIZE, seed, epoch):
            opt.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            opt.step()
        stages.step()
        split = made.split
        with opt.structured(), torch.no_grad():
            told = [
                float((model(split.normalize(x)).argmax(1) == y).double().mean())
                for x, y in ((split.x, split.y), (split.val_x, split.val_y))
            ]
            correct = support_correctness(model, made.truth)
        records.append(Epoch(problem, method, seed, epoch + 1, correct, *told))
    return records


def variance_steps(last: int, count: int = 40) -> list[int]:
    """Steps from 1 to the last, about evenly on a logarithmic scale.

    Example:
        >>> variance_steps(100, 5)
        [1, 3, 10, 32, 100]
    """
    places = torch.logspace(0, torch.tensor(float(last)).log10().item(), count)
    return sorted({*(int(place) for place in places.round()), last})


def gradient_error_curve(method: str, steps: Sequence[int], seed: int) -> list[GradientError]:
    """The errors of a method's gradient estimates on the planted logistic regression.

    Args:
        method: of `METHODS`.
        steps: as for `gradient_errors`.
        seed: determines every bit.

    Source: Huang & Lee, arXiv:2112.02612, Lemma 1.
    """
    made, model, opt = _begin("logistic", method, seed)
    return gradient_errors(model, opt, made.split, steps, BATCH_SIZE, seed)


def _band(axes: "Axes", color: str, label: str, x: list[int], curves: list[list[float]]) -> None:
    """The mean over seeds, and a band from the least to the greatest."""
    at = list(zip(*curves, strict=True))
    axes.plot(x, [statistics.fmean(values) for values in at], color=color, label=label)
    axes.fill_between(
        x, [min(v) for v in at], [max(v) for v in at], color=color, alpha=0.15, linewidth=0
    )
    axes.spines[["top", "right"]].set_visible(False)


def plot_epochs(problem: str, records: Sequence[Epoch]) -> "Figure":
    """Support correctness and training accuracy of the methods over epochs."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 6.2), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    panels[1].xaxis.set_major_locator(MaxNLocator(integer=True))
    names = ("support_correctness", "train_accuracy")
    for axes, name in zip(panels, names, strict=True):
        for color, method in zip(COLORS, METHODS, strict=False):
            mine = [r for r in records if r.method == method]
            epochs = sorted({r.epoch for r in mine})
            seeds = sorted({r.seed for r in mine})
            curves = [[100 * getattr(r, name) for r in mine if r.seed == seed] for seed in seeds]
            _band(axes, color, method, epochs, curves)
        axes.set_ylabel(f"{name.replace('_', ' ')} (%)")
    panels[0].legend(frameon=False)
    panels[1].set_xlabel("epoch")
    figure.suptitle(f"planted {problem}: at the structured point", fontsize=11)
    return figure


def plot_variance(curves: dict[str, list[list[GradientError]]]) -> "Figure":
    """Errors of gradient estimates over steps, by method and seed, over those of a batch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for color, (method, runs) in zip(COLORS, curves.items(), strict=False):
        shares = [[each.estimate / each.minibatch for each in run] for run in runs]
        _band(axes, color, method, [each.step for each in runs[0]], shares)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("squared error, share of a batch's")
    axes.legend(frameon=False)
    figure.suptitle("how far gradient estimates are off: planted logistic regression", fontsize=11)
    return figure
