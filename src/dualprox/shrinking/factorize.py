"""Layers of low rank as two thinner layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..checks import is_count, require, require_kind
from ..kinds import check_kinds
from ..penalties.low_rank import rounding_level
from .agreement import agreement, require_agreement, require_agreements
from .inputs import ExampleInput, Inputs
from .measure import compare, size
from .replace import (
    describe,
    entries_of,
    layers_with_matrices,
    own_parameters,
    reasons_to_stay,
    with_layers_exchanged,
)
from .report import LayerChange, ShrinkReport, attach_report

Rows = Literal["out", "in"]
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_KINDS = (nn.Linear, *_CONVOLUTIONS)


def unfold(weight: Tensor, rows: Rows) -> Tensor:
    """The weight as a matrix with a row per output, (out, in * k), or per input, (in, out * k)."""
    return weight.flatten(1) if rows == "out" else weight.transpose(0, 1).flatten(1)


class LowRank(nn.Sequential):
    """Two thinner layers in place of a Linear or convolution of low rank.

    Its state dict holds `0.weight`, `1.weight` and, if the layer had one, `1.bias`. What the
    layer told of itself (`in_features`, `stride`, ...) it tells too.

    Args:
        layer: the Linear or ungrouped convolution that it stands for; only its settings are read.
        rank: width between the two, >= 1.
        rows: "out": the first layer has the kernel; "in": the second one has it.
    """

    def __init__(self, layer: nn.Module, rank: int, rows: Rows = "out") -> None:
        check_kinds(LowRank.__init__, locals())
        require_kind(_KINDS, "a Linear or a convolution", layer=layer)
        require(rows in ("out", "in"), "rows", "'out' or 'in'", rows)
        require(is_count(rank) and rank < 2**31, "rank", "an int from 1 to 2**31 - 1", rank)
        bias = layer.bias is not None
        if isinstance(layer, nn.Linear):
            first = nn.Linear(layer.in_features, rank, bias=False, device="meta")
            second = nn.Linear(rank, layer.out_features, bias=bias, device="meta")
        else:
            assert isinstance(layer, _CONVOLUTIONS)
            kernel: dict[str, Any] = {
                name: getattr(layer, name)
                for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
            }
            point: dict[str, Any] = {"kernel_size": 1}
            settings = (kernel, point) if rows == "out" else (point, kernel)
            convolution = type(layer)
            first = convolution(layer.in_channels, rank, bias=False, device="meta", **settings[0])
            second = convolution(rank, layer.out_channels, bias=bias, device="meta", **settings[1])
        super().__init__(first, second)
        self.rank = rank
        self.rows: Rows = rows
        for name in layer.__constants__:
            setattr(self, name, getattr(layer, name))
        weight = layer.weight
        assert isinstance(weight, Tensor)
        self.to_empty(device=weight.device).to(weight.dtype)
        self.train(layer.training)
        self.requires_grad_(weight.requires_grad)
        if isinstance(layer.bias, Tensor) and self.bias is not None:
            self.bias.requires_grad_(layer.bias.requires_grad)

    @property
    def weight(self) -> Tensor:
        """The product of the factors, made anew each time: the weight of the one layer."""
        first, second = self[0].weight, self[1].weight
        assert isinstance(first, Tensor) and isinstance(second, Tensor)
        return torch.einsum("or...,ri...->oi...", second, first)

    @property
    def bias(self) -> Tensor | None:
        """The bias of the second layer."""
        return self[1].bias  # type: ignore[return-value]

    def reset_parameters(self) -> None:
        """Draw both layers as torch draws new ones."""
        for layer in self:
            layer.reset_parameters()  # type: ignore[operator]


@dataclass(frozen=True)
class _Split:
    """A weight, unfolded, as left @ right with `rank` columns and rows."""

    rows: Rows
    rank: int
    full: int
    left: Tensor
    right: Tensor

    def parameters(self) -> int:
        """Entries of both factors."""
        return self.left.numel() + self.right.numel()


def _split(weight: Tensor, rows: Rows) -> _Split:
    """Factors with the square root of each singular value above rounding in either."""
    matrix = unfold(weight.detach(), rows).double()
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    rank = int((s > rounding_level(matrix, weight.dtype)).sum())
    # An all-zero layer keeps one pair of zero vectors: torch's layers need a width of one.
    kept = slice(max(rank, 1))
    root = s[kept].sqrt() if rank else torch.zeros_like(s[kept])
    return _Split(rows, rank, min(matrix.shape), u[:, kept] * root, root[:, None] * vh[kept])


def _low_rank_layer(layer: nn.Module, split: _Split) -> LowRank:
    """The two layers with these factors, and the bias of the one layer."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    made = LowRank(layer, split.left.shape[1], split.rows)
    first, second = made[0].weight, made[1].weight
    assert isinstance(first, Tensor) and isinstance(second, Tensor)
    with torch.no_grad():
        if split.rows == "out":
            first.copy_(split.right.view(first.shape))
            second.copy_(split.left.view(second.shape))
        else:
            rank, (out, *kernel) = split.left.shape[1], (weight.shape[0], *weight.shape[2:])
            first.copy_(split.left.mT.reshape(first.shape))
            second.copy_(split.right.view(rank, out, *kernel).transpose(0, 1))
        if made.bias is not None:
            made.bias.copy_(layer.bias)  # type: ignore[arg-type]
    return made


def _sample(layer: nn.Module) -> Inputs:
    """A random input of a Linear or convolution."""
    generator = torch.Generator().manual_seed(0)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if isinstance(layer, nn.Linear):
        shape = [4, layer.in_features]
    else:
        assert isinstance(layer, _CONVOLUTIONS)
        pads = [0] * len(layer.kernel_size) if isinstance(layer.padding, str) else layer.padding
        settings = zip(layer.kernel_size, layer.dilation, layer.stride, pads, strict=True)
        sides = [max(d * (k - 1), int(p)) + 1 + s for k, d, s, p in settings]
        shape = [2, layer.in_channels, *sides]
    return Inputs.of(torch.randn(shape, generator=generator, dtype=torch.float64).to(weight))


def _choose(layer: nn.Module) -> tuple[_Split, str]:
    """The split with the fewest parameters, and why it is not to be used; empty: use it."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    ways: tuple[Rows, ...] = ("out", "in") if weight.shape[2:].numel() > 1 else ("out",)
    # The matrix that NuclearNorm penalizes comes first, and wins ties.
    best = min((_split(weight, rows) for rows in ways), key=_Split.parameters)
    if best.parameters() < weight.numel():
        return best, ""
    nominal = _split(weight, "out") if best.rows != "out" else best
    if nominal.rank == nominal.full:
        return nominal, ""
    return nominal, f"two layers of rank {nominal.rank} have no fewer parameters"


def _dead_singular_values(layer: nn.Module) -> int:
    """How many singular values of a layer that stays are zero, as far as that can be told."""
    weight = layer._parameters.get("weight")
    if not isinstance(layer, (nn.Linear, *_CONVOLUTIONS)) or type(weight) is not nn.Parameter:
        return 0
    readable = weight.is_floating_point() and weight.layout is torch.strided
    if not readable or weight.is_meta or not weight.numel() or not bool(weight.isfinite().all()):
        return 0
    split = _split(weight, "out")
    return split.full - split.rank


def factorize(
    model: nn.Module,
    example_input: ExampleInput | None = None,
    *,
    latency: bool = True,
    batch_sizes: Sequence[int] = (1, 64),
    seconds: float = 0.5,
) -> nn.Module:
    """A copy of the model with two thin layers in place of each layer of low rank.

        W = U diag(s) V',  W x + b = U sqrt(s) (sqrt(s) V' x) + b

    Linear layers become Linear(in, r) and Linear(r, out), ungrouped convolutions one with the
    kernel and one of size 1, wherever that has fewer parameters. W is the weight flattened to
    (out, in * k), as `NuclearNorm` penalizes it; for kernels larger than 1 also (in, out * k),
    and the cheaper of the two is taken. Singular values count as zero below what rounding leaves,
    see `rounding_level`; so the outputs are the same up to rounding, and that is checked.

    Call it inside `with opt.structured():`, since the iterate has no low rank.

    Args:
        model: any module; it stays as it is.
        example_input: a tensor, a tuple of positional arguments or a dict of keyword arguments.
            With it the whole model is checked and measured, and layers whose weight is read
            behind their back are found.
        latency: whether to measure latency, see `measure`.
        batch_sizes: see `measure`.
        seconds: see `measure`.

    Returns:
        A new model; `report` is its `ShrinkReport`, which lists what stayed and why, and
        `report.plan` is for `factorize_like`.

    Raises:
        RuntimeError: outputs differ by more than rounding explains; the message names the layer.
        ValueError: a setting is out of range, or the model has its own attribute `report`.

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> with torch.no_grad():
        ...     _ = model[0].weight.copy_(torch.ones(64, 1) @ torch.rand(1, 64))
        >>> thin = factorize(model)
        >>> print(thin.report)
        layer  before         after            parameters  dead  removed  stayed because
        0      Linear 64->64  rank 1         4,160 -> 192    63       63
        2      Linear 64->10                          650
        parameters 4.81 k -> 842 (17.5%)
        file size 19.2 kB -> 3.37 kB (17.5%)
        outputs differ by at most ...
    """
    check_kinds(factorize, locals())
    inputs = None if example_input is None else Inputs.of(example_input)
    layers = layers_with_matrices(model)
    reasons = reasons_to_stay(model, layers, _KINDS, inputs)
    exchange: dict[str, LowRank] = {}
    changes: list[LayerChange] = []
    differences: list[float] = []
    for name, layer in layers.items():
        made, change = _factorize_layer(name, layer, reasons[name])
        changes.append(change)
        if made is not None:
            exchange[name] = made
            found = agreement(layer, made, _sample(layer), ["weight"])
            differences.append(require_agreement(name, found))
    thin = with_layers_exchanged(model, exchange)
    costs = size(model), size(thin)
    if inputs is not None and example_input is not None:
        differences = [require_agreements(model, thin, inputs, exchange)]
        costs = compare(
            model, thin, example_input, latency=latency, batch_sizes=batch_sizes, seconds=seconds
        )
    largest = max(differences, default=None)
    entries = {name: {"rank": made.rank, "rows": made.rows} for name, made in exchange.items()}
    plan = {"change": "factorize", "layers": entries}
    return attach_report(thin, ShrinkReport(tuple(changes), *costs, largest, plan))


def factorizable(model: nn.Module, example_input: ExampleInput) -> set[str]:
    """The names of the weights that `factorize` splits once their rank is low enough."""
    layers = layers_with_matrices(model)
    reasons = reasons_to_stay(model, layers, _KINDS, Inputs.of(example_input))
    return {
        f"{name}.weight".removeprefix(".")
        for name, layer in layers.items()
        if not reasons[name] and getattr(layer, "groups", 1) == 1
    }


def _factorize_layer(
    name: str, layer: nn.Module, reason: str
) -> tuple[LowRank | None, LayerChange]:
    """The two layers, if there are to be two, and what to report."""
    before = describe(layer)
    parameters = own_parameters(layer)
    if not reason and isinstance(layer, _CONVOLUTIONS) and layer.groups > 1:
        reason = "it is grouped"
    if reason:
        dead = _dead_singular_values(layer)
        return None, LayerChange(name, before, before, parameters, parameters, dead, 0, reason)
    split, reason = _choose(layer)
    dead = split.full - split.rank
    if not dead or reason:
        return None, LayerChange(name, before, before, parameters, parameters, dead, 0, reason)
    made = _low_rank_layer(layer, split)
    after = f"rank {made.rank}"
    return made, LayerChange(name, before, after, parameters, _entries(made), dead, dead)


def _entries(layer: nn.Module) -> int:
    return sum(param.numel() for param in layer.parameters())


def factorize_like(model: nn.Module, plan: Mapping[str, Any]) -> nn.Module:
    """A copy of a freshly made model with the architecture that `factorize` found.

    Args:
        model: of the same class and settings as the one that was factorized.
        plan: `report.plan` of the factorized model, or what JSON made of it.

    Returns:
        A new model whose thin layers hold fresh random weights, ready for `load_state_dict`.

    Raises:
        ValueError: the plan is not one of `factorize`, or does not fit the model.

    Example:
        >>> plan = {"change": "factorize", "layers": {"0": {"rank": 2, "rows": "out"}}}
        >>> factorize_like(nn.Sequential(nn.Linear(8, 6)), plan)
        Sequential(
          (0): LowRank(
            (0): Linear(in_features=8, out_features=2, bias=False)
            (1): Linear(in_features=2, out_features=6, bias=True)
          )
        )
    """
    check_kinds(factorize_like, locals())
    change = plan.get("change")
    require(change == "factorize", "plan", 'one of factorize ("change": "factorize")', change)
    exchange: dict[str, LowRank] = {}
    for name, entry in entries_of(plan, ("rank", "rows")).items():
        layer = dict(model.named_modules()).get(name)
        if type(layer) not in _KINDS:
            found = type(layer).__name__ if layer is not None else "no layer"
            raise ValueError(f"plan: {name!r} must be a Linear or convolution, got {found}")
        assert layer is not None
        require(is_count(entry["rank"]), f"plan: rank of {name!r}", "an int >= 1", entry["rank"])
        rows = entry["rows"]
        require(rows in ("out", "in"), f"plan: rows of {name!r}", '"out" or "in"', rows)
        exchange[name] = made = LowRank(layer, entry["rank"], rows)
        made.reset_parameters()
    return with_layers_exchanged(model, exchange)
