"""RigL: weights that are sparse all along, in places that move to where the gradient is large."""

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..checks import is_count, is_real, is_seed, require
from ..kinds import check_kinds
from ..layouts import layout_of
from ..sharding import is_sharded
from .densities import erk_densities, live_counts
from .frozen import hold, masked
from .support import check_mask
from .unit import require_dense_gradients

DISTRIBUTIONS = ("erk", "uniform")
# What copies and pickles keep.
_OWN = ("optimizer", "delta_t", "t_end", "drop_fraction", "_weights", "_masks", "_counts", "_steps")


def weights_of(model: nn.Module, optimizer: Optimizer) -> dict[str, nn.Parameter]:
    """The weights that `param_groups` would penalize, as far as the optimizer trains them."""
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    others = {
        id(param)
        for module in model.modules()
        for name, param in module.named_parameters(recurse=False)
        if layout_of(module, name) is None
    }
    return {
        name: param
        for name, param in model.named_parameters()
        if id(param) in trained - others and param.requires_grad
    }


class RigL(Optimizer):
    """A torch optimizer made to train sparse weights, whose smallest entries move elsewhere.

    Each weight W of a Linear layer or a convolution (or whatever else `param_groups` penalizes) has
    a mask M of entries that live; all others are exactly zero after every step. Biases, norms and
    embeddings are dense. The t-th call of `step`, t = 1, 2, ..., with gradient G moves the masks,
    and nothing else, if delta_t divides t and t < t_end:

        k = floor(f(t) |M|),   f(t) = drop_fraction / 2 (1 + cos(pi t / t_end))
        M <- M without the k entries of smallest |W|
        M <- M with the k entries outside it of largest |G|.

    Otherwise it is a step of the wrapped optimizer, which is shown the gradient of live entries
    alone; `grad` itself stays dense. New entries begin at zero, and the optimizer's buffers
    are zero where entries are new or gone. An entry that is dropped and grown at once has never
    been away. Nothing is compared between layers, so their scales do not matter.

    Param groups, state and defaults are those of the wrapped optimizer: schedulers drive either.
    Calls while every lr is 0 are not counted. A step costs two passes over the masked weights, a
    move two sorts of each; neither synchronises. Equal entries are taken in their order, so that
    processes with equal gradients keep equal masks.

    Args:
        optimizer: over the model's parameters; any whose `step` needs no closure.
        model: its dead weights are set to zero at once.
        sparsity: in [0, 1), the share of dead entries in all masked weights together.
        t_end: masks stay from this call of `step` on; the paper's is 3/4 of the training.
        delta_t: calls of `step` between moves.
        drop_fraction: in [0, 1], the paper's alpha.
        distribution: of live entries over the weights: "erk", see `erk_densities`, or "uniform".
        dense_first: leave the first of these weights dense, and out of `sparsity`, as the paper
            does with "uniform".
        seed: of the first masks.

    Raises:
        ValueError: a setting is out of its range, the optimizer trains no weight that could be
            masked, or one of them would be without a live entry.
        TypeError: the optimizer's `step` needs a closure, or a weight is sharded.

    Source: Evci et al., Rigging the lottery: making all tickets winners (ICML 2020),
    arXiv:1911.11134, Algorithm 1.

    Example:
        >>> import torch, dualprox as dp
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 20), torch.nn.Linear(20, 2))
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> opt = dp.RigL(sgd, model, 0.75, t_end=300)
        >>> model(torch.ones(1, 8)).sum().backward(); opt.step()
        >>> [int((layer.weight != 0).sum()) for layer in model]
        [28, 22]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        sparsity: float,
        *,
        t_end: int,
        delta_t: int = 100,
        drop_fraction: float = 0.3,
        distribution: Literal["erk", "uniform"] = "erk",
        dense_first: bool = False,
        seed: int = 0,
    ) -> None:
        check_kinds(RigL.__init__, locals())
        ok = is_real(sparsity) and 0 <= sparsity < 1
        require(ok, "sparsity", "in [0, 1)", sparsity)
        require(is_count(t_end), "t_end", "a whole number >= 1", t_end)
        require(is_count(delta_t), "delta_t", "a whole number >= 1", delta_t)
        ok = is_real(drop_fraction) and 0 <= drop_fraction <= 1
        require(ok, "drop_fraction", "in [0, 1]", drop_fraction)
        require(is_seed(seed), "seed", "a whole number from 0 to 2**63 - 1", seed)
        ok = distribution in DISTRIBUTIONS
        require(ok, "distribution", f"one of {DISTRIBUTIONS}", distribution)
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            raise TypeError(
                f"optimizer must step without a closure, {type(optimizer).__name__} needs one"
            )
        weights = dict(list(weights_of(model, optimizer).items())[1 if dense_first else 0 :])
        if not weights:
            raise ValueError(
                "optimizer must train weights that can be masked, "
                f"this {type(optimizer).__name__} trains none of the model's"
            )
        for name, weight in weights.items():
            if is_sharded(weight):
                raise TypeError(f"weights must not be sharded, {name} is")
        self.optimizer, self._weights, self._steps = optimizer, weights, 0
        self.delta_t, self.t_end, self.drop_fraction = delta_t, t_end, drop_fraction
        # As unpickling does it: torch's constructor would add the wrapped optimizer's groups again.
        self.__setstate__({})
        self._begin(1 - sparsity, distribution, seed)

    def _begin(self, density: float, distribution: str, seed: int) -> None:
        """Draw the first masks, and apply them to the weights and the optimizer's buffers."""
        weights = self._weights
        densities = [density] * len(weights)
        if distribution == "erk":
            densities = erk_densities([w.shape for w in weights.values()], density)
        counts = live_counts([w.numel() for w in weights.values()], densities)
        self._counts = dict(zip(weights, counts, strict=True))
        for name, count in self._counts.items():
            if count == 0:
                raise ValueError(
                    f"sparsity must leave every weight a live entry, {1 - density:g} leaves "
                    f"{name} of shape {tuple(weights[name].shape)} none"
                )
        generator = torch.Generator().manual_seed(int(seed))
        self._masks: dict[str, Tensor] = {}
        for name, weight in weights.items():
            live = torch.zeros(weight.numel(), dtype=torch.bool)
            live[torch.randperm(weight.numel(), generator=generator)[: self._counts[name]]] = True
            mask = torch.empty_like(weight, dtype=torch.bool, requires_grad=False)
            self._masks[name] = mask.copy_(live.view(weight.shape))
            self._clear(weight, ~mask)

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The wrapped optimizer's."""
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The wrapped optimizer's."""
        return self.optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The wrapped optimizer's."""
        return self.optimizer.defaults

    @property
    def masks(self) -> dict[str, Tensor]:
        """By name, where a weight lives, as bool tensors like it; new tensors."""
        return {name: mask.clone() for name, mask in self._masks.items()}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimizer; its weights are dense."""
        self.optimizer.add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step, or move the masks; return the closure's loss, if there is one.

        The masks of weights without a gradient stay. Gradients are read only.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moving = [name for name, weight in self._weights.items() if weight.grad is not None]
        require_dense_gradients([self._weights[name] for name in moving], moving, "RigL")
        for name, weight in self._weights.items():
            if self._masks[name].device != weight.device:
                self._masks[name] = self._masks[name].to(weight.device)
        counted = any(float(group["lr"]) != 0 for group in self.param_groups)
        self._steps += counted
        if counted and self._steps % self.delta_t == 0 and self._steps < self.t_end:
            share = self.drop_fraction / 2 * (1 + math.cos(math.pi * self._steps / self.t_end))
            for name in moving:
                self._move(name, int(share * self._counts[name]))
        else:
            self._step_live(moving)
        return loss

    def _step_live(self, moving: list[str]) -> None:
        """A step of the wrapped optimizer, by the gradients of live entries."""
        weights = [self._weights[name] for name in moving]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        live = masked(gradients, [self._masks[name] for name in moving])
        try:
            for weight, gradient in zip(weights, live, strict=True):
                weight.grad = gradient
            self.optimizer.step()
        finally:
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
        hold(list(self._weights.values()), list(self._masks.values()))

    def _move(self, name: str, count: int) -> None:
        """Drop the smallest live entries of a weight, then grow as many by the gradient."""
        weight, mask = self._weights[name], self._masks[name]
        assert weight.grad is not None
        size = weight.abs().masked_fill(~mask, torch.inf).flatten()
        new = mask.flatten().clone()
        new[size.argsort(stable=True)[:count]] = False
        slope = weight.grad.abs().flatten().masked_fill(new, -torch.inf)
        new[slope.argsort(stable=True, descending=True)[:count]] = True
        stays = mask & new.view(mask.shape)
        mask.copy_(new.view(mask.shape))
        self._clear(weight, ~stays)

    @torch.no_grad()
    def _clear(self, weight: Tensor, where: Tensor) -> None:
        """Zero entries of a weight, and of what the optimizer keeps of its shape."""
        weight.masked_fill_(where, 0)
        for value in self.state.get(weight, {}).values():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                value.masked_fill_(where, 0)

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's, with a `mask` for each masked weight and the steps counted.

        Settings of this class are not in it: give the constructor the same again.
        """

        def with_masks(_: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
            del saved  # torch's packing of what the wrapped optimizer may pack otherwise
            own = self.optimizer.state_dict()
            state = {index: dict(value) for index, value in own["state"].items()}
            for index, name in self._places(own["param_groups"]).items():
                state.setdefault(index, {})["mask"] = self._masks[name]
            groups = [{**group, "rigl_step": self._steps} for group in own["param_groups"]]
            return {**own, "state": state, "param_groups": groups}

        # Ahead of the user's own hooks, which see what will be saved.
        handle = self.register_state_dict_post_hook(with_masks, prepend=True)
        try:
            return super().state_dict()
        finally:
            handle.remove()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; masks are copied. The weights are the model's to load.

        Raises:
            ValueError: the masks are not of these weights, or of another shape; nothing changes.
        """

        def take_over(_: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
            self._adopt(saved)
            # For torch, which has nothing left to load.
            return {**self.optimizer.state_dict(), "state": {}}

        handle = self.register_load_state_dict_pre_hook(take_over)  # behind the user's
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()

    def _adopt(self, saved: dict[str, Any]) -> None:
        places = self._places(saved["param_groups"])
        masks = {i: value["mask"] for i, value in saved["state"].items() if "mask" in value}
        if masks.keys() != places.keys() or len(places) != len(self._weights):
            ours = ", ".join(self._weights)
            raise ValueError(
                f"the saved state must have a mask for each of {ours}, and no other; "
                f"it has {len(masks)}, for parameters {', '.join(map(str, masks)) or 'none'}"
            )
        for index, name in places.items():
            check_mask(name, masks[index], self._weights[name].shape)
        states = {
            index: {key: item for key, item in value.items() if key != "mask"}
            for index, value in saved["state"].items()
        }
        groups = [
            {key: value for key, value in group.items() if key != "rigl_step"}
            for group in saved["param_groups"]
        ]
        steps = int(saved["param_groups"][0]["rigl_step"])
        self.optimizer.load_state_dict({**saved, "state": states, "param_groups": groups})
        self._steps = steps
        for index, name in places.items():
            self._masks[name].copy_(masks[index])
            self._counts[name] = int(masks[index].sum())

    def _places(self, groups: list[dict[str, Any]]) -> dict[Any, str]:
        """The masked weights' names by what saved groups call their parameters."""
        names = {weight: name for name, weight in self._weights.items()}
        indices = [index for group in groups for index in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        # Of other numbers the wrapped optimizer will complain.
        pairs = zip(indices, params, strict=False)
        return {index: names[param] for index, param in pairs if param in names}

    def __getstate__(self) -> dict[str, Any]:
        return {key: self.__dict__[key] for key in _OWN}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # At the end of loading torch gives what the wrapped optimizer has already.
        own = {key: value for key, value in state.items() if key in _OWN}
        super().__setstate__(own)
