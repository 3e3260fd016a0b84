"""From a model to param groups: which weight is penalized along which axis."""

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from .checks import shown
from .coupling import Coupling
from .geometry import Slices
from .joint import Member
from .kinds import check_kinds
from .penalties import Coupled, GroupPenalty, Penalty

if TYPE_CHECKING:  # what follows a network's graph is imported by those who ask for it
    from .shrinking.couple import CoupledSet
    from .shrinking.inputs import ExampleInput, Inputs

Selector = str | type[nn.Module]


@dataclass(frozen=True)
class Layout:
    """Where a weight keeps its inputs and outputs.

    Args:
        inputs: the slices that read one input each.
        outputs: the slices that write one output each; None where they are not slices.
    """

    inputs: Slices
    outputs: Slices | None


_MATRIX = Layout(Slices(1), Slices(0))
# An LSTM stacks its gates along axis 0, so a hidden unit is several slices there.
_GATES = Layout(Slices(1), None)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONV_TRANSPOSE = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# Known by name, so that the library they come from need not be installed.
_TRANSPOSED_LINEAR = "transformers.pytorch_utils.Conv1D"


def layout_of(module: nn.Module, name: str) -> Layout | None:
    """The layout of the parameter called `name` in `module`; None for one that stays free."""
    if isinstance(module, nn.Linear) and name == "weight":
        return _MATRIX
    if isinstance(module, _CONV) and name == "weight":
        return Layout(Slices(1, conv_groups=module.groups), Slices(0))
    if isinstance(module, _CONV_TRANSPOSE) and name == "weight":
        return Layout(Slices(0), Slices(1, conv_groups=module.groups))
    if isinstance(module, _RECURRENT) and name.startswith("weight_"):
        return _GATES
    if isinstance(module, nn.MultiheadAttention):
        if name == "in_proj_weight":
            return _GATES  # queries, keys and values are stacked along axis 0
        if name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
            return _MATRIX
    kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(module).__mro__}
    if _TRANSPOSED_LINEAR in kinds and name == "weight":
        return Layout(Slices(0), Slices(1))
    return None


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
    if select_inputs and not coupled:
        raise ValueError("select_inputs must be False unless coupled=True, got True")
    chooser = _Chooser(model, penalty, by, include, exclude, axes, heads)
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

        joint = _coupled(model, chooser, owners, Inputs.of(example_input), select_inputs)
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
    chooser: "_Chooser",
    owners: Mapping[int, list[tuple[str, nn.Module, str]]],
    inputs: "Inputs",
    select_inputs: bool,
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
    found = couplings(model, inputs, left_free)
    # A penalty for groups goes to coupled weights alone.
    joint: dict[int, tuple[Penalty | None, str]] = {}
    for identity in wanted:
        _, module, leaf = owners[identity][0]
        joint[identity] = None, _kind(module, leaf)
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
    for coupled in (with_own_groups(coupled, able) for coupled in found.sets):
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


def _kind(module: nn.Module, leaf: str) -> str:
    """Why a parameter that is no weight stays free."""
    return "bias" if leaf.startswith("bias") else type(module).__name__


class _Chooser:
    """The rules of one call of `param_groups`, and which of its selectors have matched."""

    def __init__(
        self,
        model: nn.Module,
        penalty: Penalty | Mapping[str, Penalty],
        by: str,
        include: Iterable[Selector] | None,
        exclude: Iterable[Selector],
        axes: Mapping[str, int] | None,
        heads: bool,
    ) -> None:
        if by not in ("input", "output"):
            raise ValueError(f"by must be 'input' or 'output', got {by!r}")
        self.by, self.heads, self.axes = by, heads, dict(axes or {})
        self.penalties = {"*": penalty} if isinstance(penalty, Penalty) else dict(penalty)
        for name, each in self.penalties.items():
            if not isinstance(each, Penalty):
                raise TypeError(f"penalty must be a Penalty, got {each!r} for {name!r}")
            if isinstance(each, GroupPenalty) and each.slices != Slices():
                raise ValueError(
                    "param_groups chooses axis, block and conv_groups for each layer (by=, heads=,"
                    f" axes=): the penalty must keep their defaults, got {each}"
                )
        self.include = None if include is None else _selectors("include", include)
        self.exclude = _selectors("exclude", exclude)
        self.head_sizes = {
            id(module.out_proj): module.head_dim
            for module in model.modules()
            if isinstance(module, nn.MultiheadAttention)
        }
        self.used: set[Selector] = set()

    def _matches(self, selector: Selector, path: str, module: nn.Module) -> bool:
        if isinstance(selector, str):
            owner = path.rpartition(".")[0]
            parts = owner.split(".")
            modules = [".".join(parts[: i + 1]) for i in range(len(parts))]
            found = any(fnmatch.fnmatchcase(name, selector) for name in (path, *modules))
        else:
            found = isinstance(module, selector)
        if found:
            self.used.add(selector)
        return found

    def choose(self, owners: list[tuple[str, nn.Module, str]]) -> tuple[Penalty | None, str]:
        """The penalty of the parameter that these modules own, and a note on why."""
        found = [self._choose_for(*owner) for owner in owners]
        tied = "" if len(found) == 1 else "tied: " + " = ".join(path for path, _, _ in owners)
        penalties = {penalty for penalty, _ in found}
        if len(penalties) > 1:
            reasons = dict.fromkeys(note for penalty, note in found if penalty is None)
            return None, f"{tied}; {', '.join(reasons) or 'the layers disagree on the axis'}"
        penalty, note = found[0]
        return penalty, "; ".join(part for part in (tied, note) if part)

    def select(self, path: str, module: nn.Module, leaf: str) -> tuple[Penalty | None, str]:
        """The penalty that the caller's patterns give a parameter, and else why none."""
        del leaf
        # Every selector is tried, so that each learns whether it matches anything.
        excluded = [s for s in self.exclude if self._matches(s, path, module)]
        included = [s for s in self.include or () if self._matches(s, path, module)]
        pattern = next((p for p in self.penalties if self._matches(p, path, module)), None)
        if excluded:
            return None, "excluded"
        if self.include is not None and not included:
            return None, "not included"
        return (None, "no penalty given") if pattern is None else (self.penalties[pattern], "")

    def _choose_for(self, path: str, module: nn.Module, leaf: str) -> tuple[Penalty | None, str]:
        selected, why_not = self.select(path, module, leaf)
        axis = next((self.axes[p] for p in self.axes if self._matches(p, path, module)), None)
        layout = layout_of(module, leaf)
        if axis is not None:
            layout = Layout(Slices(axis), Slices(axis))
        if layout is None:
            return None, _kind(module, leaf)
        if selected is None:
            return None, why_not
        slices = layout.inputs if self.by == "input" else layout.outputs
        if slices is None:
            return None, "its outputs are not slices"
        head_size = self.head_sizes.get(id(module), 1) if self.heads and self.by == "input" else 1
        penalty = selected.along(slices.axis, head_size, slices.conv_groups)
        return penalty, ""

    def require_all_used(self) -> None:
        """Raise ValueError for a selector that matched nothing."""
        by_name = {"include": self.include or (), "exclude": self.exclude, "axes": self.axes}
        if set(self.penalties) != {"*"}:
            by_name["penalty"] = self.penalties
        for name, selectors in by_name.items():
            for selector in selectors:
                if selector not in self.used:
                    raise ValueError(
                        f"{name}: {selector!r} matches no parameter, module name or module type "
                        "of the model"
                    )


def _selectors(name: str, given: Iterable[Selector]) -> tuple[Selector, ...]:
    rule = "a list of patterns and module types"
    if isinstance(given, str | type):
        raise TypeError(f"{name} must be {rule}, got {shown(given)}")
    found = tuple(given)
    for selector in found:
        is_module = isinstance(selector, type) and issubclass(selector, nn.Module)
        if not (is_module or isinstance(selector, str)):
            raise TypeError(f"{name} must be {rule}, got {shown(selector)}")
    return found
