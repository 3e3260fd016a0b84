"""A frozen support that any torch optimizer can be made to keep."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ..kinds import check_kinds
from .base import ProximalOptimizer
from .frozen import can_freeze, has_rank, hold, holds_support, live_entries


class FrozenSupport:
    """The zeros of a structured point, to be kept at zero by a torch optimizer of any kind.

    `dead` has for each name a bool tensor like the parameter, True where it must stay zero.

    Args:
        params: the parameters by name.
        dead: their masks by name, of the parameters' shapes.

    Raises:
        ValueError: a name is without a parameter, or a mask has another shape or is not bool.

    Example:
        >>> import torch, dualprox as dp
        >>> w = torch.nn.Parameter(torch.tensor([1.0, 0.0]))
        >>> opt = dp.RMDA([{"params": [w], "penalty": dp.L1(0.1)}], lr=0.1)
        >>> frozen = dp.FrozenSupport.of(opt)
        >>> sgd = torch.optim.SGD([w], lr=0.1, momentum=0.9)
        >>> handle = frozen.hold(sgd)
        >>> (w - 2).square().sum().backward(); sgd.step(); w.data
        tensor([1.2000, 0.0000])
        >>> handle.remove()
    """

    def __init__(self, params: Mapping[str, Tensor], dead: Mapping[str, Tensor]) -> None:
        check_kinds(FrozenSupport.__init__, locals())
        missing = [name for name in dead if name not in params]
        if missing:
            raise ValueError(f"dead must name parameters, got {', '.join(map(repr, missing))}")
        for name, mask in dead.items():
            check_mask(name, mask, params[name].shape)
        self._params = {name: params[name] for name in dead}
        self._live = {params[name]: ~mask for name, mask in dead.items()}

    @classmethod
    def of(cls, opt: ProximalOptimizer) -> "FrozenSupport":
        """The support of every penalized parameter, before `freeze_structure_()` or after it.

        Parameters without a penalty, with a constraint, or with a penalty on their singular
        values are left out: they have no dead entries.

        Args:
            opt: a dualprox optimizer; read at the structured point.
        """
        names = {param: name for name, param, _ in opt.named_params()}
        dead: dict[str, Tensor] = {}
        for unit in opt.units():
            if holds_support(unit.group):
                live = [opt.state[param]["live"] for param in unit.params]
            elif can_freeze(unit.group["penalty"]) and not has_rank(unit.group["penalty"]):
                live = live_entries(unit, opt.structured_points(unit))
            else:
                continue
            for param, mask in zip(unit.params, live, strict=True):
                dead[names[param]] = ~mask
        return cls({name: param for name, param, _ in opt.named_params()}, dead)

    @property
    def dead(self) -> dict[str, Tensor]:
        """By name, where a parameter must stay zero; new tensors."""
        return {name: ~self._live[param] for name, param in self._params.items()}

    def hold(self, optimizer: Optimizer) -> RemovableHandle:
        """Zero the dead entries now, and again after every step of `optimizer`.

        What the optimizer sums up for dead entries does not matter. A step costs one pass over
        the masked parameters in one foreach operation, and does not synchronise.

        Args:
            optimizer: steps some of the parameters; those that it does not step are left alone.

        Returns:
            A handle whose `remove()` ends it.

        Raises:
            ValueError: the optimizer steps none of the parameters.
        """
        stepped = {param for group in optimizer.param_groups for param in group["params"]}
        held = [param for param in self._live if param in stepped]
        if not held:
            raise ValueError(
                f"optimizer must step one of {', '.join(self._params) or 'no parameters'}, "
                f"this {type(optimizer).__name__} steps none"
            )
        live = [self._live[param] for param in held]

        @torch.no_grad()
        def zero(*_: object) -> None:
            hold(held, live)

        zero()
        return optimizer.register_step_post_hook(zero)

    @torch.no_grad()
    def project_gradients_(self) -> None:
        """Zero the gradients of dead entries, in place: what is left lies along the support.

        For whoever clips or measures gradients. An optimizer that begins then and moves no entry of
        value and gradient zero, as torch's SGD, Adam and AdamW do not, needs no `hold` besides. One
        foreach operation, without synchronising.
        """
        found = [(w.grad, live) for w, live in self._live.items() if w.grad is not None]
        hold([grad for grad, _ in found], [live for _, live in found])

    def state_dict(self) -> dict[str, Tensor]:
        """The masks, `dead`, by name."""
        return self.dead

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Take over masks, in place: optimizers that are held keep to the new ones from now on.

        Raises:
            ValueError: other names than these, or a mask has another shape or is not bool.
        """
        if state_dict.keys() != self._params.keys():
            raise ValueError(
                f"masks must be those of {', '.join(self._params)}, got {', '.join(state_dict)}"
            )
        for name, mask in state_dict.items():
            check_mask(name, mask, self._params[name].shape)
        for name, mask in state_dict.items():
            self._live[self._params[name]].copy_(~mask)


def check_mask(name: str, mask: Tensor, shape: torch.Size) -> None:
    """Raise ValueError unless a mask is bool and of its parameter's shape."""
    if mask.dtype != torch.bool or mask.shape != shape:
        raise ValueError(
            f"the mask of {name} must be bool of shape {tuple(shape)}, "
            f"got {mask.dtype} of shape {tuple(mask.shape)}"
        )
