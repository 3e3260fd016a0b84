"""Per-parameter state that survives: its dtypes, its place, its checkpoints."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..checks import require, shown
from .frozen import MARKS, marks_of
from .rounding import REMAINDER, new_remainder

# Objects a checkpoint keeps as text. On load the optimizer's own stay in force.
_LIVE_KEYS = ("penalty", "solver", "impl")


def state_dtype(param: Tensor) -> torch.dtype:
    """Sums are kept in float32 or wider, whatever the parameter's dtype."""
    return torch.promote_types(param.dtype, torch.float32)


def _around_difference(first: str, second: str, most: int = 400) -> tuple[str, str]:
    """Both texts, of long ones what lies around the place where they begin to differ."""
    if max(len(first), len(second)) <= most:
        return first, second
    pairs = enumerate(zip(first, second, strict=False))
    place = next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
    start = max(place - most // 2, 0)
    dots = "..." if start else ""
    return dots + first[start : start + most], dots + second[start : start + most]


def _as_saved(penalty: Any, text: str) -> Any:
    """A penalty with the concavity in its saved text: it belongs to the stage, as lr does."""
    found = re.search(r"\bconcavity=([^,)]+)", text)
    return penalty.with_concavity(float(found[1])) if found and penalty is not None else penalty


def _check_saved(state_dict: Any) -> None:
    """Raise ValueError unless it is built as a state of an optimizer."""
    ok = isinstance(state_dict, Mapping)
    require(ok, "state_dict", "a mapping", state_dict)
    state, groups = state_dict.get("state"), state_dict.get("param_groups")
    ok = isinstance(state, Mapping) and all(isinstance(each, Mapping) for each in state.values())
    require(ok, 'state_dict["state"]', "mappings by the numbers of parameters", state)
    ok = isinstance(groups, list) and all(
        isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups
    )
    require(ok, 'state_dict["param_groups"]', "dicts with a list of parameters each", groups)


def _check_tensor(key: str, name: str, value: Any, shape: torch.Size) -> None:
    """Raise ValueError unless a saved value is a tensor of this shape."""
    if not isinstance(value, Tensor) or value.shape != shape:
        found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else shown(value)
        raise ValueError(
            f"the saved {key} of parameter {name} has {found}, where shape {tuple(shape)} belongs"
        )


class StatefulOptimizer(Optimizer):
    """A torch optimizer with float32-or-wider state that exists from construction on.

    Subclasses name their per-parameter state in `counters` (0-dim float64 tensors on the CPU, or
    with `capturable` on the parameter's device) and
    `buffers` (tensors like the parameter, float32 or wider). Parameters of frozen groups have
    besides them `live` (bool, like the parameter) or `rank` (0-dim float64, on the CPU).
    """

    counters: ClassVar[tuple[str, ...]] = ("step",)
    buffers: ClassVar[tuple[str, ...]] = ()

    def _check_settings(self, group: dict[str, Any]) -> None:
        """Raise for settings of a group, new or loaded, that are out of their range."""

    def group_of(self, param: Tensor) -> dict[str, Any]:
        """The group that holds `param`."""
        for group in self.param_groups:
            if any(other is param for other in group["params"]):
                return group
        raise KeyError("the parameter does not belong to this optimizer")

    def named_params(self) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
        """Each parameter with its name, or its place as "group.index", and its group."""
        for number, group in enumerate(self.param_groups):
            for name, param in zip(self._names(number), group["params"], strict=True):
                yield name, param, group

    def _names(self, number: int) -> list[str]:
        """The names of a group's parameters, or their places as "group.index"."""
        group = self.param_groups[number]
        places = [f"{number}.{index}" for index in range(len(group["params"]))]
        return group.get("param_names", places)

    def _buffers(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The buffers that parameters of `group` need."""
        del group
        return self.buffers

    def new_state(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """Zeros for every counter and buffer of a parameter."""
        place = param.device if group.get("capturable") else "cpu"
        counters = {
            name: torch.zeros((), dtype=torch.float64, device=place) for name in self.counters
        }
        dtype = state_dtype(param)
        buffers = {
            name: torch.zeros_like(param, dtype=dtype, requires_grad=False)
            for name in self._buffers(group)
        }
        return {**counters, **buffers, **new_remainder(param)}

    def ready_state(self, param: Tensor, group: dict[str, Any] | None = None) -> dict[str, Tensor]:
        """The state of `param`, made now if it has none or was made before the model moved.

        Buffers exist from construction on, so that all ranks of a distributed checkpoint have the
        same keys; values that depend on the weights are taken at the first step.
        """
        group = self.group_of(param) if group is None else group
        state = self.state[param]
        if state:
            buffer = state[self._buffers(group)[0]]
            fits = buffer.device == param.device and buffer.shape == param.shape
            has_moved = state["step"].item() > 0
            if fits and (has_moved or buffer.dtype == state_dtype(param)):
                remainder = new_remainder(param)
                if (REMAINDER in state) != bool(remainder):  # the model has changed its dtype
                    state.pop(REMAINDER, None)
                    state.update(remainder)
                return state
            if has_moved:
                raise RuntimeError(
                    f"a parameter of shape {tuple(param.shape)} is on {param.device} but its "
                    f"state, of shape {tuple(buffer.shape)}, on {buffer.device}"
                )
        kept = {key: state[key].to(param.device) for key in MARKS if key == "live" and key in state}
        kept |= {key: state[key] for key in MARKS if key == "rank" and key in state}
        state.clear()
        state.update(self.new_state(param, group) | kept)
        return state

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors, numbers and text, loadable with ``weights_only=True``.

        The penalty and the solver of a group are written as text.
        """

        def as_text(optimizer: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
            del optimizer
            groups = [
                {key: repr(v) if key in _LIVE_KEYS else v for key, v in group.items()}
                for group in saved["param_groups"]
            ]
            # Copies of the per-parameter dicts: a saved state must not grow with the live one.
            state = {key: dict(value) for key, value in saved["state"].items()}
            return {**saved, "state": state, "param_groups": groups}

        # Ahead of the user's own hooks, which see what will be saved.
        handle = self.register_state_dict_post_hook(as_text, prepend=True)
        try:
            return super().state_dict()
        finally:
            handle.remove()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; tensors are copied and keep float32 or wider.

        The optimizer's own penalties and solvers stay, the penalties with the concavity that they
        were saved with. Nothing changes if an error is raised.

        Raises:
            ValueError: it is damaged, a saved penalty is not the one of this optimizer, or a
                parameter's state is incomplete or of another shape.
        """
        _check_saved(state_dict)
        loaded: dict[Tensor, dict[str, Tensor]] = {}

        def take_over(optimizer: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
            del optimizer
            groups = self._adopt_groups(saved["param_groups"])
            loaded.update(self._adopt_state(saved))
            # Torch would cast the sums to the parameter's dtype, so it gets none.
            return {**saved, "state": {}, "param_groups": groups}

        def put_back(optimizer: Optimizer) -> None:
            del optimizer
            self.state.update(loaded)

        # Behind the user's pre-hooks, ahead of the user's post-hooks.
        before = self.register_load_state_dict_pre_hook(take_over)
        after = self.register_load_state_dict_post_hook(put_back, prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def _adopt_groups(self, saved_groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The saved groups with this optimizer's penalties, which must be the saved ones."""
        groups = []
        # Torch itself refuses another number of groups, after this.
        for number, (saved, group) in enumerate(zip(saved_groups, self.param_groups, strict=False)):
            theirs = str(saved.get("penalty", repr(group["penalty"])))
            penalty = _as_saved(group["penalty"], theirs)
            ours = repr(penalty)
            if theirs != ours:
                theirs, ours = _around_difference(theirs, ours)
                raise ValueError(
                    f"group {number} was saved with penalty {theirs}, this optimizer has {ours}"
                )
            live = {key: group[key] for key in (*_LIVE_KEYS, "capturable") if key in group}
            live["penalty"] = penalty
            missing = {key: v for key, v in group.items() if key != "params" and key not in saved}
            groups.append({**missing, "frozen": False, **saved, **live})
            self._check_settings(groups[-1])
        return groups + saved_groups[len(groups) :]

    def _adopt_state(self, saved: dict[str, Any]) -> dict[Tensor, dict[str, Tensor]]:
        """Copies of the saved state on the parameters' devices, in the dtypes of fresh state."""
        ids = [i for group in saved["param_groups"] for i in group["params"]]
        params = [(name, p, group) for name, p, group in self.named_params()]
        frozen = {
            i: group.get("frozen", False)
            for group in saved["param_groups"]
            for i in group["params"]
        }
        adopted: dict[Tensor, dict[str, Tensor]] = {}
        if len(ids) != len(params):
            return adopted  # torch refuses it, after this
        for index, (name, param, group) in zip(ids, params, strict=True):
            state = saved["state"].get(index)
            if not state:
                continue
            marks = marks_of({**group, "frozen": frozen[index]})
            needed = (*self.counters, *self._buffers(group), *marks)
            missing = [key for key in needed if key not in state]
            if missing:
                raise ValueError(
                    f"the saved state of parameter {name} lacks {', '.join(missing)}: "
                    f"it is not a state of {type(self).__name__}"
                )
            adopted[param] = {}
            for key in self.counters:
                _check_tensor(key, name, state[key], torch.Size())
                counter = state[key].detach()
                place = param.device if group.get("capturable") else "cpu"
                adopted[param][key] = counter.to(place, torch.float64, copy=True)
            if "rank" in marks:
                _check_tensor("rank", name, state["rank"], torch.Size())
                rank = state["rank"].detach()
                adopted[param]["rank"] = rank.to("cpu", torch.float64, copy=True)
            # Saved for a wider parameter, or by an older version, a state has no remainder.
            remainder = new_remainder(param)
            state = {**remainder, **state}
            dtypes = dict.fromkeys(self._buffers(group), state_dtype(param))
            dtypes |= {key: torch.bool for key in marks if key == "live"}
            dtypes |= {key: value.dtype for key, value in remainder.items()}
            for key, dtype in dtypes.items():
                _check_tensor(key, name, state[key], param.shape)
                # In memory like the parameter, whatever the layout of the saved one.
                fresh = torch.empty_like(param, dtype=dtype, requires_grad=False)
                adopted[param][key] = fresh.copy_(state[key].detach())
        return adopted
