"""docs/results.md, made of the records: what the papers claim, and what came of it here."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

from dualprox.files import write_png, write_text
from dualprox.lab.experiments.figures import plot_epochs
from dualprox.lab.experiments.page import markdown, plot_stem
from dualprox.lab.experiments.planted_study import plot_epochs as plot_planted
from dualprox.lab.experiments.planted_study import plot_variance
from dualprox.lab.experiments.results import Comparison, Line, compare
from dualprox.lab.experiments.tables import WEIGHTED_SPARSITY

from .claims import Claim, claims
from .records import Record, of_kind, planted_epochs, planted_errors, read, result_of
from .rules import FEWEST, LAST, wrong_groups

# A block of fewer methods has nothing to compare in a picture.
_WORTH_A_PLOT = 2
_INTRO = """\
# The papers' results, run again

[arXiv:2112.02612](https://arxiv.org/abs/2112.02612) (RMDA) and \
[arXiv:2403.14398](https://arxiv.org/abs/2403.14398) (RAMDA) make the claims below. Each has a \
rule that says what counts as confirmed, in `benchmarks/papers/rules.py`; the rules were written \
before the runs were compared, though how RMDA and ProxSGD end on logistic regression was known. \
This page is made by `python -m benchmarks.papers \
write` of the records in `benchmarks/results/papers`; nothing in it is typed.

*Shortened* are runs of fewer epochs than the published ones, as the notes below their tables say; \
milestones keep their place. What they confirm or not, they do for training of that length. Every \
claim is judged beside rivals that were trained as long; but RMDA and RAMDA shrink by more the \
more steps they have taken since a restart ([α_t](math.md) grows), so short stages may cost them \
more structure than the others. Figures are of the last epoch, at the structured point, on the \
published test set. [How to run them](reproduce.md).
"""


def tabular(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> list[str]:
    """A table in Markdown, the first columns flush left."""
    line = "|".join([" :-- "] * left + [" --: "] * (len(head) - left))
    texts = [f"| {' | '.join(row)} |" for row in rows]
    return [f"| {' | '.join(head)} |", f"|{line}|", *texts]


def claim_section(claim: Claim) -> list[str]:
    """A claim, its rule, its verdicts."""
    text = [f"### {claim.title}", "", f"Claimed in {claim.source}.", ""]
    text += [f"**Confirmed means:** {claim.rule}", ""]
    head = ("experiment", "method", "verdict", "figures")
    rows = [(v.experiment, v.method, f"**{v.word}**", v.figure) for v in claim.verdicts]
    if rows:
        text += [*tabular(head, rows, left=4), ""]
    if claim.untested:
        text += [f"**Not tested here:** {', '.join(claim.untested)}.", ""]
    return text


def summary(found: Sequence[Claim]) -> list[str]:
    """How many verdicts of which kind each claim has."""
    head = ("claim", "confirmed", "not confirmed", "undecided", "experiments not run")
    rows = [
        (
            claim.title,
            str(claim.count("confirmed")),
            str(claim.count("not confirmed")),
            str(claim.count("not tested here")),
            str(len(claim.untested)),
        )
        for claim in found
    ]
    return ["## The claims", "", *tabular(head, rows), ""]


def convex_lines(comparisons: Sequence[Comparison]) -> list[Line]:
    """The lines that were measured beside an optimum."""
    lines = [line for comparison in comparisons for line in comparison.lines]
    return [line for line in lines if wrong_groups(line)]


def optimum_section(comparisons: Sequence[Comparison], optima: Sequence[Record]) -> list[str]:
    """Each optimum, and how far from it the runs of its problem end."""
    text = ["## Beside the optimum of the convex problem", ""]
    for best in optima:
        sparsity = 100 * (1 - best["live"] / best["groups"])
        text += [
            f"{best['block']}, group LASSO {best['strength']:g}: the optimum "
            f"has F\\* = {best['objective']:.8f}, at most {best['gap']:.0e} above the least "
            f"objective (duality gap), {best['live']} of {best['groups']} groups live "
            f"({sparsity:.2f} % zero) and accuracy {best['accuracy']:.2f} %. Its strongest dead "
            f"group is at {best['strongest_dead']:.4f} of where it would come to life, its weakest "
            f"live one has norm {best['weakest_live']:.1e}.",
            "",
        ]
        lines = [
            line
            for line in convex_lines(comparisons)
            if line.results[0].run.data == best["data"]
            and getattr(line.results[0].run.penalty, "strength", None) == best["strength"]
        ]
        head = ["method", "seed", "F - F\\* (1e-6)", "groups not as at the optimum", "zero (%)"]
        head += [f"least to greatest, last {100 * LAST:g} %", "greatest of any epoch"]
        head += ["published (%)"]
        rows = []
        for line in lines:
            published = line.row.published.get(WEIGHTED_SPARSITY.metric)
            for result in line.results:
                zero = [100 * row[WEIGHTED_SPARSITY.metric] for row in result.metrics]
                end, last = result.metrics[-1], zero[-max(FEWEST, round(LAST * len(zero))) :]
                rows.append(
                    (
                        line.label,
                        str(result.run.seed),
                        f"{1e6 * end['objective_gap']:.2f}",
                        f"{end['wrong_groups']:.0f}",
                        f"{zero[-1]:.2f}",
                        f"{min(last):.2f} to {max(last):.2f}",
                        f"{max(zero):.2f}",
                        published.text(2) if published else "-",
                    )
                )
        text += [*tabular(head, rows), ""]
    return text


def planted_section(record: Record) -> list[str]:
    """Where the methods end on planted supports, and how the error of their gradient does."""
    epochs = planted_epochs(record)
    last = max(each.epoch for each in epochs)
    text = ["## Planted supports", ""]
    text += [f"`dualprox study planted`, {last} epochs, seed by seed.", ""]
    ends: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for each in epochs:
        if each.epoch == last:
            found = (100 * each.support_correctness, 100 * each.train_accuracy)
            ends.setdefault((each.problem, each.method), []).append(found)
    head = ("problem", "method", "groups as planted (%)", "training accuracy (%)")
    rows = [
        (
            problem,
            method,
            *(", ".join(f"{v:.1f}" for v in column) for column in zip(*each, strict=True)),
        )
        for (problem, method), each in ends.items()
    ]
    text += [*tabular(head, rows, left=2), ""]
    text += [
        "Lemma 1: squared error of the estimate of the full gradient, as a share of that of a "
    ]
    text[-1] += "batch's gradient, on the logistic problem, means over seeds:"
    curves = planted_errors(record)
    steps = [each.step for each in next(iter(curves.values()))[0]]
    shown = sorted({0, len(steps) // 3, 2 * len(steps) // 3, len(steps) - 1})
    rows = []
    for method, runs in curves.items():
        shares = [fmean(run[i].estimate / run[i].minibatch for run in runs) for i in shown]
        rows.append((method, *(f"{100 * share:.1f} %" for share in shares)))
    text += ["", *tabular(("method", *(f"step {steps[i]}" for i in shown)), rows), ""]
    for name in (*dict.fromkeys(each.problem for each in epochs), "variance"):
        text += [f"![planted {name}](results/planted-{name}.png)", ""]
    return text


def times_section(records: Sequence[Record]) -> list[str]:
    """Times of training steps with every solver."""
    text = ["## What the solver costs", ""]
    for record in records:
        where = record["environment"]
        threads = where["threads"]
        machine = where["gpu"] or f"{where['cpu']}, {threads} thread{'' if threads == 1 else 's'}"
        text += [
            f"{record['network']}, batches of {record['batch_size']}, {machine}, torch "
            f"{where['torch']}: whole training steps, taken in turns in one process after "
            f"{record['warm']} steps of each; an epoch is {record['steps_per_epoch']} steps. All "
            "solvers are this library's: its proximal gradient and its Newton-Raphson are not the "
            "papers' code, and early in training few groups are screened out. The exact solver is "
            "none of the papers'.",
            "",
        ]
        dense = record["seconds"]["Adam"]["median"]
        rows = [
            (
                name,
                f"{1e3 * each['median']:.1f}",
                f"{1e3 * each['q1']:.1f} to {1e3 * each['q3']:.1f}",
                str(each["samples"]),
                f"{each['median'] * record['steps_per_epoch']:.1f}",
                f"{each['median'] / dense:.2f}",
            )
            for name, each in record["seconds"].items()
        ]
        head = ("method", "step (ms, median)", "quartiles", "samples", "epoch (s)", "beside Adam")
        text += [*tabular(head, rows), ""]
    return text


def origin_section(records: Sequence[Record]) -> list[str]:
    """Which code and which machines the figures come from."""
    runs = [record for record in records if "machine" in record]
    machines = {record["machine"] for record in runs}
    machines |= {record["environment"]["cpu"] for record in of_kind(records, "times")}
    commits = {record["commit"][:7] for record in records if record.get("commit")}
    commits |= {
        record["environment"]["commit"][:7]
        for record in of_kind(records, "times")
        if record["environment"]["commit"]
    }
    return [
        "## Where the figures come from",
        "",
        f"{len(runs)} runs, on {', '.join(sorted(machines))}, by the code of "
        f"{', '.join(sorted(commits))}; each record names its own.",
    ]


def plotted(comparisons: Sequence[Comparison]) -> list[tuple[str, Comparison, str, list[Line]]]:
    """The parts of tables that get a picture, with its name."""
    return [
        (f"{plot_stem(comparison.table, block)}-epochs.png", comparison, block, lines)
        for comparison in comparisons
        for block, lines in comparison.blocks().items()
        if len(lines) >= _WORTH_A_PLOT
    ]


def text_of(records: Sequence[Record]) -> str:
    """The page."""
    comparisons = compare([result_of(record) for record in of_kind(records, "run")])
    kinds = {kind: of_kind(records, kind) for kind in ("optimum", "planted", "times")}
    found = claims(comparisons, kinds)
    text = [_INTRO, *summary(found)]
    for claim in found:
        text += claim_section(claim)
    if kinds["optimum"]:
        text += optimum_section(comparisons, kinds["optimum"])
    for record in kinds["planted"]:
        text += planted_section(record)
    if kinds["times"]:
        text += times_section(kinds["times"])
    pictures = plotted(comparisons)
    for comparison in comparisons:
        text += [markdown(comparison)]
        for name, whose, block, _ in pictures:
            if whose is comparison:
                text += [f"![{block}](results/{name})", ""]
    text += origin_section(records)
    return "\n".join(text).rstrip() + "\n"


def write(folder: Path, docs: Path) -> None:
    """Make results.md and its pictures.

    Args:
        folder: of the records.
        docs: where the page goes; pictures lie in `results` in there, and others are removed.
    """
    records = read(folder)
    comparisons = compare([result_of(record) for record in of_kind(records, "run")])
    pictures = docs / "results"
    pictures.mkdir(parents=True, exist_ok=True)
    for old in pictures.glob("*.png"):
        old.unlink()
    for name, comparison, block, lines in plotted(comparisons):
        figure = plot_epochs(comparison.table, block, lines)
        assert figure is not None
        write_png(pictures / name, figure)
    for record in of_kind(records, "planted"):
        epochs = planted_epochs(record)
        for problem in dict.fromkeys(each.problem for each in epochs):
            mine = [each for each in epochs if each.problem == problem]
            write_png(pictures / f"planted-{problem}.png", plot_planted(problem, mine))
        write_png(pictures / "planted-variance.png", plot_variance(planted_errors(record)))
    write_text(docs / "results.md", text_of(records))
