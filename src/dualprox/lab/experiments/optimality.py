"""Runs of a convex problem beside its optimum, which their table's folder keeps."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

import dualprox as dp

from ...files import write_atomically
from ..data import CATALOGUE, Split
from ..networks import make_model
from ..settings import Run
from ..specs import MlpSpec
from ..tasks.classification import evaluate, make_split
from .optimum import LogisticProblem, Optimum, certify, optimum
from .results import Comparison, Line, Result
from .tables import ACCURACY, WEIGHTED_SPARSITY, Column, Row

OBJECTIVE_GAP = Column("objective_gap", "F - F* (1e-6)", 1e6)
WRONG_GROUPS = Column("wrong_groups", "groups not as at the optimum", 1.0)
# To which the optimum is known: far below what a stochastic method comes to.
_GAP = 1e-7


def is_convex(run: Run) -> bool:
    """Whether a run's problem is logistic regression with group LASSO on the inputs, all along."""
    network, penalty = run.model, run.penalty
    one_layer = isinstance(network, MlpSpec) and not network.hidden
    changed = run.refit or run.coupled or run.augment
    if not one_layer or changed or not isinstance(penalty, dp.GroupLasso):
        return False
    groups = (penalty.axis, penalty.block, penalty.conv_groups)
    return groups == (1, 1, 1) and penalty.strength > 0


@dataclass(frozen=True, eq=False)
class Solved:
    """The problem of a run, with its data and its optimum."""

    split: Split
    problem: LogisticProblem
    optimum: Optimum

    def measured(self, result: Result) -> Result:
        """The result with what separates its structured point from the optimum."""
        from safetensors.torch import load_file

        assert result.folder is not None
        saved = load_file(result.folder / "model.safetensors")
        weight, bias = saved["fc1.weight"], saved["fc1.bias"]
        gap = self.problem.objective(weight, bias) - self.optimum.objective
        wrong = int(((weight != 0).any(0) != self.optimum.support).sum())
        last = result.metrics[-1] | {
            OBJECTIVE_GAP.metric: gap,
            WRONG_GROUPS.metric: wrong,
        }
        return replace(result, metrics=[*result.metrics[:-1], last])

    def line(self, row: Row, result: Result) -> Line:
        """The optimum itself, as a line that is the same in every epoch of a result."""
        model = make_model(result.run)
        saved = {"fc1.weight": self.optimum.weight, "fc1.bias": self.optimum.bias}
        model.load_state_dict(saved)
        figures = {
            ACCURACY.metric: evaluate(model, self.split)["val_accuracy"],
            WEIGHTED_SPARSITY.metric: 1 - float(self.optimum.support.double().mean()),
            OBJECTIVE_GAP.metric: 0.0,
            WRONG_GROUPS.metric: 0,
        }
        metrics = [{"epoch": each["epoch"], **figures} for each in result.metrics]
        run = replace(result.run, recipe="optimum", seed=0)
        note = (
            f"F* = {self.optimum.objective:.8f} with strength {self.problem.penalty.strength:g}, "
            f"at most {max(self.optimum.gap, 0.0):.0e} above the least objective (duality gap)"
        )
        return Line(
            Row(row.block, "optimum", run, seeds=(0,), note=note),
            (replace(result, run=run, metrics=metrics),),
        )


def solve(run: Run, folder: Path, say: Callable[[str], None]) -> Solved:
    """The optimum of a run's problem, from the folder if it was found before.

    What lies in the folder is certified again, so that one of other data cannot pass.

    Raises:
        DataError: the files of the data set are missing or damaged.
    """
    from safetensors.torch import load_file, save

    penalty = run.penalty
    assert isinstance(penalty, dp.GroupLasso)
    split = make_split(run)
    assert isinstance(split, Split)
    problem = LogisticProblem.of(split, CATALOGUE[run.data].classes, penalty)
    weighting = "" if penalty.size_weighted else "-unweighted"
    name = f"optimum-{run.data}-{run.normalization}-{penalty.strength:g}{weighting}.safetensors"
    start: Tensor | None = None
    if (folder / name).exists():
        start = load_file(folder / name)["weight"]
        found = certify(problem, start)
        if found.gap <= _GAP:
            return Solved(split, problem, found)
    say(f"computing the optimum for {run.data}, strength {penalty.strength:g}: minutes for MNIST")
    found = optimum(problem, _GAP, start=start)
    content = save({"weight": found.weight, "bias": found.bias})
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / name, lambda file: file.write(content))
    return Solved(split, problem, found)


def beside_optimum(
    comparison: Comparison, folder: Path, say: Callable[[str], None]
) -> Comparison | None:
    """The lines of a comparison whose problem is convex, and the optimum of each problem.

    Args:
        comparison: of runs that are on disk.
        folder: where optima are kept.
        say: told what takes long.

    Returns:
        A comparison of its own; None where no problem is convex.

    Raises:
        DataError: the files of a data set are missing or damaged.
    """
    solved: dict[tuple[object, ...], Solved] = {}
    lines: list[Line] = []
    for line in comparison.lines:
        if not is_convex(line.results[0].run):
            continue
        results = []
        for result in line.results:
            run = result.run
            key = (run.data, run.data_dir, run.normalization, run.penalty)
            if key not in solved:
                solved[key] = solve(run, folder, say)
                lines.append(solved[key].line(line.row, result))
            results.append(solved[key].measured(result))
        lines.append(Line(line.row, tuple(results)))
    if not lines:
        return None
    table = replace(
        comparison.table,
        name=f"{comparison.table.name}-optimum",
        title="runs of convex problems beside the optimum",
        columns=(ACCURACY, WEIGHTED_SPARSITY, OBJECTIVE_GAP, WRONG_GROUPS),
        rows=tuple(line.row for line in lines),
    )
    return Comparison(table, tuple(lines))
