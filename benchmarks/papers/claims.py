"""What the papers claim, with the rule for each and what it says of the runs."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dualprox.lab.experiments.published import TABLES
from dualprox.lab.experiments.results import Comparison
from dualprox.lab.experiments.tables import SECONDS, UNSTRUCTURED_SPARSITY, Column, Table

from .records import Record
from .rules import (
    CLOSE,
    EQUAL,
    FASTER,
    FEWEST,
    LAST,
    OURS,
    VANISHED,
    Duel,
    Verdict,
    Word,
    beats_rigl,
    duels,
    solver_verdicts,
    sparser,
    steadier,
    support_verdicts,
)


@dataclass(frozen=True)
class Claim:
    """A claim of the papers with its verdicts.

    Args:
        title: the claim.
        source: where it is made.
        rule: what counts as confirmed.
        verdicts: of the experiments that were run.
        untested: the experiments that the papers make it of and that were not run.
    """

    title: str
    source: str
    rule: str
    verdicts: tuple[Verdict, ...]
    untested: tuple[str, ...] = ()

    def count(self, word: Word) -> int:
        """How many verdicts have that word."""
        return sum(verdict.word == word for verdict in self.verdicts)


def untested(tested: Iterable[Verdict], tables: Iterable[Table]) -> tuple[str, ...]:
    """The parts of tables that no verdict is about."""
    known = {verdict.experiment.partition(" (")[0] for verdict in tested}
    blocks = [row.block for table in tables for row in table.rows]
    return tuple(block for block in dict.fromkeys(blocks) if block not in known)


def claims(comparisons: Sequence[Comparison], records: dict[str, list[Record]]) -> list[Claim]:
    """All claims with what the runs say of them.

    Args:
        comparisons: of the runs with what was published.
        records: the others, by kind.
    """

    def judged(rule: Callable[[Duel], Verdict], kind: Column | None = None) -> tuple[Verdict, ...]:
        return tuple(rule(duel) for duel in duels(comparisons, kind))

    single = [table for table in TABLES.values() if table.structure == UNSTRUCTURED_SPARSITY]
    timed = [table for table in TABLES.values() if SECONDS in table.columns]
    # Table 2 has rivals alone.
    named = [table for table in TABLES.values() if {row.label for row in table.rows} & {*OURS}]
    structured = [table for table in named if table not in single]
    last = f"the last {100 * LAST:g} % of the epochs, and at least {FEWEST},"
    sparse, steady = judged(sparser), judged(steadier)
    rigl = judged(beats_rigl, UNSTRUCTURED_SPARSITY)
    solver = tuple(solver_verdicts(comparisons, records.get("times", [])))
    support = tuple(support_verdicts(comparisons, records.get("planted", [])))
    return [
        Claim(
            "RMDA and RAMDA find sparser networks at no loss of accuracy",
            "both papers; Tables 3, 4, 5, 7, 8 and 9, and the RMDA paper's LeNet-5, VGG-19 and "
            "ResNet-50",
            "more structure at the end than each of ProxSGD, ProxSSI and ProxGen that was trained "
            "as long, and accuracy not below the best of them by more than two standard errors of "
            "the difference (over seeds; of one seed, that of counting on the test set).",
            sparse,
            untested(sparse, structured),
        ),
        Claim(
            "Their structure is stable over the last epochs, while ProxSGD, ProxSSI and ProxGen "
            "oscillate",
            "arXiv:2403.14398, appendix D",
            f"over {last} the greatest less the least structure is smaller than that of each of "
            "the three, and so is the share of the structure that changes from one epoch to the "
            "next (1 - Jaccard index). Both are given for each.",
            steady,
            untested(steady, structured),
        ),
        Claim(
            "RMDA with l1 beats RigL at 98 % sparsity",
            "arXiv:2112.02612, unstructured sparsity",
            f"at least as many zeros as RigL, but for {EQUAL} points, and a higher accuracy by "
            "more than two standard errors of the difference. Fewer zeros and a higher accuracy "
            "decide nothing.",
            rigl,
            untested(rigl, single),
        ),
        Claim(
            "The solver of the subproblem costs little",
            "arXiv:2403.14398, Tables 2, 4 and 5",
            f"ProxSSI, whose subproblem is solved by Newton-Raphson, takes at least {FASTER:g} "
            'times as long as ProxGen with early stopping (the paper: "around 3X"); RAMDA and '
            f"ProxGen take at most {CLOSE:g} times as long as the dense network (the paper: "
            'RAMDA 1.11 and 1.03 times, "still close").',
            solver,
            untested(solver, timed),
        ),
        Claim(
            "They identify the right structure, for the error of their gradient estimate vanishes",
            "both papers' theorems and their study on synthetic data, Lemma 1",
            "where the optimum is known, no group is other than at the optimum; where a support "
            "was planted, all groups are as planted with every seed, and fewer with ProxSGD and "
            f"ProxGen; the estimate's squared error falls to {100 * VANISHED:g} % of that of a "
            "batch's gradient, and below those of ProxSGD and ProxGen (this last condition was "
            "added when the first had turned out to be met by all four).",
            support,
        ),
    ]
