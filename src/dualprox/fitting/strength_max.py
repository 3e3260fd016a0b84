"""The natural unit of strength: the least that kills every group at the start."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..checks import require, shown
from ..grouping import ParamGroups, param_groups
from ..kinds import check_kinds
from ..penalties import Coupled, Penalty
from .batches import Batch, loss_of, split_of

Loss = Callable[[Any, Any], Tensor]
_MOST_DOUBLINGS = 200
_LEAST = 1e-15  # of the gradient's norm; with n entries, l1 dies no lower than at n^(-1/2) of it


def strength_max(
    model: nn.Module,
    loader: Iterable[Batch],
    penalty: Penalty | ParamGroups,
    *,
    loss: Loss = cross_entropy,
) -> float:
    """The least strength with which every group wants to die, at the gradient of the start.

        min { lambda : -G in lambda * d psi(0) },   G the mean gradient over the loader,

    for group LASSO max_g ||G_g|| / sqrt(size_g). For a convex loss, weights at zero and free ones,
    such as biases, at their optimum beside these, that is the least strength whose solution is
    zero, the upper end of a regularization path; for a network, whose gradient is taken at its
    present weights, it is a unit in which a strength means about the same whatever the network's
    width, loss and data. Frozen weights do not count.

    Args:
        model: in training mode or not; left as it was, gradients, buffers and torch's random
            numbers included. Layers with running statistics use those of the batch if the model
            is training.
        loader: batches (inputs, targets); all are read once.
        penalty: one for all weights, as `param_groups` takes it, or what that returned. Its own
            strength does not matter.
        loss: of outputs and targets, the mean over a batch.

    Returns:
        The strength; in units of the gradient of the loss.

    Raises:
        TypeError: a batch is no pair (inputs, targets).
        ValueError: the loader is empty, the gradient is zero or not finite, all penalized weights
            are frozen, or a penalty has no strength, or holds zero at every strength or at none.

    Source: Friedman, Hastie & Tibshirani, Regularization paths for generalized linear models via
    coordinate descent (2010), section 2.5, for a single group.

    Example:
        >>> import torch, dualprox as dp
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> data = [(torch.tensor([[3.0, 1.0]]), torch.tensor([[2.0]]))]
        >>> dp.strength_max(model, data, dp.L1(1.0), loss=torch.nn.functional.mse_loss)
        12.0
    """
    check_kinds(strength_max, locals())
    groups = penalty if isinstance(penalty, ParamGroups) else param_groups(model, penalty)
    penalized = [
        (group["penalty"], [param for _, param in group["params"]])
        for group in groups
        if group["penalty"] is not None
    ]
    if not any(param.requires_grad for _, params in penalized for param in params):
        raise ValueError("the model must have a penalized weight to train, got all frozen")
    gradients = mean_gradients(model, loader, loss)
    most = 0.0
    for own, params in penalized:
        if isinstance(own, Coupled):
            found = [gradients.get(param, torch.zeros_like(param).double()) for param in params]
            together = [_joined(own, found)]
        else:
            together = [gradients[param] for param in params if param in gradients]
        most = max([most, *(_least(own, gradient) for gradient in together)])
    if most == 0:
        raise ValueError("the gradient is zero: no strength is needed to kill the groups")
    return most


def _loss_of(model: nn.Module, batch: Batch, loss: Loss) -> tuple[Tensor, int]:
    split_of(batch)
    try:
        value, size = loss_of(model, batch, loss)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # foreign code raises whatever it likes
        raise ValueError(
            "model and loss must take what the loader gives, got "
            f"{type(error).__name__} from {type(model).__name__} and {shown(loss)}: "
            f"{str(error).partition(chr(10))[0]}"
        ) from error
    ok = isinstance(value, Tensor) and value.dim() == 0 and value.requires_grad
    require(ok, "loss", "a tensor without axes that depends on the model", value)
    return value, size


def mean_gradients(
    model: nn.Module, loader: Iterable[Batch], loss: Loss
) -> dict[nn.Parameter, Tensor]:
    """The mean gradient over all batches, in float64; weighted by their numbers of examples."""
    params = [param for param in model.parameters() if param.requires_grad]
    sums = {param: torch.zeros_like(param, dtype=torch.float64) for param in params}
    count = 0
    with _undisturbed(model):
        for batch in loader:
            value, size = _loss_of(model, batch, loss)
            found = torch.autograd.grad(value, params, allow_unused=True)
            for param, gradient in zip(params, found, strict=True):
                if gradient is not None:
                    sums[param].add_(gradient, alpha=size)
            count += size
    if not count:
        raise ValueError("loader must give at least one batch, got none")
    for param, total in sums.items():
        if not bool(total.isfinite().all()):
            raise ValueError(f"the gradient of a parameter {tuple(param.shape)} is not finite")
    return {param: total / count for param, total in sums.items()}


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """On exit, buffers and torch's random numbers are what they were."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = {param.device for param in model.parameters()}
    try:
        with torch.random.fork_rng([device for device in devices if device.type == "cuda"]):
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def _joined(penalty: Coupled, gradients: list[Tensor]) -> Tensor:
    return penalty.coupling.joint(gradients).vector()


def _least(penalty: Penalty, gradient: Tensor) -> float:
    """The least strength at which zero is stationary for a gradient, by bisection."""
    if penalty.own_strength() is None:
        raise ValueError(f"penalty must have a strength, got {penalty}")
    zero = torch.zeros_like(gradient)

    def dies(strength: float) -> bool:
        return float(penalty.with_strength(strength).residual(zero, gradient)) == 0

    if not bool(gradient.any()) or dies(0.0):
        return 0.0
    norm = above = float(torch.linalg.vector_norm(gradient))
    for _ in range(_MOST_DOUBLINGS):
        if dies(above):
            break
        above *= 2
    else:
        raise ValueError(f"no strength of {penalty} kills its groups")
    while dies(above / 2):
        above /= 2
        if above < _LEAST * norm:
            raise ValueError(f"zero is stationary at every strength of {penalty}")
    below = above / 2
    while above - below > 4 * torch.finfo(torch.float64).eps * above:
        middle = (below + above) / 2
        below, above = (below, middle) if dies(middle) else (middle, above)
    return above
