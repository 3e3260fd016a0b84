"""A run in progress: its model, optimizer and data, step by step and epoch by epoch."""

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

import dualprox as dp

from ..checks import require
from . import ranks, settings
from .finite import Finite, require_finite
from .networks import example_input, make_model
from .optimizers import make_optimizer, make_schedule
from .replica import Replica
from .rigl import masked_sparsity
from .settings import Run
from .tasks import task_of


class Training:
    """A run in progress: everything that a step or an epoch changes.

    `epoch` epochs are finished, and `taken` steps of the next one. `after_step` is called after
    each step, where everything can be saved.

    Args:
        run: what to do.
    """

    def __init__(self, run: Run) -> None:
        # Dead groups of an iterate halve at every step, down to subnormal numbers, on which a CPU
        # is many times slower. Before the first parallel work: threads take the mode they are
        # born under.
        torch.set_flush_denormal(True)
        torch.set_num_threads(run.threads)
        torch.manual_seed(run.seed)
        self.run = run
        self.device = torch.device(run.device)
        self.task = task_of(run)(run)
        self.model = make_model(run).to(self.device)
        self.epoch_steps = run.epoch_steps or len(self.task)
        self.opt = make_optimizer(run, self.model, run.epochs * self.epoch_steps)
        self.schedule = make_schedule(run, self.opt, run.epochs * self.epoch_steps)
        self.scaler = torch.GradScaler(self.device.type, enabled=run.precision == "float16")
        self.monitor: dp.StructureMonitor | None = None
        if isinstance(self.opt, dp.ProximalOptimizer):
            self.monitor = dp.StructureMonitor(self.opt)
        self.finite = Finite(self.opt, run.nonfinite == "skip", run.precision == "float16")
        self.epoch = self.taken = 0
        self.began = time.perf_counter()  # the epoch, if it had been trained in one go
        self.earlier = 0.0  # seconds of the epoch before training was stopped within it
        self.after_step: Callable[[], None] = lambda: None
        self.plan = dp.Plan()
        # The structure that everything is counted against if the network gets smaller.
        self.whole: dp.NetworkStructure | None = None
        if run.shrink_at_restart and isinstance(self.opt, dp.ProximalOptimizer):
            self.whole = dp.structure(self.opt)

    def structured(self) -> contextlib.AbstractContextManager[None]:
        """The structured point swapped in; the network as it is for optimizers without one."""
        if isinstance(self.opt, dp.ProximalOptimizer):
            return self.opt.structured()
        return contextlib.nullcontext()

    def train_epoch(self) -> dict[str, Any]:
        """What is left of an epoch and what it led to, measured at the structured point.

        Raises:
            FloatingPointError: a loss, a gradient or a weight is not finite.
        """
        self.began, self.earlier = time.perf_counter() - self.earlier, 0.0
        self.train_steps()
        require_finite(self.model, f"epoch {self.epoch + 1}")
        losses = self.finite.end_epoch(f"epoch {self.epoch + 1}")
        self.epoch, self.taken = self.epoch + 1, 0
        row: dict[str, Any] = {
            "epoch": self.epoch,
            "lr": self.opt.param_groups[0]["lr"],
            **losses,
            **ranks.from_first(self.measure),
        }
        if self.run.schedule == "multistep":
            self.schedule.step()
        if self.run.shrink_at_restart and self.epoch in self.run.milestones:
            self.shrink_()
        return row

    def measure(self) -> dict[str, Any]:
        """Validation metrics and sparsity at the structured point; one process speaks for all."""
        row: dict[str, Any] = self.evaluate()
        if self.monitor is not None and isinstance(self.opt, dp.ProximalOptimizer):
            record = asdict(self.monitor.update())
            row |= self.sparsity(dp.structure(self.opt)) | {
                name: value for name, value in record.items() if name != "epoch"
            }
        if isinstance(self.opt, dp.RigL):
            row["unstructured_sparsity"] = masked_sparsity(self.opt, self.model)
        return row

    def train_steps(self) -> None:
        """The steps that are left of an epoch.

        Raises:
            FloatingPointError: a loss or a gradient is not finite.
        """
        self.model.train()
        replica = Replica(self.task, self.model, self.run.seed)
        batches = self.task.batches(self.epoch + 1, self.taken)
        with replica.training():
            for batch in islice(batches, self.epoch_steps - self.taken):
                self.opt.zero_grad()
                self.taken += 1
                with self.autocast():
                    loss = replica.loss(batch, self.epoch + 1, self.taken)
                # Torch takes the mean of the processes' gradients, where their sum is wanted.
                self.scaler.scale(loss * ranks.world()).backward()
                if self.finite.allows(ranks.total(loss.detach()), self.place()):
                    self.step()
                self.after_step()

    def seconds(self) -> float:
        """That the epoch under way, or the one just finished, has taken."""
        return time.perf_counter() - self.began

    def place(self) -> str:
        """The step that is being taken, for a person."""
        return f"epoch {self.epoch + 1}, step {self.taken}"

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision of the run's layers."""
        if self.run.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, getattr(torch, self.run.precision))

    def step(self) -> None:
        """One step from the gradients that are there, clipped and unscaled as the run says."""
        if self.run.clip is not None:
            self.scaler.unscale_(self.opt)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.run.clip)
        scale = self.scaler.get_scale()
        self.scaler.step(self.opt)
        self.scaler.update()
        if self.scaler.get_scale() < scale:  # the step was skipped
            self.finite.overflow(self.place())
            return
        self.finite.step_taken()
        if self.run.schedule != "multistep":
            self.schedule.step()

    def sparsity(self, found: dp.NetworkStructure) -> dict[str, float | None]:
        """The shares of `NetworkStructure`; what has left the network counts as zero."""
        if not self.plan.keep or self.whole is None:
            return found.to_dict()
        groups = sum(layer.total for layer in self.whole.layers)
        entries = sum(layer.parameters for layer in self.whole.layers)
        live = sum(layer.parameters - (layer.in_dead_groups or 0) for layer in found.layers)
        nonzero = sum(layer.parameters - layer.zeros for layer in found.layers)
        return found.to_dict() | {
            "group_sparsity": 1 - sum(layer.size for layer in found.layers) / groups,
            "weighted_group_sparsity": 1 - live / entries,
            "unstructured_sparsity": 1 - nonzero / entries,
        }

    def shrink_(self) -> None:
        """Remove what is dead at the structured point, and go on with the rest."""
        assert isinstance(self.opt, dp.ProximalOptimizer)
        example = example_input(self.run).to(self.device)
        self.model, plan = dp.shrink_training(self.model, self.opt, example)
        self.plan = plan.after(self.plan)

    def evaluate(self) -> dict[str, float]:
        """Validation metrics at the structured point, in float32.

        Batch norms keep the running statistics of the iterate, so a network with them scores low
        until the final ramp brings the two points together.
        """
        with self.structured():
            return self.task.evaluate(self.model)

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how training goes on, loadable with ``weights_only=True``.

        Of several processes all must call it, and what the first one gets is whole.
        """
        return {
            "run": json.dumps(settings.to_json(self.run)),
            "epoch": self.epoch,
            "taken": self.taken,
            "seconds": self.seconds() if self.taken else 0.0,
            "finite": self.finite.state_dict(),
            "plan": json.dumps(self.plan.to_dict()),
            "model": self.model.state_dict(),
            "optimizer": self.opt.state_dict(),
            "schedule": self.schedule.state_dict(),
            "monitor": self.monitor.state_dict() if self.monitor else {},
            "scaler": self.scaler.state_dict(),
            "task": self.task.state_dict(),
            "rng": torch.get_rng_state(),
            "device_rng": torch.cuda.get_rng_state(self.device) if self._on_cuda() else None,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        plan = dp.Plan.from_dict(json.loads(saved["plan"]))
        # Where nothing was dead the plan is empty; penalties are those of a network that was cut.
        stages = self.run.milestones if self.run.shrink_at_restart else ()
        if stages and saved["epoch"] >= stages[0]:
            assert isinstance(self.opt, dp.ProximalOptimizer)
            dense, self.model = self.model, dp.apply_plan(self.model, plan)
            dp.narrow_(self.opt, dense, self.model, plan)
            self.plan = plan
        self.model.load_state_dict(saved["model"])
        self.opt.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        if self.monitor is not None:
            self.monitor.load_state_dict(saved["monitor"])
        self.scaler.load_state_dict(saved["scaler"])
        self.task.load_state_dict(saved["task"])
        torch.set_rng_state(saved["rng"])
        if self._on_cuda() and saved["device_rng"] is not None:
            torch.cuda.set_rng_state(saved["device_rng"], self.device)
        epoch = saved["epoch"]
        ok = isinstance(epoch, int) and 0 <= epoch <= self.run.epochs
        require(ok, "epoch", f"an int from 0 to {self.run.epochs}", epoch)
        self.finite.load_state_dict(saved["finite"])
        self.epoch, self.taken = epoch, saved["taken"]
        self.earlier = saved["seconds"]
        if self.taken:  # else torch warns of a schedule that goes ahead of its optimizer
            vars(self.opt)["_opt_called"] = True

    def structured_weights(self) -> dict[str, Tensor]:
        """Copies of the model's tensors at the structured point, on the CPU."""
        with self.structured():
            return {name: t.detach().cpu().clone() for name, t in self.model.state_dict().items()}

    def _on_cuda(self) -> bool:
        return self.device.type == "cuda"
