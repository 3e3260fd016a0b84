"""A run as a frozen, typed value: what recipes return, `--set` changes and config.json holds."""

import dataclasses
import difflib
import re
import types
import typing
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import dualprox as dp

from ..checks import is_count, is_real, is_seed, require, shown
from ..kinds import check_kinds
from .specs import (
    AdamSpec,
    AdamwSpec,
    MlpSpec,
    ModelSpec,
    OptimizerSpec,
    PenaltySpec,
    RamdaSpec,
    RiglSpec,
    RmdaSpec,
    SgdSpec,
    SolverSpec,
)

DataName = Literal[
    "digits",
    "mnist",
    "fashion_mnist",
    "cifar10",
    "cifar10_first4000",
    "cifar100",
    "imagenet",
    "fsdd",
    "wikitext-2",
    "wikitext-103",
    "ljspeech",
]
Init = Literal["torch", "origin"]
Normalization = Literal["own", "published"]
Schedule = Literal["multistep", "cosine", "linear"]
Precision = Literal["float32", "bfloat16", "float16"]
Nonfinite = Literal["stop", "skip"]
_KINDS = {
    kind.__name__: kind
    for union in (OptimizerSpec, SolverSpec, PenaltySpec, ModelSpec)
    for kind in typing.get_args(union)
}


@dataclass(frozen=True)
class Run:
    """One training run, resolved: together with the code it determines every bit of the result.

    Args:
        recipe: the name of the recipe it came from.
        data: which data set.
        data_dir: the folder that holds the files of data sets that come in files.
        augment: whether training examples are changed at random, as is usual for the data set.
        normalization: how pixels become inputs: as the data set's own page says, or by the
            constants of published experiments.
        model: which network with which settings.
        init: where it starts: where torch's layers do, or with every parameter zero.
        optimizer: which optimizer with which settings.
        penalty: what the weights are penalized with; None trains a dense network.
        coupled: whether all slices that read one channel are one group, so that it can go.
        shrink_at_restart: whether dead groups leave the network at every milestone.
        epochs: passes over the training set, or parts of `epoch_steps` steps.
        epoch_steps: optimizer steps in an epoch; None for a pass over the training set.
        batch_size: examples per step.
        milestones: epochs at which a stage begins: lr times gamma, and a restart.
        gamma: the factor on lr at a milestone.
        schedule: how lr falls: by stages, or in every step along half a cosine or a line to 0.
        warmup: steps in which lr rises to its value before it falls.
        clip: the largest norm of the gradient of all parameters together; None for any.
        precision: of the layers in training, the others and all sums staying in float32; float16
            scales the loss, and skips steps whose gradient overflows.
        label_smoothing: the share of a label that goes to all classes alike.
        nonfinite: what to do before a step whose loss or gradient is NaN or infinite: stop, or skip
            the step, thirty in a row at most.
        refit: whether the last stage holds the structure and drops the penalty.
        seed: of the initial weights and of the order of the data.
        threads: torch threads; results are bit-identical only at the same number.
        device: cpu, cuda, or cuda:N; results are bit-identical only on the same kind.
        checkpoint_minutes: within an epoch, save when the last checkpoint is so old; 0 saves after
            every step. Every epoch ends with one.
        keep_checkpoints: how many stay; when the last one is damaged the one before is used.
        baseline: the recipe of the dense network trained beside it, or None.
    """

    recipe: str
    optimizer: OptimizerSpec
    penalty: PenaltySpec | None = None
    data: DataName = "digits"
    data_dir: str | None = None
    augment: bool = False
    normalization: Normalization = "own"
    model: ModelSpec = field(default=MlpSpec())
    init: Init = "torch"
    coupled: bool = False
    shrink_at_restart: bool = False
    epochs: int = 30
    epoch_steps: int | None = None
    batch_size: int = 32
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    schedule: Schedule = "multistep"
    warmup: int = 0
    clip: float | None = None
    precision: Precision = "float32"
    label_smoothing: float = 0.0
    nonfinite: Nonfinite = "stop"
    refit: bool = False
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    checkpoint_minutes: float = 10.0
    keep_checkpoints: int = 2
    baseline: str | None = field(default=None)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "threads", "keep_checkpoints"):
            value = getattr(self, name)
            require(is_count(value), name, "an int >= 1", value)
            most = _MOST_THREADS if name == "threads" else _MOST
            require(value <= most, name, f"at most {most}", value)
        for name, kind in _CHOICES.items():
            names, value = typing.get_args(kind), getattr(self, name)
            require(value in names, name, f"one of {', '.join(names)}", value)
        self._check_steps()
        ok = is_real(self.checkpoint_minutes) and self.checkpoint_minutes >= 0
        require(ok, "checkpoint_minutes", "a number >= 0", self.checkpoint_minutes)
        one_layer = isinstance(self.model, MlpSpec) and not self.model.hidden
        rule = "torch for a network of several layers: at the origin it has no gradient"
        require(one_layer or self.init == "torch", "init", rule, self.init)
        ok = isinstance(self.seed, int) and self.seed >= 0
        require(ok, "seed", "an int >= 0", self.seed)
        require(is_seed(self.seed), "seed", "below 2**63", self.seed)
        steps = [0, *self.milestones, self.epochs]
        rising = all(a < b for a, b in pairwise(steps))
        rule = f"increasing ints between 1 and epochs - 1 = {self.epochs - 1}"
        require(rising, "milestones", rule, self.milestones)
        require(is_real(self.gamma) and self.gamma > 0, "gamma", "a number > 0", self.gamma)
        unpenalized = isinstance(self.optimizer, AdamwSpec | AdamSpec | SgdSpec | RiglSpec)
        require(
            not (unpenalized and self.penalty is not None),
            "penalty",
            "None for AdamW, Adam, SGD and RigL, which would ignore it",
            self.penalty,
        )
        can_refit = self.penalty is not None and bool(self.milestones)
        rule = "false without a penalty and a milestone"
        require(can_refit or not self.refit, "refit", rule, self.refit)
        grouped = isinstance(self.penalty, dp.GroupPenalty)
        require(grouped or not self.coupled, "coupled", "false without groups", self.coupled)
        rule = "false unless coupled: weights that shrink alone would change their penalty"
        shrinks = self.shrink_at_restart
        require(self.coupled or not shrinks, "shrink_at_restart", rule, shrinks)

    def _check_steps(self) -> None:
        """The rules of what happens in a single step."""
        known = re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", self.device) is not None
        require(known, "device", "cpu, cuda or cuda:N", self.device)
        ok = self.epoch_steps is None or is_count(self.epoch_steps)
        require(ok, "epoch_steps", "None or an int >= 1", self.epoch_steps)
        require((self.epoch_steps or 1) <= _MOST, "epoch_steps", f"<= {_MOST}", self.epoch_steps)
        ok = self.clip is None or (is_real(self.clip) and self.clip > 0)
        require(ok, "clip", "None or a number > 0", self.clip)
        ok = is_real(self.label_smoothing) and 0 <= self.label_smoothing < 1
        require(ok, "label_smoothing", "in [0, 1)", self.label_smoothing)
        staged = self.schedule == "multistep"
        dual = isinstance(self.optimizer, RamdaSpec | RmdaSpec)
        rule = "multistep for RAMDA and RMDA, whose stages restart"
        require(staged or not dual, "schedule", rule, self.schedule)
        rule = f"none for schedule={self.schedule}"
        require(staged or not self.milestones, "milestones", rule, self.milestones)
        ok = self.warmup == 0 or (is_count(self.warmup) and not staged)
        require(ok, "warmup", "an int >= 0, 0 for schedule=multistep", self.warmup)


# More threads than that torch cannot start, and of larger numbers nothing can be made.
_MOST_THREADS, _MOST = 1024, 2**31 - 1
_MOST_LETTERS = 200  # of a name in a message
_CHOICES: dict[str, Any] = {
    "data": DataName,
    "init": Init,
    "normalization": Normalization,
    "schedule": Schedule,
    "precision": Precision,
    "nonfinite": Nonfinite,
}


def to_json(run: Run) -> dict[str, Any]:
    """The run as JSON values; `from_json` makes it again."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
            return fields if isinstance(value, Run) else {"kind": type(value).__name__, **fields}
        return list(value) if isinstance(value, tuple) else value

    return plain(run)


def from_json(saved: dict[str, Any]) -> Run:
    """The run that `to_json` wrote; ValueError if it cannot be one."""

    def built(value: Any) -> Any:
        if isinstance(value, dict):
            fields = {name: built(v) for name, v in value.items() if name != "kind"}
            return checked(_KINDS[value["kind"]], fields)
        return tuple(value) if isinstance(value, list) else value

    def checked(kind: Any, fields: dict[str, Any]) -> Any:
        check_kinds(kind, fields)
        return kind(**fields)

    try:
        return checked(Run, {name: built(value) for name, value in saved.items()})
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"not a run of this version of dualprox: {error}") from None


def differences(run: Run, other: Run) -> dict[str, tuple[Any, Any]]:
    """The fields, dotted, in which two runs differ, each with both values as JSON has them.

    Of values of two kinds, such as two solvers, the kinds are named.

    Example:
        >>> from .specs import RmdaSpec
        >>> run = Run("x", RmdaSpec(), epochs=3)
        >>> differences(run, Run("x", RmdaSpec(lr=1.0), epochs=4))
        {'optimizer.lr': (0.1, 1.0), 'epochs': (3, 4)}
    """

    def short(value: Any) -> Any:
        return value["kind"] if isinstance(value, dict) else value

    def compare(ours: Any, theirs: Any, name: str) -> dict[str, tuple[Any, Any]]:
        nested = isinstance(ours, dict) and isinstance(theirs, dict)
        if not nested or ours.get("kind") != theirs.get("kind"):
            return {} if ours == theirs else {name: (short(ours), short(theirs))}
        parts = [compare(ours[k], theirs[k], f"{name}.{k}" if name else k) for k in ours]
        return {key: pair for part in parts for key, pair in part.items()}

    return compare(to_json(run), to_json(other), "")


def scaled_milestones(run: Run, epochs: int) -> tuple[int, ...]:
    """The run's milestones where they stand relative to its epochs, in other epochs.

    Example:
        >>> from .specs import RmdaSpec
        >>> scaled_milestones(Run("x", RmdaSpec(), epochs=100, milestones=(20, 40, 80)), 10)
        (2, 4, 8)
    """
    scaled = {round(milestone * epochs / run.epochs) for milestone in run.milestones}
    return tuple(sorted(milestone for milestone in scaled if 0 < milestone < epochs))


def with_settings(run: Run, assignments: list[str]) -> Run:
    """The run with fields replaced by ``name=value`` texts; dots reach into nested settings.

    Raises:
        ValueError: no such field (the nearest name is offered), a value of the wrong type, or one
            that breaks a rule of the run.
    """
    changes: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set takes field=value, got {shown(assignment)}")
        name, _, rest = path.partition(".")
        old = changes.get(name, getattr(run, name, None))
        changes[name] = _changed(run, name, old, rest, text, path)
    # All at once, since the rules of a run join its fields.
    return dataclasses.replace(run, **changes)


def field_names(spec: Any, prefix: str = "") -> list[str]:
    """All names that `with_settings` knows in `spec`, dotted."""
    names = []
    for each in dataclasses.fields(spec):
        value = getattr(spec, each.name)
        nested = dataclasses.is_dataclass(value)
        names += field_names(value, f"{prefix}{each.name}.") if nested else [prefix + each.name]
    return names


def _changed(spec: Any, name: str, value: Any, rest: str, text: str, path: str) -> Any:
    """The new value of field `name` of `spec`, now `value`: `text`, or itself changed in `rest`."""
    if name not in {each.name for each in dataclasses.fields(spec)} or name == "recipe":
        prefix = path.removesuffix(f"{name}.{rest}" if rest else name)
        known = [known for known in field_names(spec, prefix) if known != "recipe"]
        nearest = difflib.get_close_matches(path, known, n=1, cutoff=0.4)
        hint = f"did you mean {nearest[0]}?" if nearest else f"known: {', '.join(known)}"
        raise ValueError(f"{path[:_MOST_LETTERS]} is not a field of the run; {hint}")
    if rest:
        if not dataclasses.is_dataclass(value):
            raise ValueError(f"{path[:_MOST_LETTERS]}: {name} has no fields, it is {value!r}")
        inner, _, innermost = rest.partition(".")
        old = getattr(value, inner, None)
        new = _changed(value, inner, old, innermost, text, path)
        return dataclasses.replace(value, **{inner: new})  # pyright: ignore[reportArgumentType]
    kind = typing.get_type_hints(type(spec))[name]
    try:
        return _parsed(kind, text)
    except ValueError:
        raise ValueError(f"{path} must be {_described(kind)}, got {shown(text)}") from None


def _parsed(kind: Any, text: str) -> Any:
    """`text` as a value of type `kind`; ValueError if it is none."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if type(None) in args and text.lower() in ("none", "null"):
            return None
        kinds = [arg for arg in args if arg is not type(None)]
        if any(dataclasses.is_dataclass(arg) for arg in kinds):
            raise ValueError(text)
        return _parsed(kinds[0], text)
    if origin is Literal:
        if text not in args:
            raise ValueError(text)
        return text
    if origin is tuple:
        parts = [part for part in text.strip("()[]").split(",") if part.strip()]
        if args[-1] is not Ellipsis and len(parts) != len(args):
            raise ValueError(text)
        return tuple(_parsed(args[0], part.strip()) for part in parts)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    return kind(text)


def _described(kind: Any) -> str:
    """The type as a person would say it."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        plain = [arg for arg in args if not dataclasses.is_dataclass(arg)]
        described = " or ".join(_described(arg) for arg in plain)
        return (
            f"{described}; its fields are set one by one" if len(plain) < len(args) else described
        )
    if origin is Literal:
        return "one of " + ", ".join(args)
    if origin is tuple:
        return "a comma-separated list of " + _described(args[0])
    names = {int: "a whole number", float: "a number", bool: "true or false", type(None): "none"}
    return names[kind] if kind in names else "text"
