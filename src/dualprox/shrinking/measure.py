"""What a model costs: parameters, bytes, multiplications and time."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..checks import is_count, is_real, require
from ..kinds import check_kinds
from ..timing import Budget, Case, Timing, clock_of, interleave
from .inputs import ExampleInput, Inputs, undisturbed


@dataclass(frozen=True)
class Latency:
    """The time of one run, warm.

    Args:
        batch_size: of the input.
        timing: median and quartiles in seconds; None if the model cannot run at that batch size.
        failure: then why; else empty.
    """

    batch_size: int
    timing: Timing | None
    failure: str = ""


@dataclass(frozen=True)
class Cost:
    """What a model costs.

    Args:
        parameters: their entries, shared ones counted once.
        buffers: their entries, shared ones counted once.
        bytes: of the tensors in its state dict, shared ones counted once: the size of its file.
        macs: multiplications with additions for one example, those of matrix products,
            convolutions and attention; None if it was not run.
        latencies: one per batch size.
    """

    parameters: int
    buffers: int
    bytes: int
    macs: int | None = None
    latencies: tuple[Latency, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def _entries(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _file_bytes(model: nn.Module) -> int:
    """The bytes of the distinct tensors in the state dict."""
    found = {
        (value.data_ptr() or id(value), value.shape, value.stride()): value
        for value in model.state_dict().values()
        if isinstance(value, Tensor)
    }
    return sum(value.numel() * value.element_size() for value in found.values())


def size(model: nn.Module) -> Cost:
    """The cost of a model without running it: neither MACs nor latencies."""
    return Cost(
        parameters=_entries(list(model.parameters())),
        buffers=_entries(list(model.buffers())),
        bytes=_file_bytes(model),
    )


def _dense_or_sparse_mm(a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    """Floating-point operations of a @ b, where zeros that a sparse matrix leaves out are free."""
    if a.layout == torch.sparse_csr:
        return 2 * a.values().numel() * b.shape[-1]
    if b.layout in (torch.sparse_csr, torch.sparse_csc):
        return 2 * b.values().numel() * a.shape[0]
    return 2 * a.shape[0] * a.shape[1] * b.shape[-1]


def _sparse_addmm(_: Tensor, a: Tensor, b: Tensor, *__: Any, **___: Any) -> int:
    return _dense_or_sparse_mm(a, b)


def _recurrent(steps: Tensor, weights: Sequence[Tensor]) -> int:
    """Every example at every step is multiplied by every matrix."""
    return 2 * steps.shape[:-1].numel() * _entries([w for w in weights if w.dim() == 2])


def _mkldnn_rnn(steps: Tensor, *arguments: Any, **_: Any) -> int:
    return _recurrent(steps, arguments[:4])


def _cudnn_rnn(steps: Tensor, weights: Sequence[Tensor], *_: Any, **__: Any) -> int:
    return _recurrent(steps, weights)


_FORMULAS: dict[Any, Any] = {
    torch.ops.aten.mm: _dense_or_sparse_mm,
    torch.ops.aten._sparse_mm: _dense_or_sparse_mm,
    torch.ops.aten.addmm: _sparse_addmm,
    torch.ops.aten.mkldnn_rnn_layer: _mkldnn_rnn,
    torch.ops.aten._cudnn_rnn: _cudnn_rnn,
}
for _formula in _FORMULAS.values():
    _formula._get_raw = True  # the counter then gives it tensors, not shapes


def count_macs(model: nn.Module, example_input: ExampleInput) -> int:
    """Multiplications with additions that the model does for one example.

    Counted are matrix products, convolutions, attention (in full, also where it is causal) and
    what recurrent layers are made of; not entrywise work, nor a user's own kernels.

    Args:
        model: any module; it is run once, in evaluation mode, and left as it was.
        example_input: see `measure`.

    Returns:
        The count for the whole batch over its size, rounded.

    Example:
        >>> count_macs(nn.Linear(3, 5), torch.zeros(2, 3))
        15
    """
    inputs = Inputs.of(example_input)
    fused = torch.backends.mha.get_fastpath_enabled()
    from torch.utils.flop_counter import FlopCounterMode  # slow to import

    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    with undisturbed(model), ExitStack() as slow:
        # Fused attention and encoder kernels hide their products from the counter.
        slow.enter_context(torch.inference_mode(False))
        slow.enter_context(torch.no_grad())
        slow.enter_context(sdpa_kernel(SDPBackend.MATH))
        slow.callback(torch.backends.mha.set_fastpath_enabled, fused)
        torch.backends.mha.set_fastpath_enabled(False)
        slow.enter_context(counter)
        inputs.try_on(model)
    return round(counter.get_total_flops() / 2 / inputs.batch_size)


def _latencies(
    models: dict[str, nn.Module], inputs: Inputs, batch_size: int, budget: Budget
) -> dict[str, Latency]:
    """The latency of each model at one batch size, timed in turns."""
    at_batch = inputs.at_batch(batch_size)
    found: dict[str, Latency] = {}
    cases: dict[str, Case] = {}
    for name, model in models.items():
        try:
            at_batch.run(model)
        except Exception as error:  # whatever a model says to a batch that it does not like
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            found[name] = Latency(batch_size, None, reason)
        else:
            cases[name] = Case(lambda model=model: at_batch.run(model))
    if cases:
        clock = clock_of(inputs.tensors()[0].device)
        for name, timing in interleave(cases, clock, budget).items():
            found[name] = Latency(batch_size, timing)
    return found


def _measure_all(
    models: dict[str, nn.Module],
    example_input: ExampleInput,
    latency: bool,
    batch_sizes: Sequence[int],
    seconds: float,
) -> dict[str, Cost]:
    for batch_size in batch_sizes:
        require(is_count(batch_size), "batch_sizes", "ints >= 1", batch_size)
    require(is_real(seconds) and seconds > 0, "seconds", "a number > 0", seconds)
    inputs = Inputs.of(example_input)
    macs = {name: count_macs(model, example_input) for name, model in models.items()}
    times: dict[str, list[Latency]] = {name: [] for name in models}
    with undisturbed(*models.values()):
        for batch_size in batch_sizes if latency else ():
            for name, found in _latencies(models, inputs, batch_size, Budget(seconds)).items():
                times[name].append(found)
    costs = {}
    for name, model in models.items():
        known = size(model)
        costs[name] = Cost(
            known.parameters, known.buffers, known.bytes, macs[name], tuple(times[name])
        )
    return costs


def measure(
    model: nn.Module,
    example_input: ExampleInput,
    *,
    latency: bool = True,
    batch_sizes: Sequence[int] = (1, 64),
    seconds: float = 0.5,
) -> Cost:
    """What a model costs, measured in evaluation mode; the model is left as it was.

    Args:
        model: any module, on the device to measure.
        example_input: a tensor, a tuple of positional arguments or a dict of keyword arguments.
            The batch is axis 0 of its first tensor, and of every other that is as long there.
        latency: whether to take times.
        batch_sizes: to take times at; the example is cut, or repeated, to each.
        seconds: how long to time at each, about.

    Returns:
        The cost; a latency carries the reason where the model cannot run at a batch size.

    Raises:
        ValueError: a setting is out of range, or the model does not take `example_input`.
        TypeError: `example_input` is of another kind.

    Example:
        >>> cost = measure(nn.Linear(3, 5), torch.zeros(1, 3), batch_sizes=[1], seconds=0.01)
        >>> cost.parameters, cost.bytes, cost.macs, cost.latencies[0].timing.median > 0
        (20, 80, 15, True)
    """
    check_kinds(measure, locals())
    models = {"model": model}
    return _measure_all(models, example_input, latency, batch_sizes, seconds)["model"]


def compare(
    before: nn.Module,
    after: nn.Module,
    example_input: ExampleInput,
    *,
    latency: bool = True,
    batch_sizes: Sequence[int] = (1, 64),
    seconds: float = 0.5,
) -> tuple[Cost, Cost]:
    """The costs of two models, timed in turns so that a disturbance falls on both.

    Args:
        before: the baseline.
        after: the other model.
        example_input: of both, see `measure`.
        latency: see `measure`.
        batch_sizes: see `measure`.
        seconds: how long to time each model at each batch size, about.

    Returns:
        The cost of `before` and the cost of `after`.

    Raises:
        ValueError: see `measure`.
    """
    check_kinds(compare, locals())
    models = {"before": before, "after": after}
    costs = _measure_all(models, example_input, latency, batch_sizes, seconds)
    return costs["before"], costs["after"]
