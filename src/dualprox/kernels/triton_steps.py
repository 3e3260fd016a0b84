"""Fused steps in Triton: all tensors of a param group together, in a few launches.

How an optimizer calls it, for the parameters of one param group that are on one device:

    reason = unsupported(method, param, state, form)     # None, or why not, per tensor
    fused = TritonGroup(method, params, states, forms, capturable=False)   # once
    if fused.fits(params, states):                       # else build it again
        fused.step([p.grad for p in params], group)

The steps are those of `update` in `optim`: same state, same formulas, the subproblem solved by
Newton's method on the norm of each group. No step synchronises, and none allocates more than the
few words it uploads. Sums are added in an order fixed by the shapes, and by whether tensors are
aligned to 16 bytes as torch allocates them: a run repeats bit by bit.

What is where:

- *Not capturable*: counters live on the CPU, the host works out each tensor's scalars and uploads
  them with the gradients' addresses in one copy. A tensor `lr` is read, which for one on the GPU
  waits for the device.
- *Capturable*: counters live on the parameters' device, a first small kernel moves them and works
  the scalars out, and nothing is uploaded unless addresses or settings change. `lr` may be a
  tensor on the device; 0 there leaves everything as it is. Take a step before capturing a CUDA
  graph, for kernels to be compiled. In the graph the addresses of the gradients and plain numbers
  are frozen; tensors, a tensor `lr` among them, are read anew at each replay. Whether a stage
  begins is known only on the device, so ``group["stage_lr"]`` is not kept and nobody warns that lr
  changed in a stage.

Bytes moved per float32 parameter (a fused AdamW: 28): RMDA 24, ProxSGD 20, ProxAdamW 28, RAMDA 32
for elementwise and resident tiles, which read the parameter a second time out of L2 under a metric.
A swept or split tile moves, from L2 if it still holds them and else from memory, RMDA 24 + 12,
ProxSGD 20 + 8, and with n Newton steps RAMDA 32 + 16 + 12 n, ProxAdamW 28 + 12 + 12 n. Two Newton
steps are usual once training is under way.

Source: docs/math.md, the norm equation.
"""

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..penalties.base import SparseGroupForm
from .grid import Grid, grid_of, memory_order
from .scalars import ROW, Method, host_row
from .tiling import Plan, Shape, Tiling, elementwise, merged, plan

# Names of the state in the order of the kernels' tables: anchor, first sum, second sum.
_BUFFERS: dict[str, tuple[str, ...]] = {
    "rmda": ("anchor", "grad_sum"),
    "ramda": ("anchor", "grad_sum", "grad_sq_sum"),
    "prox_sgd": ("", "momentum_buffer"),
    "prox_adamw": ("", "exp_avg", "exp_avg_sq"),
}
_COUNTERS: dict[str, tuple[str, ...]] = {
    "rmda": ("step", "penalty_sum", "restart"),
    "ramda": ("step", "penalty_sum", "restart", "eps"),
    "prox_sgd": ("step",),
    "prox_adamw": ("step",),
}
_METRIC = ("ramda", "prox_adamw")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_SETTINGS = 8
# Newton evaluations of a split tile: it cannot ask the host whether more are needed.
_BLIND_STEPS = 12


def unavailable() -> str | None:
    """Why Triton kernels cannot run here at all; None if they can."""
    try:
        import triton  # noqa: F401 # pyright: ignore[reportMissingImports] # optional
    except ImportError:
        return "the package triton is not installed"
    if not (torch.cuda.is_available() or _is_interpreted()):
        return "there is no CUDA device"
    return None


def _is_interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def unsupported(
    method: Method, param: Tensor, state: Mapping[str, Tensor], form: SparseGroupForm | None
) -> str | None:
    """Why a tensor has no Triton step; None if it has.

    Args:
        method: the optimizer's.
        param: the parameter.
        state: its state.
        form: its penalty, None for none. A penalty without `SparseGroupForm` has no Triton step.
    """
    if param.device.type != ("cpu" if _is_interpreted() else "cuda"):
        return f"it is on {param.device}"
    if param.dtype not in _DTYPES:
        return f"it is {param.dtype}, not float32, bfloat16 or float16"
    if param.numel() >= 2**31:
        return "it has 2^31 entries or more"
    if memory_order(param) is None or grid_of(param, form.slices if form else None) is None:
        return "its groups are not laid out as a grid in its memory"
    if form is not None and form.counts:
        return "counted groups and entries have no Triton step"
    if "max_exp_avg_sq" in state:
        return "amsgrad has no Triton step"
    for name in (*filter(None, _BUFFERS[method]), *_remainder(param)):
        buffer = state[name]
        dtype = torch.bfloat16 if name in _remainder(param) else torch.float32
        if buffer.dtype != dtype or buffer.device != param.device:
            return f"its {name} is {buffer.dtype} on {buffer.device}"
        if not _is_laid_out_like(buffer, param):
            return f"its {name} is not laid out like it"
    return None


def _remainder(param: Tensor) -> tuple[str, ...]:
    """The name of the buffer that only a parameter narrower than float32 has."""
    return () if param.dtype == torch.float32 else ("remainder",)


def _buffers(method: Method, param: Tensor, state: Mapping[str, Tensor]) -> list[Tensor]:
    names = (*filter(None, _BUFFERS[method]), *_remainder(param))
    return [state[name] for name in names]


def _is_laid_out_like(tensor: Tensor, param: Tensor) -> bool:
    pairs = zip(tensor.shape, tensor.stride(), param.stride(), strict=True)
    return tensor.shape == param.shape and all(n == 1 or a == b for n, a, b in pairs)


def _plan(param: Tensor, form: SparseGroupForm | None, tiling: Tiling) -> Plan:
    grid = None
    if form is not None and form.slices is not None and form.group_strength > 0:
        grid = grid_of(param, form.slices)
        assert isinstance(grid, Grid)  # `unsupported` has looked
    return elementwise(param.numel()) if grid is None else plan(grid, tiling)


def _places(
    method: Method, params: Sequence[Tensor], states: Sequence[Mapping[str, Tensor]]
) -> list[int]:
    """Addresses of parameters and buffers."""
    tables = (_buffers(method, p, state) for p, state in zip(params, states, strict=True))
    return [p.data_ptr() for p in params] + [b.data_ptr() for row in tables for b in row]


class TritonGroup:
    """The step of one method for several tensors on one device.

    Args:
        method: "rmda", "ramda", "prox_sgd" or "prox_adamw".
        params: float32, bfloat16 or float16 tensors, for which `unsupported` says None.
        states: their states, float32 buffers laid out like them, and 0-dim float64 counters.
        forms: their penalties; None for none.
        capturable: whether the counters are on the device.
        tiling: how the work is cut.

    Raises:
        RuntimeError: Triton cannot run here.
        ValueError: a tensor has no Triton step.
    """

    def __init__(
        self,
        method: Method,
        params: Sequence[Tensor],
        states: Sequence[Mapping[str, Tensor]],
        forms: Sequence[SparseGroupForm | None],
        capturable: bool = False,
        tiling: Tiling | None = None,
    ) -> None:
        why = unavailable()
        if why:
            raise RuntimeError(f"no Triton step: {why}")
        for param, state, form in zip(params, states, forms, strict=True):
            why = unsupported(method, param, state, form)
            if why is None and param.device != params[0].device:
                why = f"it is on {param.device}, others on {params[0].device}"
            place = param.device.type if capturable else "cpu"
            counters = [(state[c].device.type, state[c].dtype) for c in _COUNTERS[method]]
            if why is None and any(c != (place, torch.float64) for c in counters):
                why = f"its counters must be float64 on {place}"
            if why:
                raise ValueError(f"a parameter of shape {tuple(param.shape)} has none: {why}")
        # Addresses mean nothing to a tracer. Not done at import, as it loads torch's compiler.
        self._untraced: Any = torch.compiler.disable(TritonGroup._step)
        self.method: Method = method
        self.capturable = capturable
        self._params, self._device = list(params), params[0].device
        self._buffers = [
            _buffers(method, param, state) for param, state in zip(params, states, strict=True)
        ]
        self._counters = [[state[c] for c in _COUNTERS[method]] for state in states]
        # Zero-copy numpy: reading a counter this way takes a twentieth of `item`.
        self._values = [] if capturable else [[c.numpy() for c in row] for row in self._counters]
        self._places = _places(method, params, states)
        self._uploaded: tuple[bytes, Tensor] | None = None
        self._build(forms, Tiling() if tiling is None else tiling)

    def fits(self, params: Sequence[Tensor], states: Sequence[Mapping[str, Tensor]]) -> bool:
        """Whether these are still the tensors it was built for, in their places."""
        return (
            len(params) == len(self._params)
            and self._places == _places(self.method, params, states)
            and all(
                state[name] is counter
                for state, row in zip(states, self._counters, strict=True)
                for name, counter in zip(_COUNTERS[self.method], row, strict=True)
            )
        )

    def _build(self, forms: Sequence[SparseGroupForm | None], tiling: Tiling) -> None:
        """The tables, and the launches of a step."""
        tensors = np.zeros((len(self._params), 8), dtype=np.int64)
        strengths = np.zeros((len(self._params), 2))
        launches: dict[tuple[Shape, torch.dtype, bool, bool], list[tuple[int, Plan]]] = {}
        self._aligned = [False] * len(self._params)
        for i, (param, form) in enumerate(zip(self._params, forms, strict=True)):
            one = _plan(param, form, tiling)
            pointers = [param.data_ptr(), *(b.data_ptr() for b in self._buffers[i])]
            if _remainder(param):
                tensors[i, 7] = pointers[-1]
            sums = pointers[: len(pointers) - len(_remainder(param))]
            if not _BUFFERS[self.method][0]:
                sums.insert(1, 0)
            tensors[i, : len(sums)] = sums
            tensors[i, 4:7] = one.stride, one.pieces, one.width
            if form is not None:
                strengths[i] = form.entry_strength, form.group_strength
            if len(one.work):
                self._aligned[i] = one.aligned and not any(p % 16 for p in pointers)
                key = (one.shape, param.dtype, bool(strengths[i, 0]), self._aligned[i])
                launches.setdefault(key, []).append((i, one))
        self._layouts = [
            (p.stride(), p.dtype, a) for p, a in zip(self._params, self._aligned, strict=True)
        ]
        self._tensors = torch.from_numpy(tensors).to(self._device)
        self._strengths = torch.from_numpy(strengths).to(self._device)
        self._launches = []
        for key, plans in launches.items():
            work = torch.from_numpy(np.concatenate(list(merged(plans)))).to(self._device)
            size = len(work) * 5 * key[0].columns if key[0].kind == "split" else 0
            records = torch.empty(2, size, device=self._device)
            self._launches.append((*key, work, records))
        if self.capturable:
            words = np.zeros((len(self._params), 4), dtype=np.int64)
            for i, row in enumerate(self._counters):
                words[i, : len(row)] = [c.data_ptr() for c in row]
            self._counter_table = torch.from_numpy(words).to(self._device)
            self._rows = torch.zeros(
                len(self._params), ROW, dtype=torch.float64, device=self._device
            )

    def step(self, grads: Sequence[Tensor | None], settings: Mapping[str, Any]) -> None:
        """One step, in place.

        Args:
            grads: one per parameter, None to leave it and its state as they are. A gradient that
                is not laid out like its parameter, or not aligned like it, is copied first.
            settings: `lr`, `maximize` and the method's: `momentum`, `ramp`; `eps`; `betas`,
                `weight_decay`. If it is mutable and the counters are on the CPU, a stage that
                begins sets `stage_lr`.
        """
        self._untraced(self, grads, settings)

    @torch.no_grad()
    def _step(self, grads: Sequence[Tensor | None], settings: Mapping[str, Any]) -> None:
        lr: float | Tensor = settings["lr"]
        if not (self.capturable and isinstance(lr, Tensor)):
            lr = float(lr)
            if lr == 0:
                return
        addresses, copies = self._addresses_of(grads)
        guard = (
            torch.cuda.device(self._device)
            if self._device.type == "cuda"
            else contextlib.nullcontext()
        )
        with guard:
            if self.capturable:
                pointers, rows = self._scalars_on_device(addresses, settings, lr)
            else:
                pointers, rows = self._scalars_from_host(addresses, settings, float(lr))
            self._launch(pointers, rows)
        del copies  # lived until the kernels that read them were queued

    def _addresses_of(self, grads: Sequence[Tensor | None]) -> tuple[list[int], list[Tensor]]:
        """Where the gradients are; those not laid out as the kernels assume are copied first."""
        addresses, copies = [], []
        for grad, (stride, dtype, aligned) in zip(grads, self._layouts, strict=True):
            address = 0 if grad is None else grad.data_ptr()
            if grad is not None and (
                grad.stride() != stride or grad.dtype != dtype or (aligned and address % 16)
            ):
                param = self._params[len(addresses)]
                copies.append(torch.empty_like(param, requires_grad=False).copy_(grad))
                address = copies[-1].data_ptr()
            addresses.append(address)
        return addresses, copies

    def _upload(self, words: np.ndarray) -> Tensor:
        """Words on the device, without waiting; a new tensor each time."""
        host = torch.from_numpy(words)
        if self._device.type != "cuda":
            return host
        # New pinned memory too: torch does not hand it out again before the copy is done.
        return host.pin_memory().to(self._device, non_blocking=True)

    def _is_capturing(self) -> bool:
        return self._device.type == "cuda" and torch.cuda.is_current_stream_capturing()

    def _scalars_from_host(
        self, addresses: list[int], settings: Mapping[str, Any], lr: float
    ) -> tuple[Tensor, Tensor]:
        """Move the counters and work out the scalars here; upload them with the addresses."""
        if self._is_capturing():
            raise RuntimeError("a step in a CUDA graph needs capturable=True")
        count = len(addresses)
        words = np.zeros(count * (1 + ROW), dtype=np.int64)
        rows = words[count:].view(np.float64).reshape(count, ROW)
        words[:count] = addresses
        # Most tensors have counters in common: their scalars are worked out once.
        moved: dict[tuple[float, ...], tuple[list[float], list[int]]] = {}
        for i, counters in enumerate(self._values):
            if addresses[i]:
                before = tuple([c.item() for c in counters])
                known = moved.get(before)
                if known is None:
                    row, after = host_row(self.method, before, settings, lr)
                    known = moved[before] = [*after, *row], []
                for counter, old, new in zip(counters, before, known[0], strict=False):
                    if new != old:
                        counter.fill(new)
                known[1].append(i)
        for values, which in moved.values():
            row = values[len(_COUNTERS[self.method]) :]
            rows[which, : len(row)] = row
            if row[1] and isinstance(settings, dict):
                settings["stage_lr"] = lr
        there = self._upload(words)
        return there[:count], there[count:].view(torch.float64)

    def _scalars_on_device(
        self, addresses: list[int], settings: Mapping[str, Any], lr: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Launch the kernel that moves the counters; upload what has changed since last time."""
        from .device.launch import launch_prologue, written_words

        b1, b2 = settings.get("betas", (0.0, 0.0))
        numbers = (
            0.0 if isinstance(lr, Tensor) else lr,
            settings.get("momentum", 0.0),
            float(settings.get("ramp", False)),
            b1,
            b2,
            settings.get("eps", 0.0),
            settings.get("weight_decay", 0.0),
            -1.0 if settings["maximize"] else 1.0,
        )
        assert len(numbers) == _SETTINGS
        words = np.array(addresses + [0] * _SETTINGS, dtype=np.int64)
        words[len(addresses) :].view(np.float64)[:] = numbers
        key = words.tobytes()
        if self._is_capturing():
            there = written_words(words, self._device)
        elif self._uploaded is not None and self._uploaded[0] == key:
            there = self._uploaded[1]
        else:
            there = self._upload(words)
            self._uploaded = key, there
        count = len(addresses)
        pointers, table = there[:count], there[count : count + _SETTINGS].view(torch.float64)
        launch_prologue(self.method, self._counter_table, pointers, table, lr, self._rows)
        return pointers, self._rows

    def _launch(self, pointers: Tensor, rows: Tensor) -> None:
        from .device.launch import launch

        for shape, dtype, entries, aligned, work, records in self._launches:
            tables = (work, self._tensors, self._strengths, pointers, rows)
            steps = _BLIND_STEPS if self.method in _METRIC else 0
            launch(self.method, shape, dtype, entries, aligned, tables, records, steps)
