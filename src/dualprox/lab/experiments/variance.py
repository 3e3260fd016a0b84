"""Does the error of the gradient estimate vanish along a run?"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor, nn

from ...checks import require
from ...optim import ProximalOptimizer
from ..data.split import Split


@dataclass(frozen=True)
class GradientError:
    """How far two estimates of the full gradient were off at a step.

    Args:
        step: t, from 1.
        estimate: ||e_t - grad f(W^{t-1})||^2 with the method's own estimate e_t, V_t / alpha_t for
            RMDA and RAMDA.
        minibatch: ||g_t - grad f(W^{t-1})||^2 with the gradient g_t of the step's batch.
        gradient: ||grad f(W^{t-1})||^2, to compare them with.
    """

    step: int
    estimate: float
    minibatch: float
    gradient: float


def gradient_errors(
    model: nn.Module,
    opt: ProximalOptimizer,
    split: Split,
    steps: Sequence[int],
    batch_size: int = 64,
    seed: int = 0,
) -> list[GradientError]:
    """Train on the cross entropy, and measure the errors of gradient estimates on the way.

    f is the mean loss over the training examples. Lemma 1 says of RMDA that the first error tends
    to 0 within a stage; that of a batch's gradient stays. lr is left as it is.

    Args:
        model: trained in place; what it makes of an example must not depend on the others or on
            chance, so it has no batch norm and no dropout.
        opt: over the model's parameters; may have taken steps.
        split: the data.
        steps: at which to measure, ascending, from 1; the last ends the run. Each costs a pass
            over the training examples.
        batch_size: examples in a batch.
        seed: of the order of the examples.

    Returns:
        One record for each of `steps`, over all parameters together.

    Raises:
        ValueError: `steps` are not ascending, or `opt` does not step all parameters.

    Source: Huang & Lee, arXiv:2112.02612, Lemma 1.

    Example:
        >>> import dualprox as dp
        >>> from dualprox.lab.data.planted import planted_logistic
        >>> made = planted_logistic()
        >>> model = made.start()
        >>> opt = dp.RMDA(dp.param_groups(model, dp.GroupLasso(0.01)), lr=0.3)
        >>> first, last = gradient_errors(model, opt, made.split, [1, 300])
        >>> abs(first.estimate - first.minibatch) < 1e-6, last.estimate < 0.1 * last.minibatch
        (True, True)
    """
    ascending = all(a < b for a, b in zip([0, *steps], steps, strict=False))
    require(bool(steps) and ascending, "steps", "ascending whole numbers >= 1", steps)
    params = [p for p in model.parameters() if p.requires_grad]
    records: list[GradientError] = []
    batches = (batch for epoch in count() for batch in split.batches(batch_size, seed, epoch))
    for step, (inputs, labels) in enumerate(batches, start=1):
        opt.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        full = full_gradient(model, split) if step in steps else None
        opt.step()
        if full is not None:
            records.append(_errors(step, opt, params, full))
        if step == steps[-1]:
            break
    return records


def full_gradient(model: nn.Module, split: Split, chunk: int = 1000) -> list[Tensor]:
    """The gradient of the mean cross entropy over all training examples, a tensor a parameter.

    Args:
        model: at whose weights; its `grad` is left alone.
        split: the data.
        chunk: examples at a time.

    Returns:
        New tensors in float64, in the order of the parameters that require a gradient.
    """
    params = [p for p in model.parameters() if p.requires_grad]
    total = [torch.zeros_like(p, dtype=torch.float64, requires_grad=False) for p in params]
    for kept, labels in zip(split.x.split(chunk), split.y.split(chunk), strict=True):
        scores = model(split.normalize(kept))
        loss = nn.functional.cross_entropy(scores, labels, reduction="sum")
        for sum_, part in zip(total, torch.autograd.grad(loss, params), strict=True):
            sum_.add_(part, alpha=1 / len(split.x))
    return total


@torch.no_grad()
def _errors(
    step: int, opt: ProximalOptimizer, params: Sequence[Tensor], full: Sequence[Tensor]
) -> GradientError:
    """The record of a step that has just been taken, by whose gradients `grad` still is."""
    estimate = minibatch = gradient = 0.0
    for param, exact in zip(params, full, strict=True):
        own, batch = opt.gradient_estimate(param), param.grad
        if own is None or batch is None:
            raise ValueError(
                "opt must step all parameters that require a gradient, "
                f"it did not step one of shape {tuple(param.shape)}"
            )
        estimate += float((own - exact).square().sum())
        minibatch += float((batch - exact).square().sum())
        gradient += float(exact.square().sum())
    return GradientError(step, estimate, minibatch, gradient)
