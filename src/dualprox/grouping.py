"""From a model to param groups: which weight is penalized along which axis."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from .choosing import Chooser, Selector, kind_of
from .coupling import Coupling
from .joint import Member
from .kinds import check_kinds
from .penalties import Coupled, GroupPenalty, Penalty

if TYPE_CHECKING:  # what follows a network's graph is imported by those who ask for it
    from .shrinking.couple import CoupledSet
    from .shrinking.inputs import ExampleInput, Inputs


@dataclass(frozen=True)
class Row:
    """What `param_groups` decided for one parameter."""

    name: str
    shape: tuple[int, ...]
    penalty: Penalty | None
    note: str


class ParamGroups(list[dict[str, Any]]):
    """Torch param groups; printed, the table of what is penalized how and what stays free.

    Attributes:
        rows: one `Row` per parameter, in the order of the model.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], rows: list[Row]) -> None:
        super().__init__(groups)
        self.rows = rows

    def on(self, model: nn.Module) -> "ParamGroups":
        """The same groups of the parameters that `model` has now under their names.

        `fully_shard` and `parallelize_module` replace parameters, and what follows a network's
        graph, as `coupled=True` does, has to come before them.

        Args:
            model: the one the groups were made for, or another of its architecture.
        """
        groups = [
            {**group, "params": [(name, model.get_parameter(name)) for name, _ in group["params"]]}
            for group in self
        ]
        return ParamGroups(groups, self.rows)

    def __str__(self) -> str:
        cells = [("parameter", "shape", "penalty", "")]
        for row in self.rows:
            shape = "x".join(map(str, row.shape)) or "scalar"
            cells.append((row.name, shape, str(row.penalty or "free"), row.note))
        widths = [max(len(line[i]) for line in cells) for i in range(3)]
        return "\n".join(
            "  ".join(
                [*(cell.ljust(w) for cell, w in zip(line[:3], widths, strict=True)), line[3]]
            ).rstrip()
            for line in cells
        )


def param_groups(
    model: nn.Module,
    penalty: Penalty | Mapping[str, Penalty],
    *,
    by: Literal["input", "output"] = "input",
    include: Iterable[Selector] | None = None,
    exclude: Iterable[Selector] = (),
    axes: Mapping[str, int] | None = None,
    heads: bool = False,
    coupled: bool = False,
    example_input: "ExampleInput | None" = None,
    select_inputs: bool = False,
    narrow_norms: bool = False,
) -> ParamGroups:
    """Penalize the weights of a model's layers; leave biases, norms and embeddings free.

    Each weight gets the penalty with the axis its layer kind calls for: the inputs of Linear,
    Conv1d/2d/3d (grouped and depthwise ones by input channel), ConvTranspose1d/2d/3d, of RNN, LSTM
    and GRU (both matrices), MultiheadAttention, and Hugging Face's Conv1D. Parameters of other
    modules stay free, and the printout says so. A parameter that several modules share comes
    once, and stays free if any of them leaves it free or they disagree on the axis.

    Args:
        model: any module.
        penalty: one for all weights, or patterns with penalties: the first pattern that matches a
            parameter's name decides, weights that match none stay free. Group penalties must be
            given with their default axis, block and conv_groups.
        by: "input" makes a group of the weights that read one input, "output" of those that write
            one output; penalties without groups do not care.
        include: penalize these alone. Patterns as in a shell (``*``, ``?``, ``[..]``) are matched
            against the names of parameters and of modules, module types include subclasses.
        exclude: leave these free.
        axes: pattern of parameter names to group axis, for parameters of modules of your own.
        heads: group the output projection of MultiheadAttention by attention heads.
        coupled: make one group of all slices, in whatever weights, that read the same channel: of
            a residual stream, of a concatenation, of an attention head. Then every dead group is
            a channel that `shrink` removes. Weights whose inputs have to stay are left free.
        example_input: for `coupled`, what the model is run on, as in `shrink`.
        select_inputs: for `coupled`: inputs of nn.Linear that have to stay (pixels, channels that a
            LayerNorm reads) are groups as well, each of its one weight: whenever one is dead,
            ``shrink(..., select_inputs=True)`` lets the layer leave it unread.
        narrow_norms: for `coupled`: channels that layer norms read besides, as those of the
            residual stream of a transformer, have groups as well, of all weights that read them:
            whenever one is dead, ``shrink(..., narrow_norms=True)`` removes the channel.

    Returns:
        Param groups for any dualprox (or torch) optimizer, with parameter names; print them.

    Raises:
        ValueError: a pattern or type matches nothing, nothing at all is penalized, the penalty
            has an axis of its own, or weights that read one channel have different penalties.
        ShrinkError: for `coupled`, torch.export cannot trace the model.

    Example:
        >>> import torch, dualprox as dp
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
        >>> print(dp.param_groups(model, dp.GroupLasso(1e-4)))
        parameter  shape    penalty
        0.weight   8x3x3x3  GroupLasso(strength=0.0001, axis=1, size_weighted=True, ...)
        0.bias     8        free  bias
        1.weight   8        free  BatchNorm2d
        1.bias     8        free  bias
    """
    check_kinds(param_groups, locals())
    if coupled and (by != "input" or axes or heads):
        raise ValueError("by, axes and heads must keep their defaults for coupled groups")
    if coupled != (example_input is not None):
        raise ValueError(
            f"example_input must be given for coupled=True, and only there, got coupled={coupled}"
        )
    for name, wish in (("select_inputs", select_inputs), ("narrow_norms", narrow_norms)):
        if wish and not coupled:
            raise ValueError(f"{name} must be False unless coupled=True, got True")
    chooser = Chooser(model, penalty, by, include, exclude, axes, heads)
    owners: dict[int, list[tuple[str, nn.Module, str]]] = {}
    for prefix, module in model.named_modules():
        for leaf, param in module.named_parameters(recurse=False):
            path = f"{prefix}.{leaf}" if prefix else leaf
            owners.setdefault(id(param), []).append((path, module, leaf))
    rows: list[Row] = []
    gathered: dict[Any, tuple[Penalty | None, list[tuple[str, nn.Parameter]]]] = {}
    joint: dict[int, tuple[Penalty | None, str]] = {}
    if example_input is not None:
        from .shrinking.inputs import Inputs

        joint = _coupled(
            model, chooser, owners, Inputs.of(example_input), select_inputs, narrow_norms
        )
    for name, param in model.named_parameters():
        chosen, note = joint.get(id(param)) or chooser.choose(owners[id(param)])
        # Weights that share groups share a param group, and no others do.
        key = id(chosen) if id(param) in joint and chosen is not None else chosen
        if not (chosen is None or isinstance(chosen, Coupled)):
            chosen.check(param.shape)
        if not param.requires_grad:
            note = f"{note}, frozen".removeprefix(", ")
        rows.append(Row(name, tuple(param.shape), chosen, note))
        gathered.setdefault(key, (chosen, []))[1].append((name, param))
    chooser.require_all_used()
    if set(gathered) <= {None}:
        raise ValueError("nothing in the model is penalized:\n" + str(ParamGroups([], rows)))
    groups = [{"params": params, "penalty": chosen} for chosen, params in gathered.values()]
    return ParamGroups(groups, rows)


def _coupled(
    model: nn.Module,
    chooser: Chooser,
    owners: Mapping[int, list[tuple[str, nn.Module, str]]],
    inputs: "Inputs",
    select_inputs: bool,
    narrow_norms: bool,
) -> dict[int, tuple[Penalty | None, str]]:
    """Penalty and note of every parameter that has or would have a group penalty, by its id."""
    from .shrinking.couple import couplings, with_own_groups
    from .shrinking.select_inputs import why_not_selecting

    wanted: dict[int, Penalty] = {}
    for identity, found in owners.items():
        penalties = {chooser.select(*owner)[0] for owner in found}
        only = next(iter(penalties)) if len(penalties) == 1 else None
        if isinstance(only, GroupPenalty):
            wanted[identity] = only
    if not wanted:
        raise ValueError(f"coupled=True needs a penalty with groups, got {chooser.penalties}")
    left_free = [name for name, param in model.named_parameters() if id(param) not in wanted]
    found = couplings(model, inputs, left_free, narrow_norms)
    # A penalty for groups goes to coupled weights alone.
    joint: dict[int, tuple[Penalty | None, str]] = {}
    for identity in wanted:
        _, module, leaf = owners[identity][0]
        joint[identity] = None, kind_of(module, leaf)
    stay = {name: f"inputs stay: {reason}" for name, reason in found.stays.items()}
    able: set[str] = set()
    if select_inputs:
        names = [name for name in stay if id(model.get_parameter(name)) in wanted]
        for name, refusal in why_not_selecting(model, names, inputs).items():
            if refusal:
                stay[name] += f"; cannot be selected: {refusal}"
            else:
                stay[name] = "inputs stay, and can be selected"
                able.add(name)
    for name, note in stay.items():
        param = model.get_parameter(name)
        own = wanted[id(param)].along(1, 1, 1) if name in able else None
        joint[id(param)] = own, f"its {note}"
    order = {id(param): place for place, param in enumerate(model.parameters())}
    for coupled in (with_own_groups(coupled, able) for coupled in found.sets):
        # Members of a coupling are in the order of the parameters in their param group.
        coupled = replace(
            coupled,
            readers=tuple(
                sorted(coupled.readers, key=lambda r: order[id(model.get_parameter(r.name))])
            ),
        )
        penalty = _joint_penalty(model, coupled, wanted)
        for reader in coupled.readers:
            others = len(coupled.readers) - 1
            note = f"coupled with {others} more" if others else ""
            if reader.name in stay:
                note = f"{note}; other {stay[reader.name]}"
            joint[id(model.get_parameter(reader.name))] = penalty, note.removeprefix("; ")
    return joint


def _joint_penalty(
    model: nn.Module, coupled: "CoupledSet", wanted: Mapping[int, Penalty]
) -> GroupPenalty | Coupled:
    """The penalty of a set of weights; of one weight with equal groups, that of a tensor."""
    params = [model.get_parameter(reader.name) for reader in coupled.readers]
    pairs = list(zip(params, coupled.readers, strict=True))
    penalties = {wanted[id(param)]: reader.name for param, reader in pairs}
    if len(penalties) > 1:
        described = ", ".join(f"{name} {penalty}" for penalty, name in penalties.items())
        raise ValueError(f"weights that read one channel need one penalty, got {described}")
    (penalty,) = penalties
    assert isinstance(penalty, GroupPenalty)
    first = coupled.readers[0]
    block = max(1, len(first.groups) // coupled.count)
    regular = tuple(i // block for i in range(len(first.groups)))
    if len(params) == 1 and first.groups == regular and first.slices.block == 1:
        slices = first.slices
        plain = penalty.along(slices.axis, block, slices.conv_groups)
        assert isinstance(plain, GroupPenalty)
        return plain
    members = [Member(tuple(param.shape), reader.slices, reader.groups) for param, reader in pairs]
    return Coupled(penalty, Coupling(tuple(members)))
