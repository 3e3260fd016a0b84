"""Shrinking while training: dead groups leave the model and the optimizer together."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..coupling import Coupling
from ..joint import Member
from ..kinds import check_kinds
from ..penalties import Coupled, GroupPenalty, Penalty
from ..sharding import require_ordinary
from ..shrinking.compact import Compaction
from ..shrinking.inputs import ExampleInput, Inputs
from ..shrinking.plan import Plan, apply_plan, narrowed
from ..shrinking.select_inputs import selection_of
from .base import ProximalOptimizer

Axes = Mapping[int, Sequence[int]]


def shrink_training(
    model: nn.Module,
    opt: ProximalOptimizer,
    example_input: ExampleInput,
    *,
    round_to: int = 1,
    select_inputs: bool = False,
    narrow_norms: bool = False,
) -> tuple[nn.Module, Plan]:
    """Go on training on a smaller network: what is dead at the structured point is removed.

    The returned network holds the iterate's remaining entries, and `opt`, changed in place, steps
    it, with the remaining entries of its sums: schedules and monitors of `opt` go on as well. The
    best moment is a restart, where the iterate's leftovers in dead groups, which go with them, are
    least and all sums begin anew. The penalty's weights stay those of the larger network, so that
    the problem is the same one with the dead groups, and the weights that only write dead channels,
    held at zero. Only exact zeros are used:
    constant channels are not folded, since batch norm would not see them alike in training.

    Args:
        model: the network that `opt` trains; untouched, but no longer trained.
        opt: with param groups made by ``param_groups(..., coupled=True)``, or such that groups
            weighted by their size have a param group for each weight; changed in place once
            everything has been checked.
        example_input: as in `shrink`.
        round_to: as in `shrink`.
        select_inputs: as in `shrink`; for groups of ``param_groups(..., select_inputs=True)``.
        narrow_norms: as in `shrink`; for groups of ``param_groups(..., narrow_norms=True)``. From
            here on training is that of the network whose norms look at the channels that stay.

    Returns:
        The smaller network, and the plan that leads to it. ``later.after(earlier)`` joins two
        plans, so that the last network maps back to the names and indices of the first.

    Raises:
        ValueError: the model is sharded, `opt` trains a parameter that is not the model's, or one
            penalty cannot keep the weights of the groups of several weights.
        ShrinkError: torch.export cannot trace the model.

    Example:
        >>> import torch, dualprox as dp
        >>> from torch.nn import Linear, ReLU, Sequential
        >>> model = Sequential(Linear(4, 8), ReLU(), Linear(8, 2))
        >>> x = torch.ones(1, 4)
        >>> groups = dp.param_groups(model, dp.GroupLasso(0.1), coupled=True, example_input=x)
        >>> opt = dp.RMDA(groups, lr=1.0)
        >>> model[2].weight.data[:, :6] = 0
        >>> slim, plan = dp.shrink_training(model, opt, x)
        >>> slim[0].out_features, plan.keep["2.weight"]
        (2, {1: (6, 7)})
    """
    check_kinds(shrink_training, locals())
    require_ordinary(model, "shrink_training")
    inputs = Inputs.of(example_input)
    with opt.structured():
        found = Compaction(model, inputs, round_to=round_to, fold=False, narrow_norms=narrow_norms)
        plan = found.plan
        if select_inputs:
            selection = selection_of(apply_plan(model, plan), inputs, round_to)
            plan = replace(plan, select=selection.kept)
    slim = apply_plan(model, plan)
    narrow_(opt, model, slim, plan)
    return slim, plan


def narrow_(opt: ProximalOptimizer, model: nn.Module, slim: nn.Module, plan: Plan) -> None:
    """Let `opt`, which trains `model`, train `slim` instead, which `plan` cut out of it.

    Raises:
        ValueError: see `shrink_training`; nothing has changed then.
    """
    check_kinds(narrow_, locals())
    names = {id(param): name for name, param in model.named_parameters()}
    small = dict(slim.named_parameters())
    for name, param, _ in opt.named_params():
        if id(param) not in names:
            raise ValueError(f"opt must train the model's parameters, got {name}, which is not one")
    parts = {
        name: module.groups
        for name, module in slim.named_modules()
        if isinstance(module, nn.modules.conv._ConvNd)
    }

    def part_count(param: Tensor) -> int:
        return parts.get(names[id(param)].rpartition(".")[0], 1)

    cuts = plan.cuts()

    def axes(param: Tensor) -> Axes:
        return cuts.get(names[id(param)], {})

    penalties: list[Penalty | None] = []
    for group in opt.param_groups:
        params = group["params"]
        penalty = group["penalty"]
        if isinstance(penalty, Coupled):
            penalty = _narrow_coupled(
                penalty, [axes(p) for p in params], [part_count(p) for p in params]
            )
        elif isinstance(penalty, GroupPenalty):
            penalty = _narrow_slices(
                penalty,
                [(names[id(p)], p.shape, small[names[id(p)]].shape) for p in params],
                [part_count(p) for p in params],
            )
        penalties.append(penalty)

    state = {
        small[names[id(param)]]: {
            key: _cut_state(value, param, axes(param)) for key, value in values.items()
        }
        for param, values in opt.state.items()
    }
    for group, penalty in zip(opt.param_groups, penalties, strict=True):
        group["params"] = [small[names[id(param)]] for param in group["params"]]
        group["penalty"] = penalty
    opt.state.clear()
    for param, values in state.items():
        opt.state[param] = values
    opt.forget_plans()


def _cut_state(value: Any, param: Tensor, axes: Axes) -> Any:
    if not isinstance(value, Tensor) or value.shape != param.shape:
        return value
    return narrowed(value, axes)


def _narrow_slices(
    penalty: GroupPenalty,
    tensors: Sequence[tuple[str, torch.Size, torch.Size]],
    parts: Sequence[int],
) -> GroupPenalty:
    """The same groups in smaller tensors, given as (name, shape, smaller shape)."""
    found: dict[GroupPenalty, str] = {}
    for (name, before, after), count in zip(tensors, parts, strict=True):
        conv_groups = count if penalty.conv_groups > 1 else 1
        smaller = penalty.along(penalty.axis, penalty.block, conv_groups)
        assert isinstance(smaller, GroupPenalty)
        smaller.check(after)
        if penalty.size_weighted:
            # Smaller groups of the same weight.
            smaller = smaller.reweighted(_weight(penalty, before) / _weight(smaller, after))
        found[smaller] = name
    if len(found) > 1:
        raise ValueError(
            f"the groups of {' and '.join(found.values())} would need penalties of their own: "
            "make the param groups with coupled=True, which gives each weight its own"
        )
    return next(iter(found))


def _weight(penalty: GroupPenalty, shape: torch.Size) -> float:
    """lambda_g / strength in a tensor of this shape."""
    return float(penalty.group_weight(torch.empty(shape, device="meta")))


def _narrow_coupled(penalty: Coupled, axes: Sequence[Axes], parts: Sequence[int]) -> Coupled:
    """The same groups in what is left of the tensors, with the weights that they have."""
    coupling = penalty.coupling
    left = [_groups_left(member, kept) for member, kept in zip(coupling.members, axes, strict=True)]
    numbers = sorted({group for groups in left for group in groups if group >= 0})
    renumbered = {group: number for number, group in enumerate(numbers)}
    members = []
    for member, groups, kept, count in zip(coupling.members, left, axes, parts, strict=True):
        shape = tuple(
            len(kept[axis]) if axis in kept else length for axis, length in enumerate(member.shape)
        )
        slices = member.slices
        if slices.conv_groups > 1:
            slices = replace(slices, conv_groups=count)
        members.append(Member(shape, slices, [renumbered.get(group, -1) for group in groups]))
    sizes = coupling.counted or coupling.size().tolist()
    counted = tuple(sizes[group] for group in numbers)
    weights = coupling.weights and tuple(coupling.weights[group] for group in numbers)
    return Coupled(penalty.penalty, Coupling(tuple(members), counted, weights))


def _groups_left(member: Member, kept: Axes) -> list[int]:
    """The groups of the slices that are left of a tensor, in their order."""
    slices, shape = member.slices, member.shape
    axis = slices.axis % len(shape)
    along = kept.get(axis, range(shape[axis]))
    if slices.conv_groups == 1:
        return [member.groups[i] for i in along]
    rows = shape[0] // slices.conv_groups
    parts = sorted({row // rows for row in kept.get(0, range(shape[0]))})
    return [member.groups[part * shape[axis] + i] for part in parts for i in along]
