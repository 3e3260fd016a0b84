"""RigL as a run has it: around SGD, with a share of the run in which the masks move."""

import torch
from torch import nn

import dualprox as dp

from ..optim.rigl import weights_of
from .specs import RiglSpec

# Of the training, in which masks may move.
_MOVING = 0.75


def make_rigl(spec: RiglSpec, model: nn.Module, steps: int, seed: int) -> dp.RigL:
    """SGD that trains sparse weights, whose masks rest from 3/4 of the run's steps on.

    Args:
        spec: settings of both.
        model: its dead weights are set to zero at once.
        steps: of the whole run, >= 1.
        seed: of the first masks.

    Raises:
        ValueError: a setting is out of its range.

    Source: Evci et al., arXiv:1911.11134, section 3 and its experiments on images.

    Example:
        >>> opt = make_rigl(RiglSpec(sparsity=0.75), nn.Linear(8, 4), steps=1000, seed=0)
        >>> opt.t_end, opt.param_groups[0]["weight_decay"]
        (750, 0.0005)
    """
    sgd = torch.optim.SGD(
        model.named_parameters(),
        lr=spec.lr,
        momentum=spec.momentum,
        weight_decay=spec.weight_decay,
        nesterov=spec.nesterov,
    )
    return dp.RigL(
        sgd,
        model,
        spec.sparsity,
        t_end=max(1, round(_MOVING * steps)),
        delta_t=spec.delta_t,
        drop_fraction=spec.drop_fraction,
        distribution=spec.distribution,
        seed=seed,
    )


def masked_sparsity(opt: dp.RigL, model: nn.Module) -> float:
    """Exact zeros over all entries of the weights that could be masked."""
    weights = [weight.detach() for weight in weights_of(model, opt).values()]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / sum(weight.numel() for weight in weights)
