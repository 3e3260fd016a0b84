"""`fit`: from a network and a wish to the network that grants it, in one call."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from torch import nn
from torch.nn.functional import cross_entropy

from ..checks import is_count, is_real, require
from ..grouping import ParamGroups, param_groups
from ..kinds import check_kinds
from ..penalties import L0, GroupL0, GroupPenalty, Penalty
from ..penalties.low_rank import SpectralPenalty
from ..shrinking.inputs import ExampleInput
from ..shrinking.measure import count_macs
from .batches import Batch, Loss, example_of
from .checkpoint import load, reading
from .result import Fit, Watch, choose, has_layer_norms, search_share
from .stages import Fitting, least_widths
from .target import COUNTS, OutOfReachError, TargetSize


def fit(
    model: nn.Module,
    loader: Iterable[Batch],
    epochs: int,
    target: TargetSize,
    *,
    loss: Loss = cross_entropy,
    example_input: ExampleInput | None = None,
    optimizer: Literal["ramda", "rmda"] | None = None,
    penalty: Penalty | ParamGroups | None = None,
    refit: bool = True,
    select_inputs: bool = False,
    lr: float | None = None,
    momentum: float = 0.9,
    warmup: float | None = None,
    search: float | None = None,
    refit_optimizer: Literal["sgd", "adamw"] | None = None,
    refit_lr: float | None = None,
    weight_decay: float | None = None,
    clip: float | None = 2.0,
    round_to: int = 1,
    narrow_norms: bool | None = None,
    latency: bool = True,
    progress: bool = False,
    watch: Watch | None = None,
    checkpoint: str | Path | None = None,
) -> Fit:
    """Train a network into the size that is asked for, and cut it down to that.

    Four stages share the epochs. *Warmup*: plain training, so that there is something to choose
    from. *Search*: RAMDA or RMDA with a group penalty, whose strength is steered until the
    structured point has the target size (`SizeControl`). *Hold*: from the last restart on the
    strength is constant, so that the structure is identified; then the network is cut. *Refit*: the
    slim network alone is trained, without penalty. Warmup and refit use torch's optimizer under a
    cosine schedule. Everything is plain torch, and the parts are public: `param_groups`, `RAMDA`,
    `SizeControl`, `shrink`.

    The penalty is the number of live groups (`GroupL0`) unless another is given: in so few epochs a
    convex penalty strong enough to remove groups also shrinks those that stay to nearly nothing.
    For a target of nonzeros it is the number of entries (`L0`). What a target counts as zeros, of
    groups or entries, is held at zero in the refit.

    Args:
        model: any module that torch.export can trace; trained in place until it is cut. Move it to
            its device before.
        loader: batches (inputs, targets), iterated once per epoch; a tensor is the model's one
            argument, a tuple or list all of them, a mapping its keyword arguments.
        epochs: passes over the loader, all stages together; >= 2.
        target: the size.
        loss: of outputs and targets, the mean over a batch.
        example_input: as in `shrink`; None takes the first two examples of the loader.
        optimizer: of search and hold; "ramda" suits all networks, "rmda" those that SGD trains.
            None is "rmda" for `NuclearNorm`, whose subproblem has no formula in RAMDA's metric,
            and "ramda" otherwise.
        penalty: None is `GroupL0` on coupled groups, or `L0` for nonzeros; another is put on
            coupled groups if it has groups, or comes as what `param_groups` returned. Its strength
            does not matter. With `NuclearNorm` layers become two thin ones, see `factorize`.
        refit: whether there is a refit; without, hold lasts to the end.
        select_inputs: whether linear layers may leave inputs unread that have to stay, as the
            pixels of an image; as in `shrink`.
        lr: of search and hold; None decides.
        momentum: of search and hold.
        warmup: share of the epochs at the start without penalty; None decides.
        search: share of the epochs until the structure is fixed, all but the refit; None decides.
        refit_optimizer: None is "adamw" for "ramda" and for networks with layer norms, else "sgd".
        refit_lr: of refit and warmup. None is, for "sgd", 0.05, with batch norms 0.1; for "adamw"
            in the warmup 3e-3, with layer norms 1.5e-3, with batch norms up to 6e-3 below a tenth
            of the size; in the refit at least 1.5e-3 / sqrt(share of the parameters), with batch
            norms twice that: narrow networks take longer steps.
        weight_decay: of the refit; None decides.
        clip: a gradient longer than this many times its usual norm, a running mean over the steps
            before, is scaled down to that; in all stages. None for no clipping.
        round_to: as in `shrink`.
        narrow_norms: whether the residual stream of a transformer may lose channels, on which its
            layer norms then take their statistics no more; as in `shrink`. None: where the target
            cannot be reached otherwise.
        latency: whether the report measures it.
        progress: whether to print a line per epoch.
        watch: called at the end of every epoch, for validation or logging.
        checkpoint: a file to save to after every epoch. If it is there already, the fit goes on
            from it, to the same bits: call `fit` again as before, with a model made as before. A
            loader that has `state_dict` and `load_state_dict` is saved, too; torch's DataLoader
            needs neither unless it was given a generator. The folder must exist.

    Returns:
        The slim network with its report, the history and what was decided.

    Raises:
        TypeError: the loader ends after one epoch, or the penalty has no groups to cut.
        ValueError: a setting is out of its range, the target cannot be reached, the loader gives
            no batch, the loss is not finite, or the checkpoint is damaged or of another fit.
        ShrinkError: torch.export cannot trace the model.

    Example:
        >>> import torch, dualprox as dp
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
        >>> x, y = torch.randn(256, 8), torch.randint(2, (256,))
        >>> loader = list(zip(x.split(16), y.split(16)))
        >>> result = dp.fit(model, loader, 4, dp.TargetSize(params=0.25), latency=False)
        >>> result.is_reached, result.reached <= 0.25
        (True, True)
    """
    check_kinds(fit, locals())
    require(is_count(epochs) and epochs >= 2, "epochs", "an int >= 2", epochs)
    known = (None, "ramda", "rmda")
    require(optimizer in known, "optimizer", "'ramda', 'rmda' or None", optimizer)
    ok = search is None or (is_real(search) and 0 < search <= 1)
    require(ok, "search", "a share in (0, 1]", search)
    until_cut = search_share(search, refit)
    ok = warmup is None or (is_real(warmup) and 0 <= warmup < until_cut)
    rule = f"in [0, {until_cut:g}), where search ends"
    require(ok, "warmup", rule, warmup)
    kinds = (None, "sgd", "adamw")
    require(refit_optimizer in kinds, "refit_optimizer", "'sgd', 'adamw' or None", refit_optimizer)
    for name, value in (("refit_lr", refit_lr), ("weight_decay", weight_decay)):
        ok = value is None or (is_real(value) and value >= 0)
        require(ok, name, "a number >= 0 or None", value)
    ok = clip is None or (is_real(clip) and clip > 1)
    require(ok, "clip", "a number > 1 or None", clip)
    require(is_count(round_to), "round_to", "an int >= 1", round_to)
    kept = None if checkpoint is None else Path(checkpoint)
    ok = kept is None or (kept.parent.is_dir() and not kept.is_dir())
    require(ok, "checkpoint", "a file in a folder that exists", checkpoint)
    saved = load(kept) if kept is not None and kept.exists() else None
    if isinstance(loader, Iterator):
        raise TypeError(
            f"loader must be one that can be iterated once per epoch, got {type(loader).__name__}, "
            "which ends after once: give a DataLoader, a list, or an object with __iter__"
        )
    steps_per_epoch = _count(loader)
    if example_input is None:
        example_input = example_of(next(iter(loader)), model)
    assert example_input is not None
    looks = 10 if target.measure == "latency_ms" else 50  # at each a network is cut and timed

    def begun(narrow: bool, bound: bool) -> Fitting:
        groups = _groups(model, chosen, example_input, select_inputs, narrow)
        widths = least_widths(model, groups, share) if bound and share is not None else {}
        low_rank = _is_low_rank(groups)
        if low_rank:
            rule = "'rmda' or None with NuclearNorm, which has no formula in RAMDA's metric"
            require(optimizer != "ramda", "optimizer", rule, optimizer)
            require(not select_inputs, "select_inputs", "False with NuclearNorm", select_inputs)
            require(not narrow, "narrow_norms", "False or None with NuclearNorm", narrow)
            require(round_to == 1, "round_to", "1 with NuclearNorm", round_to)
        plan = choose(
            optimizer or ("rmda" if low_rank else "ramda"), model, groups, epochs, steps_per_epoch,
            refit, lr, momentum, warmup, search, refit_optimizer, refit_lr, weight_decay, looks,
            clip, narrow, max(widths.values(), default=0.0), share,
        )  # fmt: skip
        fitting = Fitting(
            model, loader, epochs, steps_per_epoch, target, loss, example_input, groups, plan,
            widths, select_inputs, round_to, latency, progress, watch,
        )  # fmt: skip
        if widths and not fitting.control.allows_target():
            return begun(narrow, False)
        return fitting

    by_entries = target.measure == "nonzeros"
    chosen = penalty if penalty is not None else L0(1.0) if by_entries else GroupL0(1.0)
    share = _share(model, example_input, target)
    bound = not (isinstance(penalty, ParamGroups) or target.at_least or target.at_most)
    try:
        fitting = begun(bool(narrow_norms), bound)
    except OutOfReachError:
        may_narrow = narrow_norms is None and isinstance(chosen, GroupPenalty)
        if not (may_narrow and has_layer_norms(model)):
            raise
        fitting = begun(True, bound)
        fitting.notes.append(
            "the size is out of reach with the whole residual stream: it lost channels, and layer "
            "norms take their statistics over those that stay"
        )
    if kept is not None and saved is not None:
        with reading(kept):
            fitting.load_state_dict(saved)
    return fitting.run(kept)


def _share(model: nn.Module, example_input: ExampleInput, target: TargetSize) -> float | None:
    """The share of parameters or multiplications that is asked for; None of another measure."""
    if target.measure not in COUNTS:
        return None
    if target.measure == "macs":
        dense = 1 if isinstance(target.value, float) else count_macs(model, example_input)
    else:
        dense = sum(param.numel() for param in model.parameters())
    return target.share_of(dense)


def _count(loader: Iterable[Any]) -> int:
    try:
        count = len(loader)  # pyright: ignore[reportArgumentType]
    except TypeError:  # a DataLoader has a length, but not over an iterable data set
        count = sum(1 for _ in loader)
    require(count > 0, "loader", "one that gives batches", f"{count} batches")
    return count


def _groups(
    model: nn.Module,
    chosen: Penalty | ParamGroups,
    example_input: ExampleInput,
    select_inputs: bool,
    narrow_norms: bool,
) -> ParamGroups:
    if isinstance(chosen, ParamGroups):
        return chosen
    if not chosen.own_strength():
        chosen = chosen.with_strength(1.0)
    if not isinstance(chosen, GroupPenalty):
        return _one_by_one(param_groups(model, chosen))
    return param_groups(
        model,
        chosen,
        coupled=True,
        example_input=example_input,
        select_inputs=select_inputs,
        narrow_norms=narrow_norms,
    )


def _one_by_one(groups: ParamGroups) -> ParamGroups:
    """A param group for each penalized weight, so that each has a strength of its own."""
    apart = [
        {**group, "params": [param]}
        for group in groups
        for param in group["params"]
        if group["penalty"] is not None
    ]
    return ParamGroups([*apart, *(g for g in groups if g["penalty"] is None)], groups.rows)


def _is_low_rank(groups: ParamGroups) -> bool:
    """Whether the penalties are on singular values.

    Raises:
        TypeError: some are and some are not.
    """
    penalties = [group["penalty"] for group in groups if group["penalty"] is not None]
    spectral = [isinstance(penalty, SpectralPenalty) for penalty in penalties]
    if any(spectral) and not all(spectral):
        raise TypeError(
            "penalties must all have groups or all act on singular values, got "
            + ", ".join(dict.fromkeys(type(penalty).__name__ for penalty in penalties))
        )
    return any(spectral)
