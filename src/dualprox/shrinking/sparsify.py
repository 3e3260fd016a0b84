"""Linear layers with many zeros in torch's sparse formats, where that is faster."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import is_real, require
from ..kinds import check_kinds
from ..timing import Budget, Case, Timing, clock_of, interleave
from .agreement import require_agreements
from .inputs import ExampleInput, Inputs, undisturbed
from .measure import compare
from .replace import (
    describe,
    entries_of,
    layers_with_matrices,
    own_parameters,
    reasons_to_stay,
    with_layers_exchanged,
)
from .report import LayerChange, ShrinkReport, attach_report
from .sparse_layers import SemiStructuredLinear, SparseLinear, is_two_in_four

Sparse = SparseLinear | SemiStructuredLinear
_FORMATS = {SparseLinear: "CSR", SemiStructuredLinear: "2:4"}


def _inputs_of_layers(
    model: nn.Module, layers: Mapping[str, nn.Module], inputs: Inputs
) -> dict[str, Inputs]:
    """What each layer is given first in a run; those that do not run are left out."""
    found: dict[str, Inputs] = {}
    hooks = []
    with undisturbed(model):
        try:
            for name, layer in layers.items():

                def keep(_: Any, args: Any, kwargs: Any, name: str = name) -> None:
                    found.setdefault(name, Inputs(args, kwargs))

                hooks.append(layer.register_forward_pre_hook(keep, with_kwargs=True))
            inputs.run(model)
        finally:
            for hook in hooks:
                hook.remove()
    return found


def _candidates(layer: nn.Linear) -> list[Sparse]:
    """The sparse forms of a layer that take fewer bytes."""
    weight = layer.weight
    made: list[Sparse] = []
    entries = int((weight != 0).sum()) * (weight.element_size() + 4)
    if entries + 4 * (layer.out_features + 1) < weight.numel() * weight.element_size():
        made.append(SparseLinear.of(layer))
    halves = (torch.float16, torch.bfloat16)
    if weight.is_cuda and weight.dtype in halves and is_two_in_four(weight.detach()):
        made.append(SemiStructuredLinear.of(layer))
    return made


def _runs(layer: nn.Module, inputs: Inputs) -> str:
    """Why torch cannot run a layer; empty: it can."""
    try:
        inputs.run(layer)
    except (RuntimeError, NotImplementedError) as error:
        return str(error).partition("\n")[0]
    return ""


def _describe_speed(form: str, dense: Timing, sparse: Timing, share: float) -> str:
    """As "CSR is 3.10x slower at 87% zeros"."""
    ratio = dense.median / sparse.median
    if ratio < 1:
        return f"{form} is {1 / ratio:.3g}x slower at {share:.0%} zeros"
    within = "" if sparse.q3 < dense.q1 else ", within the spread,"
    return f"{form} is {ratio:.3g}x faster{within} at {share:.0%} zeros"


def _choose(
    layer: nn.Linear, inputs: Inputs | None, faster_only: bool, seconds: float
) -> tuple[Sparse | None, str]:
    """The form to take, with its measured speed; or none, and why."""
    share = float((layer.weight == 0).double().mean())
    if not share:
        return None, ""
    made = _candidates(layer)
    if not made:
        return None, f"CSR takes no fewer bytes at {share:.0%} zeros"
    if inputs is None:
        if faster_only:
            return None, "the example does not run it"
        return made[0], f"{_FORMATS[type(made[0])]} at {share:.0%} zeros, not timed"
    with undisturbed(layer, *made):
        failures = [_runs(one, inputs) for one in made]
        able = [one for one, failure in zip(made, failures, strict=True) if not failure]
        if not able:
            return None, f"torch cannot run it sparse: {failures[0]}"
        cases = {"dense": Case(lambda: inputs.run(layer))}
        for one in able:
            cases[_FORMATS[type(one)]] = Case(lambda one=one: inputs.run(one))
        clock = clock_of(layer.weight.device)
        times = interleave(cases, clock, Budget(seconds))
    best = min(able, key=lambda one: times[_FORMATS[type(one)]].median)
    dense, sparse = times["dense"], times[_FORMATS[type(best)]]
    speed = _describe_speed(_FORMATS[type(best)], dense, sparse, share)
    if faster_only and sparse.q3 >= dense.q1:
        return None, speed
    return best, speed


def sparsify(
    model: nn.Module,
    example_input: ExampleInput,
    *,
    faster_only: bool = True,
    latency: bool = True,
    batch_sizes: Sequence[int] = (1, 64),
    seconds: float = 0.5,
) -> nn.Module:
    """A copy of the model whose Linear layers with many zeros are held in sparse form.

    For the unstructured zeros that `L1` leaves. A layer is timed, dense and sparse in turns, on
    what it is given when the model runs on the example, so the example's batch should be the one
    to be run later. Compressed sparse rows (CSR) need many zeros to be faster, and more for small
    batches; the 2:4 format needs CUDA, half precision and its pattern. Entries are held bit for
    bit; outputs are the same up to the rounding of sums in another order, which is checked.

    Call it inside `with opt.structured():`, since the iterate has few zeros.

    Args:
        model: any module; it stays as it is.
        example_input: a tensor, a tuple of positional arguments or a dict of keyword arguments.
        faster_only: leave dense what is not faster, by more than the spread of the times. False:
            whatever takes fewer bytes becomes sparse.
        latency: whether to measure the latency of the whole model, see `measure`.
        batch_sizes: of the whole model, see `measure`.
        seconds: how long to time each form of each layer, and each model, about.

    Returns:
        A new model; `report` is its `ShrinkReport`, which gives the measured ratio of every layer
        with zeros, and `report.plan` is for `sparsify_like`.

    Raises:
        RuntimeError: outputs differ by more than rounding explains; the message names the layer.
        ValueError: a setting is out of range, or the model has its own attribute `report`.

    Example:
        >>> layer = nn.Linear(256, 256)
        >>> with torch.no_grad():
        ...     _ = layer.weight.mul_(torch.rand(256, 256) > 0.9)
        >>> sparse = sparsify(layer, torch.randn(64, 256), faster_only=False, latency=False)
        >>> sparse.report.layers[0].after
        'CSR is ... at 90% zeros'
    """
    check_kinds(sparsify, locals())
    require(is_real(seconds) and seconds > 0, "seconds", "a number > 0", seconds)
    inputs = Inputs.of(example_input)
    layers = layers_with_matrices(model)
    reasons = reasons_to_stay(model, layers, (nn.Linear,), inputs)
    able = {name: layer for name, layer in layers.items() if not reasons[name]}
    given = _inputs_of_layers(model, able, inputs)
    exchange: dict[str, Sparse] = {}
    changes = []
    for name, layer in layers.items():
        made, why = None, reasons[name]
        if isinstance(layer, nn.Linear) and not why:
            made, why = _choose(layer, given.get(name), faster_only, seconds)
        zeros, before, parameters = _zeros(layer), describe(layer), own_parameters(layer)
        if made is None:
            change = LayerChange(name, before, before, parameters, parameters, zeros, 0, why)
        else:
            exchange[name] = made
            change = LayerChange(name, before, why, parameters, own_parameters(made), zeros, zeros)
        changes.append(change)
    sparse = with_layers_exchanged(model, exchange)
    difference = require_agreements(model, sparse, inputs, exchange)
    costs = compare(
        model, sparse, example_input, latency=latency, batch_sizes=batch_sizes, seconds=seconds
    )
    plan = {"change": "sparsify", "layers": {name: _entry(x) for name, x in exchange.items()}}
    return attach_report(sparse, ShrinkReport(tuple(changes), *costs, difference, plan))


def _zeros(layer: nn.Module) -> int:
    weight = layer._parameters.get("weight")
    if not isinstance(weight, Tensor) or weight.layout is not torch.strided or weight.is_meta:
        return 0
    return int((weight == 0).sum())


def _entry(layer: Sparse) -> dict[str, Any]:
    """What the plan says of a layer."""
    if isinstance(layer, SparseLinear):
        return {"format": "CSR", "nonzeros": len(layer.values)}
    return {"format": "2:4"}


def sparsify_like(model: nn.Module, plan: Mapping[str, Any]) -> nn.Module:
    """A copy of a freshly made model with the architecture that `sparsify` chose.

    Args:
        model: of the same class and settings as the one that was made sparse.
        plan: `report.plan` of the sparse model, or what JSON made of it.

    Returns:
        A new model whose sparse layers are zero until `load_state_dict`.

    Raises:
        ValueError: the plan is not one of `sparsify`, or does not fit the model.

    Example:
        >>> entry = {"format": "CSR", "nonzeros": 7}
        >>> plan = {"change": "sparsify", "layers": {"0": entry}}
        >>> sparsify_like(nn.Sequential(nn.Linear(8, 6)), plan)
        Sequential(
          (0): SparseLinear(in_features=8, out_features=6, nonzeros=7, bias=True)
        )
    """
    check_kinds(sparsify_like, locals())
    change = plan.get("change")
    require(change == "sparsify", "plan", 'one of sparsify ("change": "sparsify")', change)
    named = dict(model.named_modules())
    exchange: dict[str, Sparse] = {}
    for name, entry in entries_of(plan, ("format",)).items():
        layer = named.get(name)
        if type(layer) is not nn.Linear:
            found = type(layer).__name__ if layer is not None else "no layer"
            raise ValueError(f"plan: {name!r} must be a Linear, got {found}")
        form = entry["format"]
        require(form in [*_FORMATS.values()], f"plan: format of {name!r}", '"CSR" or "2:4"', form)
        settings = (layer.in_features, layer.out_features)
        options: dict[str, Any] = {
            "bias": layer.bias is not None,
            "device": layer.weight.device,
            "dtype": layer.weight.dtype,
        }
        if form == "CSR":
            nonzeros = entry.get("nonzeros")
            fits = type(nonzeros) is int and 0 <= nonzeros <= layer.weight.numel()
            require(fits, f"plan: nonzeros of {name!r}", "a count of entries", nonzeros)
            assert isinstance(nonzeros, int)
            exchange[name] = SparseLinear(*settings, nonzeros, **options)
        else:
            exchange[name] = SemiStructuredLinear(*settings, **options)
    return with_layers_exchanged(model, exchange)
