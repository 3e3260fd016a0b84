"""Running a network and its smaller copy on numbers, and finding where they part."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from .agreement import largest_difference, real_outputs
from .analysis import Analysis
from .inputs import Inputs, undisturbed
from .plan import widen
from .trace import ShrinkError, Trace, described
from .units import Removal
from .values import Value

# What rounding may do to the largest output: in float64 next to nothing, however deep.
_TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.3}
# Outputs below it may be nothing but rounding: a constant channel through an instance norm is zero
# in theory, and the rounding of its mean over sqrt(eps) in fact.
_NOTHING = 1e-4
_RANDOM_RUNS = 3
# Times the rounding of the network itself, that of its copy may be.
_ROUNDINGS = 10


def require_same(
    model: nn.Module,
    slim: nn.Module,
    smaller: Callable[[nn.Module], nn.Module],
    inputs: Inputs,
    analysis: Analysis,
    removal: Removal,
    cut: nn.Module,
) -> float:
    """Run both on the example and on random inputs, in float64 where the code lets them.

    There `smaller` makes the network anew, so that constants in its biases are not rounded to the
    network's own dtype: outputs may be far smaller than what cancels in them. In that dtype both
    may be apart by some times what rounding does to the network itself.

    Args:
        model: the network.
        slim: the smaller one.
        smaller: what made it of the network.
        inputs: of one run.
        analysis: of the network.
        removal: what was removed from it.
        cut: the network with this alone done to it.

    Returns:
        The largest difference of their outputs on the example, in their own dtype.

    Raises:
        ShrinkError: they differ beyond rounding; it names the first layer that does.
    """
    wide = _widened(model, smaller, inputs)
    runs = [inputs]
    for seed in range(_RANDOM_RUNS):
        runs.append(inputs.at_random(torch.Generator().manual_seed(seed)))
    own = 0.0
    for number, run in enumerate(runs):
        ours = _outputs(model, run)
        if ours is None:
            if run is inputs:
                raise ShrinkError(f"{type(model).__name__} does not run on the example input")
            continue  # the network refuses made-up inputs
        apart, allowed = _apart(ours, slim, run), _allowed(ours)
        own = own if number else apart
        is_same = True
        exact = _outputs(wide[0], run.in_float64()) if wide is not None else None
        if wide is not None and exact is not None:
            allowed = max(allowed, _ROUNDINGS * largest_difference(ours, exact))
            apart_exactly = _apart(exact, wide[1], run.in_float64())
            is_same = apart_exactly <= _allowed(exact)
            apart = apart if is_same else apart_exactly
        if not is_same or apart > allowed:
            layer = _first_difference(cut, inputs, analysis, removal)
            raise ShrinkError(
                f"the smaller network differs by {apart:.3g} from {layer} on; "
                "the given one is untouched"
            )
    return own


def _apart(ours: list[Tensor], other: nn.Module, run: Inputs) -> float:
    theirs = _outputs(other, run)
    return torch.inf if theirs is None else largest_difference(ours, theirs)


def difference(model: nn.Module, slim: nn.Module, inputs: Inputs) -> float:
    """The largest difference of the outputs of two networks."""
    ours, theirs = _outputs(model, inputs), _outputs(slim, inputs)
    return torch.inf if ours is None or theirs is None else largest_difference(ours, theirs)


def agrees(model: nn.Module, other: nn.Module, inputs: Inputs) -> bool:
    """Whether two networks run on the inputs and compute the same but for rounding."""
    ours, theirs = _outputs(model, inputs), _outputs(other, inputs)
    if ours is None or theirs is None:
        return False
    return largest_difference(ours, theirs) <= _allowed(ours)


def _widened(
    model: nn.Module, smaller: Callable[[nn.Module], nn.Module], inputs: Inputs
) -> tuple[nn.Module, nn.Module] | None:
    """Both in float64; None if the code fixes a dtype, or they are in float64 already."""
    if all(output.dtype == torch.float64 for output in _outputs(model, inputs) or []):
        return None
    try:
        wide = copy.deepcopy(model).double()
        outputs = _outputs(wide, inputs.in_float64())
    except RuntimeError:
        return None
    if not outputs or any(output.dtype != torch.float64 for output in outputs):
        return None
    return wide, smaller(wide)


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor] | None:
    try:
        with undisturbed(model):
            return real_outputs(inputs.run(model))
    except Exception:  # whatever a network says to inputs that it does not like
        return None


def _allowed(outputs: list[Tensor]) -> float:
    largest = 0.0
    for output in outputs:
        finite = output[output.isfinite()]
        if finite.numel():
            largest = max(largest, float(finite.abs().max()))
    return max((_TOLERANCE.get(o.dtype, 1e-3) for o in outputs), default=0.0) * max(
        largest, _NOTHING
    )


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps every result."""

    def __init__(self, trace: Trace, inputs: Inputs) -> None:
        super().__init__(fx.GraphModule(nn.Module(), trace.graph))
        self.results: dict[str, Any] = {}
        given = iter(pytree.tree_leaves((inputs.args, inputs.kwargs)))
        feed = [next(given) if s.tensor is None else s.tensor for s in trace.sources.values()]
        with torch.no_grad():
            self.run(*feed)

    def run_node(self, n: fx.Node) -> Any:
        """Keep the result."""
        self.results[n.name] = super().run_node(n)
        return self.results[n.name]


def _first_difference(slim: nn.Module, inputs: Inputs, analysis: Analysis, removal: Removal) -> str:
    """The first operation whose results on the example differ in what is left of them."""
    slim_trace = Trace(widen(copy.deepcopy(slim)).eval(), inputs)
    large, small = _Recorder(analysis.trace, inputs), _Recorder(slim_trace, inputs)
    for node, other in zip(analysis.trace.calls, slim_trace.calls, strict=False):
        value, found = analysis.values[node], large.results[node.name]
        if not isinstance(value, Value) or not isinstance(found, Tensor):
            continue
        for axis, ids in enumerate(value.ids):
            kept = torch.from_numpy(removal.kept(ids)).to(found.device)
            found = found.index_select(axis, kept)
        rest = small.results[other.name]
        if found.shape != rest.shape or largest_difference([found], [rest]) > _allowed([found]):
            return described(node)
    return "its output"
