"""The rules that decide whether a claim of the papers holds in an experiment."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from dualprox.lab.experiments.published import TABLES
from dualprox.lab.experiments.results import Comparison, Line
from dualprox.lab.experiments.tables import (
    ACCURACY,
    SECONDS,
    UNSTRUCTURED_SPARSITY,
    Column,
    Table,
)

from .records import Record, planted_epochs, planted_errors

Word = Literal["confirmed", "not confirmed", "not tested here"]
OURS = ("RMDA", "RAMDA")
RIVALS = ("ProxSGD", "ProxSSI", "ProxGen")
DENSE = ("MSGD", "Adam", "AdamW", "Dense")
# Images of the published test sets: what a single run's accuracy is counted on.
TESTED = {
    "mnist": 10_000,
    "fashion_mnist": 10_000,
    "cifar10": 10_000,
    "cifar100": 10_000,
    "imagenet": 50_000,
}
# Of the epochs, and at least so many: where structure has to stand still.
LAST, FEWEST = 0.1, 3
# Points of sparsity by which a method may miss another's and count as equally sparse.
EQUAL = 0.05
# "around 3X faster", of which this much has to be there; "still close", at most this much longer.
FASTER, CLOSE = 2.0, 1.25
# What an error of 1, a batch's, has to fall to before it counts as vanishing.
VANISHED = 0.1


@dataclass(frozen=True)
class Verdict:
    """Whether a claim holds in one experiment for one method.

    Args:
        experiment: network and data, and "shortened" or "changed" if the run was.
        method: whose claim it is.
        word: what the rule says.
        figure: what it says it of.
    """

    experiment: str
    method: str
    word: Word
    figure: str


def said(holds: bool) -> Word:
    """The word for a rule that was applied."""
    return "confirmed" if holds else "not confirmed"


def method_of(line: Line) -> str:
    """The method of a line, without what its label says of its solver."""
    return line.row.label.partition(",")[0]


def comparable(lines: Sequence[Line]) -> list[list[Line]]:
    """Lines of one part of a table, divided into those of the same length of training.

    They depart from the published runs in the same fields, apart from those of their optimizer
    (its solver) and the milestones, which follow the epochs; and their labels speak of the same
    solver.
    """
    groups: dict[tuple[str, ...], list[Line]] = {}
    for line in lines:
        kept = [text for text in line.changed if not text.startswith(("optimizer.", "milestones="))]
        variant = line.row.label.partition(",")[2]
        groups.setdefault((variant, *kept), []).append(line)
    return list(groups.values())


def told_mark(line: Line) -> str:
    """The mark of a line, and how short the shortened are; "" for a published run."""
    run = line.results[0].run
    if line.mark != "shortened":
        return line.mark
    steps = f" of {run.epoch_steps} steps" if run.epoch_steps else ""
    return f"shortened from {line.row.run.epochs} epochs to {run.epochs}{steps}"


def named(block: str, *told: str) -> str:
    """The name of an experiment: network and data, then in brackets what there is to say."""
    text = ", ".join(filter(None, told))
    return f"{block} ({text})" if text else block


def standard_error(line: Line, column: Column) -> float:
    """Of a mean over seeds; for one seed that of an accuracy counted on the test set, else 0."""
    value = line.value(column)
    assert value is not None
    if value.std is not None:
        return value.std / math.sqrt(len(line.results))
    images = TESTED.get(line.results[0].run.data)
    if column != ACCURACY or images is None:
        return 0.0
    share = value.mean / column.scale
    return column.scale * math.sqrt(share * (1 - share) / images)


def mean_of(line: Line, column: Column) -> float:
    """What the runs of a line came to."""
    value = line.value(column)
    assert value is not None
    return value.mean


def allowance(line: Line, other: Line, column: Column) -> float:
    """Two standard errors of the difference between two lines."""
    return 2 * math.hypot(standard_error(line, column), standard_error(other, column))


def duels(comparisons: Iterable[Comparison], kind: Column | None = None) -> "list[Duel]":
    """All lines of our methods that stand beside rivals of the same length.

    Args:
        comparisons: of published tables.
        kind: the structure to look for; None for any but single zeros.
    """
    found = []
    for comparison in comparisons:
        table = comparison.table
        fits = table.structure == kind if kind else table.structure != UNSTRUCTURED_SPARSITY
        if table.name not in TABLES or table.quality is None or table.structure is None or not fits:
            continue
        for block, lines in comparison.blocks().items():
            for group in comparable(lines):
                names = RIVALS if kind is None else ("RigL",)
                rivals = tuple(line for line in group if method_of(line) in names)
                ours = [line for line in group if method_of(line) in OURS]
                found += [Duel(block, table, line, rivals) for line in ours if rivals]
    return found


@dataclass(frozen=True)
class Duel:
    """A line of RMDA or RAMDA, and those it is compared with.

    Args:
        block: network and data.
        table: whose part that is.
        ours: the line.
        rivals: at least one.
    """

    block: str
    table: Table
    ours: Line
    rivals: tuple[Line, ...]

    @property
    def experiment(self) -> str:
        """Network and data, and how the runs depart from the published ones."""
        return named(self.block, told_mark(self.ours))

    @property
    def quality(self) -> Column:
        """The table's."""
        assert self.table.quality is not None
        return self.table.quality

    @property
    def structure(self) -> Column:
        """The table's."""
        assert self.table.structure is not None
        return self.table.structure

    def verdict(self, word: Word, figure: str) -> Verdict:
        """The verdict of a rule on it."""
        return Verdict(self.experiment, self.ours.row.label, word, figure)


def sparser(duel: Duel) -> Verdict:
    """Whether our method has more structure than every rival, and is no worse than the best."""
    sparsity, quality = duel.structure, duel.quality
    sign = 1.0 if quality == ACCURACY else -1.0
    sparsest = max(duel.rivals, key=lambda line: mean_of(line, sparsity))
    best = max(duel.rivals, key=lambda line: sign * mean_of(line, quality))
    ours, theirs = mean_of(duel.ours, sparsity), mean_of(sparsest, sparsity)
    good, better = mean_of(duel.ours, quality), mean_of(best, quality)
    allowed = allowance(duel.ours, best, quality)
    text = f"{sparsity.heading}: {ours:.2f} beside {theirs:.2f} ({method_of(sparsest)}); "
    text += f"{quality.heading}: {good:.2f} beside {better:.2f} ({method_of(best)}), "
    text += f"{allowed:.2f} allowed"
    return duel.verdict(said(ours > theirs and sign * (good - better) >= -allowed), text)


@dataclass(frozen=True)
class Unrest:
    """How a structure moves in the last epochs, a mean over seeds.

    Args:
        span: greatest less least structure, in its column's unit.
        moved: the mean of 1 - the Jaccard index of consecutive epochs, in percent.
    """

    span: float
    moved: float

    def text(self) -> str:
        """As a table shows it."""
        return f"{self.span:.2f} points, {self.moved:.2f} %"


def unrest(line: Line, column: Column) -> Unrest:
    """Over the last tenth of the epochs, and at least three."""
    spans, moves = [], []
    for result in line.results:
        rows = result.metrics[-max(FEWEST, round(LAST * len(result.metrics))) :]
        values = [column.scale * row[column.metric] for row in rows]
        spans.append(max(values) - min(values))
        moves.append(100 * fmean(1 - row["jaccard"] for row in rows))
    return Unrest(fmean(spans), fmean(moves))


def steadier(duel: Duel) -> Verdict:
    """Whether our method's structure moves less in the last epochs than every rival's."""
    if len(duel.ours.results[0].metrics) <= FEWEST:  # the first epoch has none before it
        return duel.verdict("not tested here", f"has to have more than {FEWEST} epochs")
    ours = unrest(duel.ours, duel.structure)
    theirs = {method_of(line): unrest(line, duel.structure) for line in duel.rivals}
    holds = all(ours.span < each.span and ours.moved < each.moved for each in theirs.values())
    beside = "; ".join(f"{name} {each.text()}" for name, each in theirs.items())
    return duel.verdict(said(holds), f"{ours.text()}; beside: {beside}")


def beats_rigl(duel: Duel) -> Verdict:
    """Whether RMDA is more accurate than RigL, and no less sparse."""
    rigl = max(duel.rivals, key=lambda line: mean_of(line, duel.quality))
    ours, theirs = (mean_of(line, duel.structure) for line in (duel.ours, rigl))
    good, other = (mean_of(line, duel.quality) for line in (duel.ours, rigl))
    allowed = allowance(duel.ours, rigl, duel.quality)
    text = f"accuracy {good:.2f} beside {other:.2f}, {allowed:.2f} of which may be chance; "
    text += f"zeros {ours:.2f} % beside {theirs:.2f} %"
    if ours < theirs - EQUAL and good > other:
        return duel.verdict("not tested here", f"{text}: less sparse, which decides nothing")
    return duel.verdict(said(ours >= theirs - EQUAL and good > other + allowed), text)


def solver_ratios(name: str, seconds: dict[str, float]) -> list[Verdict]:
    """What times of epochs or steps by method say of the solver of the subproblem.

    Args:
        name: of the experiment.
        seconds: by method; a suffix says that it has another solver than in the papers.
    """
    verdicts = []
    if "ProxGen" in seconds and "ProxSSI" in seconds:
        ratio = seconds["ProxSSI"] / seconds["ProxGen"]
        text = f"ProxSSI takes {ratio:.2f} times as long"
        verdicts.append(Verdict(name, "ProxGen beside ProxSSI", said(ratio >= FASTER), text))
    dense = next((key for key in DENSE if key in seconds), None)
    for method in ("ProxGen", "RAMDA"):
        if dense is not None and method in seconds:
            ratio = seconds[method] / seconds[dense]
            text = f"{ratio:.2f} times as long as {dense}"
            verdicts.append(Verdict(name, f"{method} beside dense", said(ratio <= CLOSE), text))
    return verdicts


def solver_verdicts(comparisons: Iterable[Comparison], times: Sequence[Record]) -> list[Verdict]:
    """Of tables that have times of epochs, and of times of steps."""
    verdicts = []
    for comparison in comparisons:
        if SECONDS not in comparison.table.columns:
            continue
        for block, lines in comparison.blocks().items():
            for group in comparable(lines):
                if len({result.machine for line in group for result in line.results}) == 1:
                    device = group[0].results[0].run.device
                    seconds = {line.row.label: mean_of(line, SECONDS) for line in group}
                    verdicts += solver_ratios(named(block, told_mark(group[0]), device), seconds)
    for record in times:
        seconds = {name: each["median"] for name, each in record["seconds"].items()}
        device = record["environment"]["device"]
        verdicts += solver_ratios(named(record["network"], "steps alone", device), seconds)
    return verdicts


def wrong_groups(line: Line) -> list[int]:
    """Of each run, groups not as at the optimum; none where no optimum is known."""
    found = [result.metrics[-1].get("wrong_groups") for result in line.results]
    return [int(each) for each in found if each is not None]


def listed(numbers: Iterable[int]) -> str:
    """Numbers with commas."""
    return ", ".join(map(str, numbers))


def support_verdicts(comparisons: Iterable[Comparison], planted: Sequence[Record]) -> list[Verdict]:
    """Whether the right structure is found, where it is known."""
    verdicts = []
    for comparison in comparisons:
        for block, lines in comparison.blocks().items():
            wrong = [(line, wrong_groups(line)) for line in lines if wrong_groups(line)]
            told = [f"{line.label} {listed(n)}" for line, n in wrong if method_of(line) in RIVALS]
            for line, found in wrong:
                if method_of(line) in OURS:
                    text = f"{listed(found)} groups are not as at the optimum"
                    name, holds = named(block, "convex", told_mark(line)), not any(found)
                    text = "; ".join([text, *told])
                    verdicts.append(Verdict(name, line.row.label, said(holds), text))
    for record in planted:
        epochs = planted_epochs(record)
        last = max(each.epoch for each in epochs)
        for problem in dict.fromkeys(each.problem for each in epochs):
            ends: dict[str, list[float]] = {}
            for each in epochs:
                if each.problem == problem and each.epoch == last:
                    ends.setdefault(each.method, []).append(100 * each.support_correctness)
            others = {name: values for name, values in ends.items() if name not in OURS}
            beside = ", ".join(f"{name} {fmean(values):.1f}" for name, values in others.items())
            for method in OURS:
                ours = fmean(ends[method])
                holds = ours == 100 and all(fmean(values) < ours for values in others.values())
                text = f"{ours:.1f} % of the groups as planted; {beside}"
                verdicts.append(Verdict(f"planted {problem}", method, said(holds), text))
        shares = {
            method: fmean(run[-1].estimate / run[-1].minibatch for run in runs)
            for method, runs in planted_errors(record).items()
        }
        others = [f"{name} {100 * each:.1f}" for name, each in shares.items() if name not in OURS]
        for method in OURS:
            ours = shares[method]
            text = f"the error is {100 * ours:.1f} % of a batch's at the last step; "
            text += ", ".join(others)
            least = min((each for name, each in shares.items() if name not in OURS), default=1.0)
            holds = ours <= VANISHED and ours < least
            verdicts.append(Verdict("Lemma 1, planted logistic", method, said(holds), text))
    return verdicts
