"""The optimum of multinomial logistic regression with group LASSO, with a certificate."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import dualprox as dp

from ...checks import require
from ..data.split import Split

# Of the bound (I - 11'/K) / 2 on the curvature of the log loss, the first guess.
_FIRST_SHARE = 1 / 16
# Steps of the inner solver, and of Newton's method for the bias.
_INNER = 200
_NEWTON = 30


@dataclass(frozen=True, eq=False)
class LogisticProblem:
    """min F(W, b) = mean_i logloss(W x_i + b, y_i) + psi(W), with psi of the inputs' columns of W.

    Args:
        x: inputs less their mean, (n, features) in float64: that changes b alone.
        mean: of the inputs, (features,).
        y: one-hot labels, (n, classes) in float64.
        penalty: on W of shape (classes, features); groups are its columns.
    """

    x: Tensor
    mean: Tensor
    y: Tensor
    penalty: dp.GroupLasso

    @classmethod
    def of(cls, split: Split, classes: int, penalty: dp.GroupLasso) -> "LogisticProblem":
        """The problem of a network of one Linear layer on the training examples of a data set.

        Raises:
            ValueError: the groups are not the columns, or the penalty has no strength.
        """
        one_input = (penalty.axis, penalty.block, penalty.conv_groups) == (1, 1, 1)
        require(one_input and penalty.strength > 0, "penalty", "> 0, a group an input", penalty)
        x = split.normalize(split.x).double()
        mean = x.mean(0)
        return cls(x.sub_(mean), mean, nn.functional.one_hot(split.y, classes).double(), penalty)

    def scores(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Of the examples, (n, classes); the bias is that for centred inputs."""
        return torch.addmm(bias, self.x, weight.T)

    def loss(self, scores: Tensor) -> float:
        """The mean log loss."""
        return float((scores.logsumexp(1) - (scores * self.y).sum(1)).mean())

    def objective(self, weight: Tensor, bias: Tensor) -> float:
        """F of a network's weight (classes, features) and bias, any dtype."""
        weight = weight.double()
        scores = self.scores(weight, bias.double() + weight @ self.mean)
        return self.loss(scores) + float(self.penalty.value(weight))


@dataclass(frozen=True, eq=False)
class Optimum:
    """A point that is proven to be near the least objective.

    Args:
        weight: (classes, features) in float64, zeros exact.
        bias: (classes,), for inputs that are not centred.
        objective: F of them.
        gap: how much less the least objective may be, at most.
        residual: dist(0, dF) by the weight; by the bias it is zero to rounding.
    """

    weight: Tensor
    bias: Tensor
    objective: float
    gap: float
    residual: float

    @property
    def support(self) -> Tensor:
        """Which inputs are read, bool, (features,)."""
        return (self.weight != 0).any(0)


def certify(problem: LogisticProblem, weight: Tensor) -> Optimum:
    """A weight with the bias that is best for it, and how far from optimal both may be.

    With p the probabilities of the labels y, G = (p - y)' x / n and s = min(1, min_g lambda_g /
    ||G_g||), the q = y + s (p - y) are feasible for the dual problem, whose value is the mean
    entropy of q, so that

        F(W, b) - F* <= F(W, b) + mean_i sum_k q_ik log q_ik.

    Args:
        problem: of n examples.
        weight: (classes, features) in float64.

    Returns:
        The point with its certificate, whatever that says.

    Source: Fenchel duality; Ndiaye et al., Gap safe screening rules for sparsity enforcing
    penalties (2017), section 2, for this dual point.
    """
    x, y, n = problem.x, problem.y, len(problem.x)
    fixed = problem.scores(weight, weight.new_zeros(len(weight)))
    bias = y.mean(0).clamp_min(1 / n).log()
    p = (fixed + bias).softmax(1)
    for _ in range(_NEWTON):
        gradient = (p - y).mean(0)
        if gradient.abs().max() < 1e-15:
            break
        hessian = p.mean(0).diag() - p.T @ p / n
        step = -torch.linalg.pinv(hessian, rtol=1e-12) @ gradient
        before, slope, length = problem.loss(fixed + bias), float(gradient @ step), 1.0
        while problem.loss(fixed + bias + length * step) > before + 0.25 * length * slope + 1e-15:
            length /= 2
        bias = bias + length * step
        p = (fixed + bias).softmax(1)
    slopes = (p - y).T @ x / n
    limit = problem.penalty.group_strength(weight)
    shrunk = float((limit / slopes.norm(dim=0).clamp_min(1e-300)).min().clamp_max(1))
    q = y + shrunk * (p - y)
    objective = problem.loss(fixed + bias) + float(problem.penalty.value(weight))
    return Optimum(
        weight,
        bias - weight @ problem.mean,
        objective,
        objective + float(torch.special.xlogy(q, q).sum(1).mean()),
        float(problem.penalty.residual(weight, slopes)),
    )


def optimum(
    problem: LogisticProblem, tol: float = 1e-7, most: int = 3000, start: Tensor | None = None
) -> Optimum:
    """The optimum of a problem, by accelerated proximal steps in the metric of its inputs.

    A step minimizes, with C = x' x / n and a share s <= 1/2 that grows where it must,

        <G, Z - A> + s/2 tr((Z - A) C (Z - A)') + psi(Z)

    around the extrapolated point A. That the inputs are correlated costs passes over C then, not
    over the examples.

    Args:
        problem: convex, with an unpenalized bias.
        tol: the gap to reach.
        most: steps; each reads the examples twice.
        start: a weight to begin at; zero for none.

    Returns:
        The point, whose gap is at most `tol` unless all steps were taken.

    Source: Beck & Teboulle (2009); restarts as in O'Donoghue & Candes (2015); the bound on the
    curvature is Boehning's (1992).
    """
    classes, n = problem.y.shape[1], len(problem.x)
    metric = problem.x.T @ problem.x / n
    radius = float(torch.linalg.eigvalsh(metric)[-1])
    weight = problem.mean.new_zeros(classes, len(problem.mean)) if start is None else start
    found = certify(problem, weight)
    bias = found.bias + weight @ problem.mean
    ahead, scores, t, share = (weight, bias), problem.scores(weight, bias), 1.0, _FIRST_SHARE
    ahead_scores = scores
    for step in range(1, most + 1):
        if found.gap <= tol:
            break
        errors = (ahead_scores.softmax(1) - problem.y) / n
        slopes = errors.T @ problem.x, errors.sum(0)
        loss = problem.loss(ahead_scores)
        while True:
            new = (
                _model_minimizer(problem, metric, radius, share, weight, ahead[0], slopes[0]),
                ahead[1] - slopes[1] / share,
            )
            new_scores = problem.scores(*new)
            moved = new[0] - ahead[0], new[1] - ahead[1]
            bend = float(((moved[0] @ metric) * moved[0]).sum() + moved[1].square().sum())
            linear = sum(float((g * m).sum()) for g, m in zip(slopes, moved, strict=True))
            bound = loss + linear + share / 2 * bend
            if share >= 0.5 or problem.loss(new_scores) <= bound + 1e-14:
                break
            share *= 2
        went = new[0] - weight, new[1] - bias
        uphill = float(((moved[0] @ metric) * went[0]).sum() + (moved[1] * went[1]).sum()) < 0
        t = 1.0 if uphill else t
        following = (1 + (1 + 4 * t * t) ** 0.5) / 2
        beyond = (t - 1) / following
        ahead = new[0] + beyond * went[0], new[1] + beyond * went[1]
        ahead_scores = new_scores + beyond * (new_scores - scores)
        (weight, bias), scores, t = new, new_scores, following
        if step % 10 == 0 or step == most:
            found = certify(problem, weight)
    return found


def _model_minimizer(
    problem: LogisticProblem,
    metric: Tensor,
    radius: float,
    share: float,
    start: Tensor,
    around: Tensor,
    slopes: Tensor,
) -> Tensor:
    """The minimizer of the model of a step, by accelerated proximal gradient, about."""
    length = 1 / (share * radius)
    linear = slopes - share * around @ metric
    point, ahead, t = start, start, 1.0
    for _ in range(_INNER):
        slope = linear + share * ahead @ metric
        new = problem.penalty.prox(ahead - length * slope, length)
        went = new - point
        t = 1.0 if float(((ahead - new) * went).sum()) > 0 else t
        following = (1 + (1 + 4 * t * t) ** 0.5) / 2
        ahead = new + (t - 1) / following * went
        point, t = new, following
        if float(went.abs().max()) <= 1e-4 * float((point - start).abs().max()):
            break
    return point
