"""The stages of a fit, one optimizer step after the other."""

import copy
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..grouping import ParamGroups
from ..optim import RAMDA, RMDA, DualAveraging, FrozenSupport
from ..penalties import Coupled, GroupPenalty
from ..shrinking.inputs import ExampleInput
from ..shrinking.measure import compare, measure
from ..shrinking.report import ShrinkReport, attach_report, report_of
from . import checkpoint
from .batches import Batch, Loss, loss_of
from .clipping import Clipping
from .control import SizeControl
from .result import Choices, Fit, Progress, Stage, Watch, refit_rate
from .target import ZEROS, TargetSize

_RISE = 0.1  # share of the refit in which its learning rate comes up


class Fitting:
    """A fit in progress: `epoch` epochs are finished, `taken` steps in all."""

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
        widths: dict[str, float],
        select_inputs: bool,
        round_to: int,
        latency: bool,
        progress: bool,
        watch: Watch | None,
    ) -> None:
        self.model, self.loader, self.epochs, self.loss = model, loader, epochs, loss
        self.target, self.example, self.plan = target, example_input, plan
        self.round_to, self.latency = round_to, latency
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
            replace(target, at_least=widths) if widths else target,
            example_input,
            ramp_steps=max(1, round(plan.ramp * searched)),
            hold_from=searched,
            steer_until=round(plan.steer * searched),
            every=plan.every,
            select_inputs=select_inputs,
            round_to=round_to,
            narrow_norms=plan.narrow_norms,
        )
        self.dense = copy.deepcopy(model)
        self.history: list[dict[str, Any]] = []
        self.notes: list[str] = []
        # Of the stages without penalty: warmup of the whole network, and refit of the slim one.
        self.plain_lr = plan.warmup_lr
        self.plain = self._plain(model) if self.begin else None
        self.is_cut = False
        self.frozen: FrozenSupport | None = None  # after the cut, where zeros count as gone
        self.epoch = self.taken = 0
        self.held = self.landed = 0.0
        self.clipping = Clipping(plan.clip)
        self.began = time.perf_counter()

    def run(self, kept: Path | None) -> Fit:
        """All epochs that are left, saved to the file `kept` after each."""
        self.model.train()
        for epoch in range(self.epoch + 1, self.epochs + 1):
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
            self.epoch = epoch
            if kept is not None:
                checkpoint.save(kept, self.state_dict())
        if not self.is_cut:
            self._cut()
        return self._result()

    def _step(self, batch: Batch) -> Tensor:
        value, _ = loss_of(self.model, batch, self.loss)
        optimizer = self.opt if self.plain is None else self.plain
        optimizer.zero_grad()
        value.backward()
        if self.frozen is not None:  # torch's optimizers leave zero without gradient at zero
            self.frozen.project_gradients_()
        self.clipping.clip_(self.model)
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
        """Torch's optimizer of a stage without penalty."""
        params, lr = _decayed(model, self.plan.weight_decay), self.plain_lr
        # Torch's own default is a loop over the parameters on a CPU; fused does the same sums.
        fused = all(param.device.type in ("cpu", "cuda") for param in model.parameters())
        if self.plan.refit_optimizer == "adamw":
            return torch.optim.AdamW(params, lr=lr, fused=fused)
        return torch.optim.SGD(params, lr=lr, momentum=0.9, nesterov=True, fused=fused)

    def _set_rate(self, optimizer: torch.optim.Optimizer) -> None:
        first, last = (self.cut_at, self.total) if self.is_cut else (0, self.begin)
        end = 0.0 if self.is_cut else self.plan.warmup_end
        taken, steps = self.taken - first, last - first
        share = end + (1 - end) * (1 + math.cos(math.pi * taken / steps)) / 2
        if self.is_cut:  # what the cut has upset comes to rest first
            share *= min(1.0, (taken + 1) / (_RISE * steps))
        for group in optimizer.param_groups:
            group["lr"] = self.plain_lr * share

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
        self._begin_refit()

    def _begin_refit(self) -> None:
        self.model = self.control.cut().train()
        left, dense = (sum(p.numel() for p in m.parameters()) for m in (self.model, self.dense))
        if self.target.measure == "nonzeros":
            left = self.control.sizes.nonzeros(self.model)
        if self.target.measure in ZEROS:
            weights = self.control.sizes.penalized(self.model)
            self.frozen = FrozenSupport(weights, {n: w.detach() == 0 for n, w in weights.items()})
        self.plain_lr = refit_rate(self.plan, left / dense)
        self.plain, self.is_cut = self._plain(self.model), True

    def _require_finite(self, loss: float, epoch: int) -> None:
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss is {loss} in epoch {epoch}: lr {self.plan.lr:g} and refit_lr "
                f"{self.plain_lr:g} were used; give smaller ones"
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
        dense = self.control.sizes.footprint.dense
        if self.target.measure == "nonzeros":
            return self.control.sizes.nonzeros(self.model) / dense.parameters
        if self.target.measure == "weighted_group_sparsity":
            return self.landed
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
        seconds = time.perf_counter() - self.began
        plan = replace(self.plan, refit_lr=self.plain_lr if self.cut_at < self.total else None)
        return Fit(
            self.model, report, self.history, plan, self.target, reached, close, seconds,
            self.notes,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the fit goes on, loadable with ``weights_only=True``."""
        return {
            "fit": self._wish(),
            "epoch": self.epoch,
            "taken": self.taken,
            "seconds": time.perf_counter() - self.began,
            "held": self.held,
            "landed": self.landed,
            "history": self.history,
            "notes": self.notes,
            "dense": self.control.model.state_dict(),
            "optimizer": self.opt.state_dict(),
            "control": self.control.state_dict(),
            "plain": None if self.plain is None else self.plain.state_dict(),
            "slim": self.model.state_dict() if self.is_cut else None,
            "clipping": self.clipping.state_dict(),
            "loader": checkpoint.state_of(self.loader),
            "rng": checkpoint.rng(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, in a fit that was made with the same arguments.

        A network that was cut then is cut again, at the same structured point.

        Raises:
            ValueError: it was made with others.
        """
        for name, value in self._wish().items():
            if saved["fit"].get(name) != value:
                raise ValueError(
                    f"is of a fit with {name.replace('_', ' ')} {saved['fit'].get(name)}, "
                    f"here {value}"
                )
        self.control.model.load_state_dict(saved["dense"])
        self.control.load_state_dict(saved["control"])
        self.opt.load_state_dict(saved["optimizer"])
        if saved["slim"] is not None:
            self._begin_refit()
            self.model.load_state_dict(saved["slim"])
        elif saved["plain"] is None:
            self.plain = None
        if self.plain is not None and saved["plain"] is not None:
            self.plain.load_state_dict(saved["plain"])
        self.clipping.load_state_dict(saved["clipping"])
        self.epoch, self.taken = saved["epoch"], saved["taken"]
        self.held, self.landed = saved["held"], saved["landed"]
        self.history, self.notes = list(saved["history"]), list(saved["notes"])
        self.began = time.perf_counter() - saved["seconds"]
        checkpoint.set_state_of(self.loader, saved["loader"])
        checkpoint.set_rng(saved["rng"])

    def _wish(self) -> dict[str, Any]:
        """What two parts of one fit must have in common."""
        target = {
            "measure": self.target.measure,
            "target": self.target.value,
            "at_least": dict(self.target.at_least),
            "at_most": dict(self.target.at_most),
            "tolerance": self.target.tolerance,
            "batch_size": self.target.batch_size,
            "select_inputs": self.control.select_inputs,
        }
        length = {"epochs": self.epochs, "steps_per_epoch": self.steps_per_epoch}
        return {**target, **length, **vars(self.plan), "round_to": self.round_to}

    def _reached(self, report: ShrinkReport) -> tuple[float, float]:
        measure, value = self.target.measure, self.target.value
        if measure == "nonzeros":
            found = self.control.sizes.nonzeros(self.model)
            return (found / report.before.parameters if isinstance(value, float) else found), value
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


def least_widths(model: nn.Module, groups: ParamGroups, share: float) -> dict[str, float]:
    """The share of what it reads that a layer is to keep at least, by its weight's name.

    Only channels of convolutions have such bounds. Those that several convolutions read, a residual
    stream's, are what everything passes through: share^(1/3) of them stay, and branches beside them
    are free. Without such channels each convolution, and the layer registered behind the last one,
    keeps 0.7 of the width that an even cut has, the square root of the share. See docs/fit.md.
    """
    found = {
        row.name: row.penalty
        for row in groups.rows
        if isinstance(row.penalty, GroupPenalty | Coupled)
        and model.get_parameter(row.name).requires_grad
    }
    names = list(found)
    convs = [n for n in names if isinstance(model.get_submodule(n.rpartition(".")[0]), _ConvNd)]
    streams = [name for name in convs if isinstance(found[name], Coupled)]
    if streams:
        width: float = share ** (1 / 3)
        return dict.fromkeys(streams, width)
    behind = names[names.index(convs[-1]) + 1 :][:1] if convs else []
    return dict.fromkeys(convs + behind, 0.7 * math.sqrt(share))


def _decayed(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Param groups with weight decay on matrices and kernels alone."""
    params = [param for param in model.parameters() if param.requires_grad]
    return [
        {"params": [param for param in params if param.dim() > 1], "weight_decay": decay},
        {"params": [param for param in params if param.dim() <= 1], "weight_decay": 0.0},
    ]
