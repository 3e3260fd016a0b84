"""Gradients that are not finite, found before they move anything."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..kinds import check_kinds
from ..sharding import whole


@torch.no_grad()
def nonfinite_gradients(opt: Optimizer) -> dict[str, str]:
    """The parameters of an optimizer whose gradient has entries that are not finite.

    To be called before ``opt.step()``, which would write them into parameters and sums. It reads
    the gradients once and waits once for the device; only where something is found does it look
    at each gradient by itself. Unscale first what a ``GradScaler`` has scaled.

    Args:
        opt: any torch optimizer, with dense gradients.

    Returns:
        By name ("group.index" for parameters without one), in the optimizer's order: "NaN", or
        "Inf" where there is no NaN. Empty if all is finite.

    Example:
        >>> import torch, dualprox as dp
        >>> model = torch.nn.Linear(2, 1)
        >>> opt = dp.RMDA(model.named_parameters(), lr=0.1)
        >>> (model(torch.ones(1, 2)) / torch.tensor([0.0])).sum().backward()
        >>> dp.nonfinite_gradients(opt)
        {'weight': 'Inf', 'bias': 'Inf'}
    """
    check_kinds(nonfinite_gradients, locals())
    return {} if bool(gradient_norm(opt).isfinite()) else name_nonfinite(opt)


def gradient_norm(opt: Optimizer) -> Tensor:
    """The 2-norm of all gradients together, a scalar on the device of the first one.

    If it is finite, so is every entry; that of large finite entries can be infinite.
    """
    params = (param for group in opt.param_groups for param in group["params"])
    return total_norm([param.grad for param in params if param.grad is not None])


def total_norm(tensors: list[Tensor]) -> Tensor:
    """The 2-norm of all tensors together, float32 or wider; 0 for none."""
    norm = whole(nn.utils.get_total_norm(tensors))
    return norm.to(torch.promote_types(norm.dtype, torch.float32))


def name_nonfinite(opt: Optimizer) -> dict[str, str]:
    """What `nonfinite_gradients` returns, by a look at every entry."""
    found = {}
    for number, group in enumerate(opt.param_groups):
        places = [f"{number}.{index}" for index in range(len(group["params"]))]
        names = group.get("param_names", places)
        for name, param in zip(names, group["params"], strict=True):
            kind = None if param.grad is None else nonfinite_kind(param.grad)
            if kind is not None:
                found[name] = kind
    return found


def nonfinite_kind(tensor: Tensor) -> str | None:
    """The worst that is in a tensor: "NaN", "Inf", or None."""
    if bool(whole(tensor.isnan().any())):
        return "NaN"
    return "Inf" if bool(whole(tensor.isinf().any())) else None
