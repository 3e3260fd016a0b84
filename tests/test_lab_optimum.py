"""The optimum of logistic regression, against plain proximal gradient without dualprox."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import dualprox as dp
from dualprox.lab import folders, settings
from dualprox.lab.cli import main
from dualprox.lab.data import load_split
from dualprox.lab.experiments import optimality
from dualprox.lab.experiments.optimality import is_convex
from dualprox.lab.experiments.optimum import LogisticProblem, Optimum, certify, optimum
from dualprox.lab.experiments.published import TABLES
from dualprox.lab.recipes import RECIPES
from dualprox.lab.settings import Run

pytestmark = pytest.mark.usefixtures("torch_as_before")

STRENGTH = 0.01
Array = np.ndarray


def arrays() -> tuple[Array, Array]:
    split = load_split("digits", None)
    return split.x.double().numpy(), np.eye(10)[split.y.numpy()]


def objective(w: Array, b: Array) -> float:
    x, y = arrays()
    scores = x @ w.T + b
    top = scores.max(1)
    log_sum = np.log(np.exp(scores - top[:, None]).sum(1)) + top
    loss = (log_sum - (scores * y).sum(1)).mean()
    return float(loss + STRENGTH * np.sqrt(10) * np.linalg.norm(w, axis=0).sum())


@pytest.fixture(scope="module")
def plain() -> tuple[Array, Array]:
    """A weight and a bias after a few thousand plain proximal gradient steps."""
    x, y = arrays()
    mean, n, threshold = x.mean(0), len(x), STRENGTH * np.sqrt(10)
    x = x - mean  # or it takes ten times the steps
    step = 2 / (np.linalg.norm(x, 2) ** 2 / n + 1)
    w, b = np.zeros((10, 64)), np.zeros(10)
    for _ in range(4000):
        p = np.exp(x @ w.T + b)
        errors = (p / p.sum(1, keepdims=True) - y) / n
        w, b = w - step * errors.T @ x, b - step * errors.sum(0)
        norms = np.maximum(np.linalg.norm(w, axis=0), 1e-300)
        w = w * np.maximum(1 - step * threshold / norms, 0)
    return w, b - w @ mean


@pytest.fixture(scope="module")
def problem() -> LogisticProblem:
    return LogisticProblem.of(load_split("digits", None), 10, dp.GroupLasso(STRENGTH))


@pytest.fixture(scope="module")
def solved(problem: LogisticProblem) -> Optimum:
    return optimum(problem, tol=1e-11)


def test_the_optimum_is_that_of_plain_proximal_gradient(plain, solved) -> None:
    w, b = plain
    assert -1e-12 < solved.gap <= 1e-11 and solved.residual < 1e-5
    ours = objective(solved.weight.numpy(), solved.bias.numpy())
    assert solved.objective == pytest.approx(ours, abs=1e-13)
    assert ours <= objective(w, b) + 1e-11
    assert objective(w, b) - ours < 1e-9
    np.testing.assert_allclose(solved.weight.numpy(), w, atol=1e-3)
    np.testing.assert_array_equal(solved.support.numpy(), (w != 0).any(0))
    assert 0 < solved.support.sum() < 64


def test_the_gap_bounds_what_any_weight_lacks(problem, solved) -> None:
    generator = torch.Generator().manual_seed(0)
    gaps = []
    for scale in (1.0, 0.1, 1e-3, 1e-6, 0.0):
        noise = torch.randn(solved.weight.shape, generator=generator, dtype=torch.float64)
        found = certify(problem, solved.weight + scale * noise)
        lack = found.objective - solved.objective
        assert -1e-11 < lack <= found.gap + 1e-11
        gaps.append(found.gap)
    assert gaps == sorted(gaps, reverse=True) and gaps[0] > 1e-2 and gaps[-1] < 1e-10
    # The bias is the best one: no other lowers the objective of the last weight.
    for _ in range(5):
        other = found.bias + 1e-3 * torch.randn(10, generator=generator, dtype=torch.float64)
        assert problem.objective(found.weight, other) > found.objective


def test_the_objective_is_the_one_that_a_run_has(problem) -> None:
    torch.manual_seed(0)
    split, model = load_split("digits", None), nn.Linear(64, 10).double()
    loss = nn.functional.cross_entropy(model(split.x.double()), split.y)
    wanted = loss.item() + STRENGTH * 10**0.5 * model.weight.norm(dim=0).sum().item()
    with torch.no_grad():
        found = problem.objective(model.weight, model.bias)
    assert found == pytest.approx(wanted, abs=1e-12)


def convex_run() -> Run:
    fields = ["model.hidden=", "baseline=none", "epochs=4", "milestones=2"]
    run = settings.with_settings(RECIPES["digits_mlp_rmda"](), fields)
    return replace(run, penalty=dp.GroupLasso(STRENGTH))


def test_a_report_tells_gap_and_wrong_groups_and_solves_once(
    tmp_path: Path, plain, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, folder = convex_run(), tmp_path / "run"
    fields = ["model.hidden=", "baseline=none", "epochs=4", "milestones=2"]
    args = ["train", "digits_mlp_rmda", "--out", str(folder), "--set", *fields]
    assert main([*args, f"penalty.strength={STRENGTH}"]) == 0
    assert folders.read_run(folder) == run
    out = tmp_path / "report"
    assert main(["report", str(folder), "--optimum", "--out", str(out)]) == 0
    assert "computing the optimum for digits" in capsys.readouterr().out
    with open(out / "other-optimum.csv", newline="") as file:
        best, ours = csv.DictReader(file)
    from safetensors.numpy import load_file

    saved = load_file(folder / "model.safetensors")
    weight = saved["fc1.weight"].astype(np.float64)
    w, b = plain
    gap = objective(weight, saved["fc1.bias"].astype(np.float64)) - objective(w, b)
    assert float(ours["objective_gap_ours_mean"]) == pytest.approx(1e6 * gap, rel=1e-3, abs=0.2)
    wrong = int(((weight != 0).any(0) != (w != 0).any(0)).sum())
    assert float(ours["wrong_groups_ours_mean"]) == wrong
    assert gap > 1e-6
    sparsity = 100 * float((w == 0).all(0).mean())
    assert float(best["weighted_group_sparsity_ours_mean"]) == pytest.approx(sparsity)
    assert best["method"] == "optimum" and float(best["objective_gap_ours_mean"]) == 0
    assert "duality gap" in (out / "report.md").read_text()

    def never(*_, **__):
        raise AssertionError("solved again")

    # Kept, and believed only where it is certified.
    with monkeypatch.context() as patched:
        patched.setattr(optimality, "optimum", never)
        assert main(["report", str(folder), "--optimum", "--out", str(out)]) == 0
    (kept,) = out.glob("optimum-*.safetensors")
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(10, 64, dtype=torch.float64)}, kept)
    capsys.readouterr()
    assert main(["report", str(folder), "--optimum", "--out", str(out)]) == 0
    assert "computing the optimum" in capsys.readouterr().out
    assert main(["report", str(folder), "--out", str(tmp_path / "without")]) == 0
    assert not list((tmp_path / "without").glob("*optimum*"))


def test_other_problems_are_left_alone() -> None:
    run = convex_run()
    assert is_convex(run)
    assert not is_convex(settings.with_settings(run, ["model.hidden=8"]))
    assert not is_convex(settings.with_settings(run, ["refit=true"]))
    assert not is_convex(settings.with_settings(run, ["penalty.axis=0"]))
    assert not is_convex(settings.with_settings(run, ["penalty.strength=0"]))
    assert not is_convex(replace(run, penalty=dp.L1(1e-3)))
    convex = [row.run.recipe for row in TABLES["ramda-table7"].rows if is_convex(row.run)]
    assert len(convex) == 5 and all(name.startswith("logistic_mnist") for name in convex)
    with pytest.raises(ValueError, match="penalty must be > 0, a group an input"):
        LogisticProblem.of(load_split("digits", None), 10, dp.GroupLasso(0.1, axis=0))
