"""Do stochastic methods end with the support of the optimum, exactly, and stay there?

Convex problems on real data, whose optimum is computed to 1e-10 by a deterministic method:
multinomial logistic regression on scikit-learn's handwritten digits, with group LASSO on the
pixels and with l1 on the weights. Run it from the repository:

    python benchmarks/identification.py

It writes docs/identification.json and the picture in the README, docs/identification.png.
The theory: arXiv:2112.02612, Theorem 3, and arXiv:2403.14398, Theorem 3.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import dualprox as dp
from dualprox.files import write_atomically, write_json
from dualprox.lab.data import Split

Array = NDArray[np.float64]
BATCH_SIZE = 40
# Two stages, the second with a tenth of the learning rate, for all alike.
MILESTONES, GAMMA = (100,), 0.1
METHODS: dict[str, Callable[[list[dict]], dp.ProximalOptimizer]] = {
    "RMDA": lambda groups: dp.RMDA(groups, lr=0.3),
    "RAMDA": lambda groups: dp.RAMDA(groups, lr=3e-3),
    "ProxSGD": lambda groups: dp.ProxSGD(groups, lr=0.1),
}


@dataclass(frozen=True)
class Problem:
    """min_W,b mean_i logloss(W x_i + b, y_i) + psi(W), W of shape (10, 64)."""

    name: str
    penalty: dp.GroupLasso | dp.L1


# Strengths at which the optimum is clearly nondegenerate, the theorems' condition: no dead group
# is within 1 % of living, no live one within rounding of dying.
PROBLEMS = (
    Problem("group LASSO on pixels", dp.GroupLasso(0.018, axis=1)),
    Problem("l1 on weights", dp.L1(0.034)),
)


def digits() -> tuple[Array, NDArray[np.int64]]:
    """All 1797 images, pixels in [0, 1] and centred, and their labels."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return (x - x.mean(axis=0)) / 16.0, y


@dataclass(frozen=True)
class Optimum:
    """The solution, its support, and how sure both are."""

    weight: Array
    support: NDArray[np.bool_]
    residual: float  # the largest violation of the optimality conditions
    margin: float  # how far below its threshold the strongest dead group's gradient is
    weakest: float  # the smallest norm of a live group


def optimum(problem: Problem, tol: float = 1e-10, most: int = 20_000) -> Optimum:
    """Accelerated proximal gradient with restarts in float64, without a line of dualprox."""
    x, labels = digits()
    y = np.eye(10)[labels]
    strength = problem.penalty.strength
    grouped = isinstance(problem.penalty, dp.GroupLasso)
    threshold = strength * np.sqrt(10.0) if grouped else strength
    smoothness = 0.5 * (np.linalg.norm(x, 2) ** 2 / len(x) + 1)

    def gradient(w: Array, b: Array) -> tuple[Array, Array]:
        scores = x @ w.T + b
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        return (p - y).T @ x / len(x), (p - y).mean(axis=0)

    def norms(w: Array) -> Array:
        return np.linalg.norm(w, axis=0, keepdims=True) if grouped else np.abs(w)

    def residual(w: Array, g: Array, bias: Array) -> float:
        n = norms(w)
        live = np.broadcast_to(n > 0, w.shape)
        on = np.abs(g + threshold * w / np.where(n > 0, n, 1))[live].max(initial=0.0)
        off = (norms(g) - threshold)[n == 0].max(initial=0.0)
        return float(max(on, off, np.abs(bias).max()))

    w, b = np.zeros((10, 64)), np.zeros(10)
    ahead_w, ahead_b, t = w, b, 1.0
    for iteration in range(most):
        g, g_b = gradient(ahead_w, ahead_b)
        new_w, new_b = ahead_w - g / smoothness, ahead_b - g_b / smoothness
        shrunk = 1 - threshold / smoothness / np.maximum(norms(new_w), 1e-300)
        new_w = new_w * np.maximum(shrunk, 0)
        uphill = ((ahead_w - new_w) * (new_w - w)).sum() + ((ahead_b - new_b) * (new_b - b)).sum()
        t = 1.0 if uphill > 0 else t
        t_next = (1 + np.sqrt(1 + 4 * t * t)) / 2
        ahead_w = new_w + (t - 1) / t_next * (new_w - w)
        ahead_b = new_b + (t - 1) / t_next * (new_b - b)
        w, b, t = new_w, new_b, t_next
        if iteration % 50 == 0:
            g, g_b = gradient(w, b)
            if residual(w, g, g_b) <= tol:
                n = norms(w)
                margin = float(threshold - norms(g)[n == 0].max())
                support = (n > 0).ravel()
                return Optimum(w, support, residual(w, g, g_b), margin, float(n[n > 0].min()))
    raise RuntimeError(f"no optimum to {tol} in {most} iterations")


def wrong_groups(
    method: str, problem: Problem, truth: Optimum, epochs: int, seed: int
) -> list[int]:
    """Groups in which the structured point's support differs from the optimum's, per epoch."""
    x, labels = digits()
    inputs, targets = torch.from_numpy(x).float(), torch.from_numpy(labels)
    split = Split(inputs, targets, val_x=inputs, val_y=targets)
    model = torch.nn.Linear(64, 10)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    opt = METHODS[method](dp.param_groups(model, problem.penalty))
    stages = dp.StageSchedule(opt, [m for m in MILESTONES if m < epochs], GAMMA)
    support = torch.from_numpy(truth.support)
    wrong = []
    for epoch in range(epochs):
        for batch, classes in split.batches(BATCH_SIZE, seed, epoch):
            opt.zero_grad()
            torch.nn.functional.cross_entropy(model(batch), classes).backward()
            opt.step()
        found = problem.penalty.structure(opt.structured_point(model.weight))
        assert isinstance(found, dp.Support)
        wrong.append(int((found.live.flatten() != support).sum()))
        stages.step()
    return wrong


def measure(epochs: int, seed: int = 0) -> list[dict]:
    """The record of every method on every problem."""
    torch.set_num_threads(1)
    records = []
    for problem in PROBLEMS:
        truth = optimum(problem)
        for method in METHODS:
            wrong = wrong_groups(method, problem, truth, epochs, seed)
            last_wrong = max((i for i, n in enumerate(wrong, start=1) if n), default=0)
            records.append(
                {
                    "problem": problem.name,
                    "penalty": repr(problem.penalty),
                    "method": method,
                    "groups": int(truth.support.size),
                    "live_at_optimum": int(truth.support.sum()),
                    "optimality": truth.residual,
                    "margin": truth.margin,
                    "identified_epoch": last_wrong + 1 if last_wrong < epochs else None,
                    "wrong_groups": wrong,
                }
            )
            print(
                f"{problem.name:24}{method:9} wrong at the end {wrong[-1]:>3} of "
                f"{truth.support.size}, identified in epoch {records[-1]['identified_epoch']}"
            )
    return records


def plot(records: list[dict]) -> bytes:
    """Wrong groups over epochs, one panel per problem."""
    import io

    from matplotlib.figure import Figure

    colors = {"RMDA": "#0072B2", "RAMDA": "#009E73", "ProxSGD": "#D55E00"}
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, problem in zip(figure.subplots(1, len(PROBLEMS)), PROBLEMS, strict=True):
        mine = [record for record in records if record["problem"] == problem.name]
        for record in mine:
            epochs = range(1, len(record["wrong_groups"]) + 1)
            width = 1.0 if record["method"] == "ProxSGD" else 2.0
            axes.plot(
                epochs,
                record["wrong_groups"],
                label=record["method"],
                color=colors[record["method"]],
                linewidth=width,
            )
        live, groups = mine[0]["live_at_optimum"], mine[0]["groups"]
        axes.set_title(f"{problem.name}: {live} of {groups} live at the optimum", fontsize=10)
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(-0.1, None)
        axes.set_yticks([0, 1, 10, 100], ["0", "1", "10", "100"])
        axes.set_xscale("log")
        axes.set_xlabel("epoch")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylabel("groups wrongly dead or live")
        axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def main() -> int:
    """Measure, write, plot."""
    docs = Path(__file__).parents[1] / "docs"
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=300)
    records = measure(parser.parse_args().epochs)
    write_json(docs / "identification.json", {"torch": torch.__version__, "records": records})
    write_atomically(docs / "identification.png", lambda file: file.write(plot(records)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
