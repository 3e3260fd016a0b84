"""The fused steps on the CPU, compiled from steps.cpp when dualprox is installed."""

import ctypes
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..penalties.base import SparseGroupForm
from .build import SOURCES, digest, library_file
from .grid import grid_of

_FOLDER = Path(__file__).parent
_METHODS = {"rmda": 0, "ramda": 1, "prox_sgd": 2, "prox_adamw": 3}
_BUFFERS = {
    "rmda": ("grad_sum", None, "anchor"),
    "ramda": ("grad_sum", "grad_sq_sum", "anchor"),
    "prox_sgd": ("momentum_buffer", None, None),
    "prox_adamw": ("exp_avg", "exp_avg_sq", None),
}
_REST = "remainder"
_COUNTERS = ("step", "penalty_sum", "restart", "eps")


class _Record(ctypes.Structure):
    """One parameter; steps.cpp has the same fields in the same order."""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in ("param", "grad", "first", "second", "anchor", "rest")
        ),
        *((name, ctypes.c_void_p) for name in _COUNTERS),
        *((name, ctypes.c_int64) for name in ("parts", "outer", "groups", "inner")),
        ("entry_strength", ctypes.c_double),
        ("group_strength", ctypes.c_double),
        ("counts", ctypes.c_int64),
        ("iterations", ctypes.c_int64),
    )


class _Settings(ctypes.Structure):
    """What all parameters share; steps.cpp has the same fields in the same order."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("method", "bfloat16", "maximize", "ramp", "threads")),
        *((name, ctypes.c_double) for name in ("lr", "momentum", "beta1", "beta2")),
        *((name, ctypes.c_double) for name in ("eps", "weight_decay")),
        ("parallel", ctypes.c_void_p),
    )


@functools.cache
def _load() -> tuple[Callable[..., None] | None, str]:
    """The library's step and its instruction set; or None and why there is none."""
    # torch has looked at the processor already. ATEN_CPU_CAPABILITY overrides both.
    known = {"AVX512": ("avx512", "avx2"), "AVX2": ("avx2",)}
    able = known.get(torch.backends.cpu.get_cpu_capability(), ())
    files = [(name, library_file(_FOLDER, name)) for name in (*able, "baseline")]
    found = [(name, file) for name, file in files if file.exists()]
    if not found:
        return None, (
            "not compiled: dualprox was installed without a C++ compiler; with GCC or Clang in "
            "place, install it again"
        )
    name, file = found[0]
    try:
        library = ctypes.CDLL(str(file))
    except OSError as error:
        return None, f"{file.name} cannot be loaded: {error}"
    library.dualprox_digest.restype = ctypes.c_char_p
    has_sources = all((_FOLDER / source).exists() for source in SOURCES)
    if has_sources and library.dualprox_digest().decode() != digest(_FOLDER):
        return None, f"{file.name} was compiled from other sources; install dualprox again"
    library.dualprox_step.restype = None
    return library.dualprox_step, name


def instruction_set() -> str | None:
    """What the native kernels in use were compiled for; None if there are none."""
    step, name = _load()
    return None if step is None else name


def why_unavailable() -> str | None:
    """Why there are no native kernels here; None if there are."""
    step, reason = _load()
    return reason if step is None else None


@functools.cache
def _parallel() -> int | None:
    """Torch's own OpenMP runtime's GOMP_parallel: its threads are the ones to use."""
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        try:
            runtime = ctypes.CDLL(str(folder / name))
            return ctypes.cast(runtime.GOMP_parallel, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    return None


def refusal(param: Tensor, state: dict[str, Tensor], form: SparseGroupForm | None) -> str | None:
    """Why the kernels cannot step this parameter; None if they can."""
    reason = why_unavailable()
    if reason is not None:
        return f"the native kernels are {reason}"
    if type(param) not in (Tensor, torch.nn.Parameter):
        return f"it is a {type(param).__name__}"
    if param.device.type != "cpu":
        return f"it is on {param.device}"
    if param.dtype not in (torch.float32, torch.bfloat16):
        return f"it is {param.dtype}"
    grid = grid_of(param, None if form is None else form.slices)
    if grid is None:
        return "its groups do not lie in a grid in memory"
    for name, value in state.items():
        if name == "live":
            continue  # not the kernels'
        if name in _COUNTERS:
            fits = value.dim() == 0 and value.dtype == torch.float64
        else:
            alike = value.shape == param.shape and value.stride() == param.stride()
            fits = value.dtype == (torch.bfloat16 if name == _REST else torch.float32) and alike
        if not fits or value.device != param.device:
            return f"its state {name} is of another kind or laid out differently"
    return None


def _layout(tensor: Tensor) -> tuple[torch.dtype, torch.Size, tuple[int, ...]]:
    return tensor.dtype, tensor.shape, tensor.stride()


@dataclass(frozen=True)
class _Row:
    """One parameter as it was when the group was made, and its record."""

    tensors: tuple[Tensor, ...]  # the parameter and its state
    layout: tuple[torch.dtype, torch.Size, tuple[int, ...]]
    record: Any


class NativeGroup:
    """The fused step of parameters that `refusal` has passed, as they lie in memory now.

    Args:
        method: "rmda", "ramda", "prox_sgd" or "prox_adamw".
        params: of one param group, dense on the CPU.
        states: their states.
        forms: their penalties; None without one.
    """

    def __init__(
        self,
        method: str,
        params: Sequence[Tensor],
        states: Sequence[dict[str, Tensor]],
        forms: Sequence[SparseGroupForm | None],
    ) -> None:
        self._method = method
        # One array of records for each dtype, in the parameters' order.
        self._arrays: dict[torch.dtype, ctypes.Array[_Record]] = {}
        self._rows: list[_Row] = []
        for dtype in dict.fromkeys(param.dtype for param in params):
            self._arrays[dtype] = (_Record * sum(param.dtype == dtype for param in params))()
        free = {dtype: iter(array) for dtype, array in self._arrays.items()}
        for param, state, form in zip(params, states, forms, strict=True):
            record = next(free[param.dtype])
            grid = grid_of(param, None if form is None else form.slices)
            assert grid is not None
            record.parts, record.outer = grid.parts, grid.outer
            record.groups, record.inner = grid.groups, grid.inner
            if form is not None:
                record.entry_strength = form.entry_strength
                record.group_strength = form.group_strength
                record.counts = form.counts
            record.param = param.data_ptr()
            for place, name in zip(("first", "second", "anchor"), _BUFFERS[method], strict=True):
                setattr(record, place, state[name].data_ptr() if name else None)
            record.rest = state[_REST].data_ptr() if _REST in state else None
            for name in _COUNTERS:
                setattr(record, name, state[name].data_ptr() if name in state else None)
            self._rows.append(_Row((param, *state.values()), _layout(param), record))
        # The rows keep the tensors alive, so that no other gets their id.
        self._state_ids = [id(value) for row in self._rows for value in row.tensors[1:]]
        self._places = [tensor.data_ptr() for row in self._rows for tensor in row.tensors]

    def fits(self, params: Sequence[Tensor], states: Sequence[dict[str, Tensor]]) -> bool:
        """Whether these are the tensors it was made for, where they were."""
        if [id(value) for state in states for value in state.values()] != self._state_ids:
            return False
        if [tensor.data_ptr() for row in self._rows for tensor in row.tensors] != self._places:
            return False
        # Memory that was freed may come back with another dtype or shape.
        return all(
            param is row.tensors[0] and _layout(param) == row.layout
            for param, row in zip(params, self._rows, strict=True)
        )

    def step(self, grads: Sequence[Tensor], settings: Mapping[str, Any]) -> None:
        """One step of all parameters, in place.

        Args:
            grads: one per parameter; those of another layout or dtype are copied first.
            settings: `lr`, `maximize` and the method's own: `momentum`, `ramp`; `eps`; `betas`,
                `weight_decay`.
        """
        kept = []  # copies of gradients must outlive the call
        for row, grad in zip(self._rows, grads, strict=True):
            if _layout(grad) != row.layout or grad.is_neg():
                grad = torch.empty_like(row.tensors[0]).copy_(grad)
                kept.append(grad)
            row.record.grad = grad.data_ptr()
        beta1, beta2 = settings.get("betas", (0.0, 0.0))
        shared = _Settings(
            method=_METHODS[self._method],
            maximize=settings["maximize"],
            ramp=settings.get("ramp", False),
            threads=torch.get_num_threads(),
            lr=float(settings["lr"]),
            momentum=settings.get("momentum", 0.0),
            beta1=beta1,
            beta2=beta2,
            eps=settings.get("eps", 0.0),
            weight_decay=settings.get("weight_decay", 0.0),
            parallel=_parallel(),
        )
        run, _ = _load()
        assert run is not None
        for dtype, records in self._arrays.items():
            shared.bfloat16 = dtype == torch.bfloat16
            run(ctypes.byref(shared), records, ctypes.c_int64(len(records)))
        torch.autograd.graph.increment_version([row.tensors[0] for row in self._rows])

    def iterations(self) -> list[int]:
        """The Newton steps of the last step, parameter by parameter; 0 for a closed form."""
        return [row.record.iterations for row in self._rows]
