"""A warm-started sweep over strengths, and the folder it writes."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import dualprox as dp

from ...checks import is_count, is_real, require
from ...files import (
    read_json_lines,
    remove_leftovers,
    write_atomically,
    write_json,
    write_json_lines,
)
from ...kinds import check_kinds
from .. import settings
from ..finite import Finite
from ..folders import START, RunFolderError, alone, made_by, make, read_config, reading
from ..networks import can_shrink, make_model
from ..optimizers import make_groups
from ..recipes import RECIPES
from ..settings import Run
from ..slim import shrink_run
from ..specs import AdamwSpec, SgdSpec
from ..tasks import Classification
from ..train import go_on, go_on_dense
from ..training import Training

# The name of a bar, the run that it shows, and the metrics of its last epoch.
Show = Callable[[str, int, dict[str, Any]], None]
DENSE = "dense"


@dataclass(frozen=True)
class Sweep:
    """A regularization path, resolved: with the code it determines every bit of the result.

    Args:
        run: what is trained at each strength. Its own strength does not matter, and it does not
            shrink while it trains.
        fractions: the strengths over `strength_max`, increasing: each point starts from the
            structured point of the weaker one before.
        strength_max: what a fraction of 1 stands for.
        share: epochs of a warm-started point over those of the first, in (0, 1].
        refit: epochs without penalty that each slim network is trained for afterwards.
        select_inputs: as in `dualprox.shrink`.

    Raises:
        ValueError: a setting breaks its rule.
    """

    run: Run
    fractions: tuple[float, ...]
    strength_max: float
    share: float = 0.5
    refit: int = 0
    select_inputs: bool = False

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.fractions, self.fractions[1:], strict=False))
        ok = bool(self.fractions) and all(is_real(f) and f > 0 for f in self.fractions) and rising
        require(ok, "strengths", "different numbers > 0", self.fractions)
        require(is_real(self.share) and 0 < self.share <= 1, "share", "in (0, 1]", self.share)
        ok = is_count(self.refit) or self.refit == 0
        require(ok, "refit", "an int >= 0", self.refit)
        ok = is_real(self.strength_max) and self.strength_max > 0
        require(ok, "strength_max", "a number > 0", self.strength_max)
        grouped = isinstance(self.run.penalty, dp.GroupPenalty)
        require(grouped or not self.select_inputs, "select_inputs", "false without groups", True)

    def names(self) -> list[str]:
        """What each point is called, a folder and a bar: "01", "02", ..."""
        return [f"{number:02}" for number in range(1, len(self.fractions) + 1)]

    def point(self, index: int) -> Run:
        """The run of one point: the recipe's for the first, the same in less time for others.

        Milestones keep their place relative to the epochs.
        """
        run, epochs = self.run, self.run.epochs
        assert run.penalty is not None
        if index:
            epochs = max(1, round(self.share * run.epochs))
        strength = self.fractions[index] * self.strength_max
        return replace(
            run,
            penalty=run.penalty.with_strength(strength),  # pyright: ignore[reportArgumentType]
            epochs=epochs,
            milestones=settings.scaled_milestones(run, epochs),
            baseline=None,
            shrink_at_restart=False,
        )


def log_spaced(first: float, last: float, count: int) -> tuple[float, ...]:
    """`count` numbers from the smaller to the larger of two, with equal ratios.

    Example:
        >>> log_spaced(1.0, 0.01, 3)
        (0.01, 0.1, 1.0)
    """
    for name, value in (("from", first), ("to", last)):
        require(is_real(value) and value > 0, name, "a number > 0", value)
    require(is_count(count) and count >= 2, "strengths", "an int >= 2", count)
    require(count <= 10_000, "strengths", "at most 10000", count)
    require(first != last, "to", "another number than from", last)
    low, high = sorted((first, last))
    inner = [low * (high / low) ** (place / (count - 1)) for place in range(1, count - 1)]
    return (low, *inner, high)


def natural_strength(run: Run) -> float:
    """`strength_max` of the recipe's network as a run makes it, over the batches of its epoch 1.

    Raises:
        ValueError: the run has no penalty with a strength, or none that can kill at the start.
        DataError: the files of the data set are missing or damaged.
    """
    rule = "one with a strength: a path leads along it"
    has_strength = run.penalty is not None and run.penalty.own_strength() is not None
    require(has_strength, "penalty", rule, run.penalty)
    require(can_shrink(run), "model", "a network that classifies, for a path", run.model)
    torch.set_num_threads(run.threads)
    torch.manual_seed(run.seed)
    task = Classification(run)
    model = make_model(run).to(run.device)
    # Batch norms take the statistics of each batch, as in the first step.
    model.train()
    groups = make_groups(run, model)
    assert isinstance(groups, dp.ParamGroups)
    return dp.strength_max(model, task.batches(1), groups)


def begin(sweep: Sweep, folder: Path) -> None:
    """Make the folder of a sweep.

    Raises:
        RunFolderError: the folder holds something already.
    """
    make(folder, to_json(sweep))


def to_json(sweep: Sweep) -> dict[str, Any]:
    """The sweep as JSON values; `read_sweep` makes it again."""
    return {
        "command": "path",
        "run": settings.to_json(sweep.run),
        "fractions": list(sweep.fractions),
        "strength_max": sweep.strength_max,
        "share": sweep.share,
        "refit": sweep.refit,
        "select_inputs": sweep.select_inputs,
    }


# Fields that JSON holds in another form.
_BUILT = ("run", "fractions")


def read_sweep(folder: Path) -> Sweep:
    """The sweep that a folder holds.

    Raises:
        RunFolderError: it holds none.
    """
    if made_by(folder) != "path":
        raise RunFolderError(f"{folder} was not made by `dualprox path`")
    saved = read_config(folder)
    try:
        check_kinds(Sweep, {name: value for name, value in saved.items() if name not in _BUILT})
        del saved["command"]
        run = settings.from_json(saved.pop("run"))
        return Sweep(run=run, fractions=tuple(saved.pop("fractions")), **saved)
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(f"{folder / 'config.json'} is damaged: {error}") from None


def walk(folder: Path, show: Show) -> list[dict[str, Any]]:
    """Train every point of the sweep of a folder that is not trained yet, weak to strong.

    Each point is a run folder of its own, with its slim network beside its checkpoint, and goes on
    from its last epoch: a sweep that is killed at any moment and called again ends with the same
    bits.

    Returns:
        The rows of `path.jsonl`, one for each strength.

    Raises:
        RunFolderError: the folder cannot go on, or another process is training in it.
        DataError: the files of the data set are missing or damaged.
        FloatingPointError: the loss is not finite.
    """
    with alone(folder):
        return _walk(folder, show)


def _walk(folder: Path, show: Show) -> list[dict[str, Any]]:
    sweep = read_sweep(folder)
    go_on_dense(sweep.run, folder / DENSE, lambda run, row: show(DENSE, run.epochs, row))
    remove_leftovers(folder)
    rows = read_json_lines(folder / "path.jsonl")
    for index, name in enumerate(sweep.names()):
        if index < len(rows):
            with reading(folder / name / "metrics.jsonl"):
                metrics = read_json_lines(folder / name / "metrics.jsonl")
                show(name, rows[index]["epochs"], metrics[-1])
            continue
        run = sweep.point(index)
        if not (folder / name / "config.json").exists():
            (folder / name).mkdir(exist_ok=True)
            if index:
                before = folder / sweep.names()[index - 1] / "model.safetensors"
                weights = before.read_bytes()
                write_atomically(folder / name / START, lambda file, w=weights: file.write(w))
            # Last: from here on the folder is a run that knows where it begins.
            write_json(folder / name / "config.json", settings.to_json(run))
        training = go_on(folder / name, lambda run, row, name=name: show(name, run.epochs, row))
        rows.append(_measured(sweep, index, training, folder / name))
        write_json_lines(folder / "path.jsonl", rows)
    return rows


def _measured(sweep: Sweep, index: int, training: Training, folder: Path) -> dict[str, Any]:
    """The row of a finished point; its slim network goes into its folder."""
    with training.structured():
        slim, report = shrink_run(
            training.run,
            training.model,
            training.plan,
            folder,
            select_inputs=sweep.select_inputs,
            latency=False,
        )
    last = read_json_lines(folder / "metrics.jsonl")[-1]
    macs = (report.before.macs, report.after.macs)
    row: dict[str, Any] = {
        "point": sweep.names()[index],
        "fraction": sweep.fractions[index],
        "strength": sweep.fractions[index] * sweep.strength_max,
        "epochs": training.epoch,
        "val_accuracy": last["val_accuracy"],
        "val_loss": last["val_loss"],
        "weighted_group_sparsity": last["weighted_group_sparsity"],
        "low_rank_level": last["low_rank_level"],
        "identified_epoch": last["unchanged_since"],
        "params": report.after.parameters,
        "params_share": report.after.parameters / report.before.parameters,
        "macs": macs[1],
        "macs_share": macs[1] / macs[0] if macs[0] and macs[1] is not None else None,
    }
    if sweep.refit:
        row |= refit(slim, training, sweep.refit, folder / "refit")
    return row


def refit(slim: nn.Module, training: Training, epochs: int, folder: Path) -> dict[str, float]:
    """Train a slim network without penalty, and save it.

    The optimizer is that of the recipe's dense baseline, its learning rate falling to 0 along a
    cosine.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    run = training.run
    baseline = RECIPES[run.recipe]().baseline
    spec = AdamwSpec() if baseline is None else RECIPES[baseline]().optimizer
    model = copy.deepcopy(slim).to(training.device).train()
    opt: torch.optim.Optimizer
    if isinstance(spec, SgdSpec):
        opt = torch.optim.SGD(model.parameters(), **vars(spec))
    else:
        assert isinstance(spec, AdamwSpec)
        opt = torch.optim.AdamW(model.parameters(), **vars(spec))
    steps = epochs * len(training.task)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps)
    torch.manual_seed(run.seed)
    finite = Finite(opt, skips=False, is_scaled=False)
    for epoch in range(1, epochs + 1):
        # Other orders of the data than those that the structured point was trained with.
        order = training.epoch + epoch
        for step, batch in enumerate(training.task.batches(order), start=1):
            opt.zero_grad()
            loss = training.task.loss(model, batch)
            loss.backward()
            finite.allows(loss, f"epoch {epoch} of the refit, step {step}")
            opt.step()
            schedule.step()
        finite.end_epoch(f"epoch {epoch} of the refit")
    found = training.task.evaluate(model)
    dp.save_slim(model.cpu(), folder)
    return {f"refit_{name}": value for name, value in found.items()}
