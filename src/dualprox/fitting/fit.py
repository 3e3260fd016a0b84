"""`fit`: from a network and a wish to the network that grants it, in one call."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..checks import is_count, is_real, require
from ..grouping import ParamGroups, param_groups
from ..optim import RAMDA, RMDA, DualAveraging
from ..penalties import GroupL0, GroupPenalty, Penalty
from ..penalties.low_rank import SpectralPenalty
from ..shrinking.inputs import ExampleInput
from ..shrinking.measure import compare, measure
from ..shrinking.report import ShrinkReport, attach_report, report_of
from ..shrinking.slim import shrink
from .batches import Batch, Loss, example_of, loss_of
from .control import SizeControl
from .result import Choices, Fit, Progress, Stage, Watch, choose
from .target import TargetSize


def fit(
    model: nn.Module,
    loader: Iterable[Batch],
    epochs: int,
    target: TargetSize,
    *,
    loss: Loss = cross_entropy,
    example_input: ExampleInput | None = None,
    optimizer: Literal["ramda", "rmda"] = "ramda",
    penalty: Penalty | ParamGroups | None = None,
    refit: bool = True,
    select_inputs: bool = False,
    lr: float | None = None,
    momentum: float = 0.9,
    warmup: float | None = None,
    search: float | None = None,
    refit_optimizer: Literal["sgd", "adamw"] | None = None,
    refit_lr: float | None = None,
    weight_decay: float | None = None,
    round_to: int = 1,
    latency: bool = True,
    progress: bool = False,
    watch: Watch | None = None,
) -> Fit:
    """Train a network into the size that is asked for, and cut it down to that.

    Four stages share the epochs. *Warmup*: plain training, so that there is something to choose
    from. *Search*: RAMDA or RMDA with a group penalty, whose strength is steered until the
    structured point has the target size (`SizeControl`). *Hold*: from the last restart on the
    strength is constant, so that the structure is identified; then the network is cut. *Refit*: the
    slim network alone is trained, without penalty. Warmup and refit use torch's optimizer under a
    cosine schedule. Everything is plain torch, and the parts are public: `param_groups`, `RAMDA`,
    `SizeControl`, `shrink`.

    The penalty is the number of live groups (`GroupL0`) unless another is given: in so few epochs a
    convex penalty strong enough to remove groups also shrinks those that stay to nearly nothing.

    Args:
        model: any module that torch.export can trace; trained in place until it is cut. Move it to
            its device before.
        loader: batches (inputs, targets), iterated once per epoch; a tensor is the model's one
            argument, a tuple or list all of them, a mapping its keyword arguments.
        epochs: passes over the loader, all stages together; >= 2.
        target: the size.
        loss: of outputs and targets, the mean over a batch.
        example_input: as in `shrink`; None takes the first two examples of the loader.
        optimizer: of search and hold; "ramda" suits all networks, "rmda" those that SGD trains.
        penalty: None is `GroupL0` on coupled groups; another is put on coupled groups if it has
            groups, or comes as what `param_groups` returned. Its strength does not matter.
        refit: whether there is a refit; without, hold lasts to the end.
        select_inputs: whether linear layers may leave inputs unread that have to stay, as the
            pixels of an image; as in `shrink`.
        lr: of search and hold; None decides.
        momentum: of search and hold.
        warmup: share of the epochs at the start without penalty; None decides.
        search: share of the epochs until the structure is fixed, all but the refit; None decides.
        refit_optimizer: None is "adamw" for "ramda" and "sgd" for "rmda".
        refit_lr: None is 3e-3 for "adamw", 0.05 for "sgd" and 0.1 with batch norms.
        weight_decay: of the refit; None decides.
        round_to: as in `shrink`.
        latency: whether the report measures it.
        progress: whether to print a line per epoch.
        watch: called at the end of every epoch, for validation or logging.

    Returns:
        The slim network with its report, the history and what was decided.

    Raises:
        TypeError: the loader ends after one epoch, or the penalty has no groups to cut.
        ValueError: a setting is out of its range, the target cannot be reached, the loader gives
            no batch, or the loss is not finite.
        ShrinkError: torch.export cannot trace the model.

    Example:
        >>> import torch, dualprox as dp
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
        >>> x, y = torch.randn(256, 8), torch.randint(2, (256,))
        >>> loader = list(zip(x.split(16), y.split(16)))
        >>> result = dp.fit(model, loader, 4, dp.TargetSize(params=0.25), latency=False)
        >>> result.is_reached, result.reached <= 0.25
        (True, True)
    """
    require(is_count(epochs) and epochs >= 2, "epochs", "an int >= 2", epochs)
    require(optimizer in ("ramda", "rmda"), "optimizer", "'ramda' or 'rmda'", optimizer)
    ok = search is None or (is_real(search) and 0 < search <= 1)
    require(ok, "search", "a share in (0, 1]", search)
    kinds = (None, "sgd", "adamw")
    require(refit_optimizer in kinds, "refit_optimizer", "'sgd', 'adamw' or None", refit_optimizer)
    for name, value in (("refit_lr", refit_lr), ("weight_decay", weight_decay)):
        ok = value is None or (is_real(value) and value >= 0)
        require(ok, name, "a number >= 0 or None", value)
    require(is_count(round_to), "round_to", "an int >= 1", round_to)
    if isinstance(loader, Iterator):
        raise TypeError(
            f"loader must be one that can be iterated once per epoch, got {type(loader).__name__}, "
            "which ends after once: give a DataLoader, a list, or an object with __iter__"
        )
    steps_per_epoch = _count(loader)
    if example_input is None:
        example_input = example_of(next(iter(loader)))
    assert example_input is not None
    groups = _groups(model, penalty, example_input, select_inputs)
    plan = choose(
        optimizer, model, groups, epochs, steps_per_epoch, refit, lr, momentum, warmup, search,
        refit_optimizer, refit_lr, weight_decay,
    )  # fmt: skip
    return _Fitting(
        model, loader, epochs, steps_per_epoch, target, loss, example_input, groups, plan,
        select_inputs, round_to, latency, progress, watch,
    ).run()  # fmt: skip


def _count(loader: Iterable[Any]) -> int:
    try:
        count = len(loader)  # pyright: ignore[reportArgumentType]
    except TypeError:  # a DataLoader has a length, but not over an iterable data set
        count = sum(1 for _ in loader)
    require(count > 0, "loader", "one that gives batches", f"{count} batches")
    return count


def _groups(
    model: nn.Module,
    penalty: Penalty | ParamGroups | None,
    example_input: ExampleInput,
    select_inputs: bool,
) -> ParamGroups:
    given = [g["penalty"] for g in penalty] if isinstance(penalty, ParamGroups) else [penalty]
    spectral = next((own for own in given if isinstance(own, SpectralPenalty)), None)
    if spectral is not None:
        raise TypeError(
            f"penalty must have groups that can be cut, got {spectral}: for low rank use "
            "SizeControl, and factorize the structured point"
        )
    if isinstance(penalty, ParamGroups):
        return penalty
    chosen = GroupL0(1.0) if penalty is None else penalty
    if not chosen.own_strength():
        chosen = chosen.with_strength(1.0)
    if not isinstance(chosen, GroupPenalty):
        return param_groups(model, chosen)
    return param_groups(
        model, chosen, coupled=True, example_input=example_input, select_inputs=select_inputs
    )


class _Fitting:
    """A fit in progress."""

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Batch],
        epochs: int,
        steps_per_epoch: int,
        target: TargetSize,
        loss: Loss,
        example_input: ExampleInput,
        groups: ParamGroups,
        plan: Choices,
        select_inputs: bool,
        round_to: int,
        latency: bool,
        progress: bool,
        watch: Watch | None,
    ) -> None:
        self.model, self.loader, self.epochs, self.loss = model, loader, epochs, loss
        self.target, self.example, self.plan = target, example_input, plan
        self.select_inputs, self.round_to, self.latency = select_inputs, round_to, latency
        self.progress, self.watch = progress, watch
        self.steps_per_epoch = steps_per_epoch
        self.total = epochs * steps_per_epoch
        self.begin = min(round(plan.warmup_epochs * steps_per_epoch), max(0, self.total - 2))
        until_hold = plan.warmup_epochs + plan.search_epochs
        self.hold_from = max(self.begin + 1, round(until_hold * steps_per_epoch))
        # Of search and hold together, the first has a restart within it.
        searched = self.hold_from - self.begin
        self.restart_at = self.begin + round(plan.restart * searched)
        self.cut_at = self.total
        if plan.refit_epochs > 0:  # one step at least for each stage, however few there are
            cut_at = round((until_hold + plan.hold_epochs) * steps_per_epoch)
            self.cut_at = max(self.hold_from, min(self.total - 1, cut_at))
        kinds: dict[str, Callable[..., DualAveraging]] = {"ramda": RAMDA, "rmda": RMDA}
        self.opt: DualAveraging = kinds[plan.optimizer](groups, lr=plan.lr, momentum=plan.momentum)
        self.control = SizeControl(
            self.opt,
            model,
            target,
            example_input,
            ramp_steps=max(1, round(plan.ramp * searched)),
            hold_from=searched,
            steer_until=self.restart_at - self.begin,
            every=plan.every,
            select_inputs=select_inputs,
        )
        self.dense = copy.deepcopy(model)
        self.history: list[dict[str, Any]] = []
        self.notes: list[str] = []
        # Of the stages without penalty: warmup of the whole network, and refit of the slim one.
        self.plain = self._plain(model) if self.begin else None
        self.is_cut = False
        self.taken = 0
        self.held = self.landed = 0.0

    def run(self) -> Fit:
        """All epochs."""
        self.model.train()
        for epoch in range(1, self.epochs + 1):
            sums = torch.zeros(())
            count = 0
            for batch in self.loader:
                if self.taken == self.total:
                    break
                value = self._step(batch)
                sums = sums.to(value.device) + value
                count += 1
            if not count and self.taken < self.total:
                raise ValueError(f"loader must give batches in every epoch, got none in {epoch}")
            self._end_epoch(epoch, float(sums) / max(count, 1))
        if not self.is_cut:
            self._cut()
        return self._result()

    def _step(self, batch: Batch) -> Tensor:
        value, _ = loss_of(self.model, batch, self.loss)
        optimizer = self.opt if self.plain is None else self.plain
        optimizer.zero_grad()
        value.backward()
        if self.plain is not None:
            self._set_rate(self.plain)
        optimizer.step()
        self.taken += 1
        if self.taken == self.begin:
            self.plain = None
        elif self.plain is None:
            if self.taken % self.control.every == 0 or self.taken in (self.hold_from, self.cut_at):
                self._require_finite(
                    float(value.detach()), (self.taken - 1) // self.steps_per_epoch + 1
                )
            self.control.step()
            if self.taken == self.hold_from:
                self.opt.finalize_()  # what is dead begins the stage at zero
            if self.taken in (self.restart_at, self.hold_from):
                self.opt.restart()
                for group in self.opt.param_groups:
                    group["ramp"] = True
            if self.taken == self.cut_at and self.cut_at < self.total:
                self._cut()
        return value.detach()

    def _plain(self, model: nn.Module) -> torch.optim.Optimizer:
        """Torch's optimizer of the stages without penalty."""
        params, lr = _decayed(model, self.plan.weight_decay), self.plan.refit_lr
        # Torch's own default is a loop over the parameters on a CPU; fused does the same sums.
        fused = all(param.device.type in ("cpu", "cuda") for param in model.parameters())
        if self.plan.refit_optimizer == "adamw":
            return torch.optim.AdamW(params, lr=lr, fused=fused)
        return torch.optim.SGD(params, lr=lr, momentum=0.9, nesterov=True, fused=fused)

    def _set_rate(self, optimizer: torch.optim.Optimizer) -> None:
        first, last = (self.cut_at, self.total) if self.is_cut else (0, self.begin)
        done = (self.taken - first) / (last - first)
        for group in optimizer.param_groups:
            group["lr"] = self.plan.refit_lr * (1 + math.cos(math.pi * done)) / 2

    def _cut(self) -> None:
        """Fix the structure at the target size, cut the network, and begin the refit."""
        self.held = self.control.size()
        before = self.control.strength
        landed = self.control.goal
        if self.cut_at < self.total or abs(self.held / landed - 1) <= self.target.tolerance:
            self.control.land()
        self.landed = self.control.size()
        moved = self.control.strength / before
        if abs(moved - 1) > 1e-3:
            self.notes.append(
                f"at the constant strength the structured point came to {self.held:.2%} of the "
                f"dense size; it was fixed at {moved:.2f} times that strength"
            )
        with self.opt.structured():
            self.model = shrink(
                self.model,
                self.example,
                round_to=self.round_to,
                latency=False,
                select_inputs=self.select_inputs,
            )
        self.model.train()
        self.plain, self.is_cut = self._plain(self.model), True

    def _require_finite(self, loss: float, epoch: int) -> None:
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss is {loss} in epoch {epoch}: lr {self.plan.lr:g} and refit_lr "
                f"{self.plan.refit_lr:g} were used; give smaller ones"
            )

    def _end_epoch(self, epoch: int, loss: float) -> None:
        self._require_finite(loss, epoch)
        stage: Stage = "refit"
        if not self.is_cut:
            stage = "warmup" if self.taken <= self.begin else "search"
            stage = "hold" if self.taken > self.hold_from else stage
        size = self._size()
        row = Progress(epoch, self.epochs, stage, loss, size, self.control.strength, self.model)
        plain = {name: value for name, value in vars(row).items() if name != "model"}
        self.history.append(plain)
        if self.progress:
            print(
                f"epoch {epoch:3}/{self.epochs}  {stage:6}  loss {loss:.4f}  "
                f"size {size:7.2%}  strength {self.control.strength:.3g}",
                flush=True,
            )
        if self.watch is None:
            return
        training = self.model.training
        if not self.is_cut:
            with self.opt.structured():
                self.watch(row)
        else:
            self.watch(row)
        self.model.train(training)

    def _size(self) -> float:
        if not self.is_cut:
            return self.control.size()
        dense = self.control.footprint.dense
        if self.target.measure == "macs":
            return measure(self.model, self.example, latency=False).macs / dense.macs  # pyright: ignore
        return sum(param.numel() for param in self.model.parameters()) / dense.parameters

    def _result(self) -> Fit:
        before, after = compare(self.dense, self.model, self.example, latency=self.latency)
        report = replace(report_of(self.model), before=before, after=after)
        attach_report(self.model, report)
        reached, wanted = self._reached(report)
        size, goal = reached, wanted
        if self.target.measure == "weighted_group_sparsity":
            size, goal = 1 - reached, 1 - wanted
        close = size <= goal * (1 + self.target.tolerance)
        if size < goal * (1 - self.target.tolerance):
            self.notes.append("the network came out smaller than asked for: its groups are coarse")
        if not close:
            self.notes.append(
                f"{self.target.measure} {reached:g} instead of {wanted:g}: what is left cannot go: "
                "see report for what stays and why"
            )
        return Fit(
            self.model, report, self.history, self.plan, self.target, reached, close, self.notes
        )

    def _reached(self, report: ShrinkReport) -> tuple[float, float]:
        measure, value = self.target.measure, self.target.value
        if measure == "weighted_group_sparsity":
            return 1 - self.landed, value
        if measure == "latency_ms":
            batch = self.target.batch_size
            found = self.control.latency.measured(self.model) if batch else math.nan
            return found, value
        small = report.after.parameters if measure == "params" else report.after.macs
        large = report.before.parameters if measure == "params" else report.before.macs
        assert small is not None and large is not None
        return (small / large if isinstance(value, float) else float(small)), value


def _decayed(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Param groups with weight decay on matrices and kernels alone."""
    params = [param for param in model.parameters() if param.requires_grad]
    return [
        {"params": [param for param in params if param.dim() > 1], "weight_decay": decay},
        {"params": [param for param in params if param.dim() <= 1], "weight_decay": 0.0},
    ]
