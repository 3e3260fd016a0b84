"""The rules that judge the papers' claims."""

import math
from dataclasses import replace

import pytest

from dualprox.lab.experiments.published import TABLES
from dualprox.lab.experiments.results import Result, compare
from dualprox.lab.experiments.tables import ACCURACY, WEIGHTED_SPARSITY
from papers.claims import Claim, claims
from papers.rules import UNSTRUCTURED_SPARSITY as SINGLE
from papers.rules import (
    Verdict,
    allowance,
    beats_rigl,
    duels,
    solver_ratios,
    solver_verdicts,
    sparser,
    steadier,
    support_verdicts,
    unrest,
)
from papers_results import lenet, logistic, planted, result


def only(found: list[Verdict]) -> Verdict:
    (verdict,) = found
    return verdict


@pytest.mark.parametrize(
    ("accuracy", "zero", "word"),
    [
        (0.990, 0.80, "confirmed"),
        # 2 sqrt((0.99 0.01 + 0.987 0.013) / 10000) is 0.302 points.
        (0.9871, 0.80, "confirmed"),
        (0.9868, 0.80, "not confirmed"),
        (0.990, 0.70, "not confirmed"),
        (0.995, 0.60, "not confirmed"),
    ],
)
def test_sparser_at_no_loss_is_asked_of_every_rival(accuracy, zero, word) -> None:
    """The sparsest rival and the most accurate one may be two."""
    found = [lenet("RMDA", accuracy, zero, "epoch_steps=9")]
    found += [lenet("ProxSGD", 0.990, 0.50, "epoch_steps=9")]
    found += [lenet("ProxSSI", 0.980, 0.70, "epoch_steps=9")]
    verdict = only([sparser(duel) for duel in duels(compare(found))])
    assert verdict.word == word and "(ProxSGD)" in verdict.figure
    assert verdict.experiment == "LeNet5/MNIST (shortened from 500 epochs to 6 of 9 steps)"
    assert "beside 70.00 (ProxSSI)" in verdict.figure and "beside 99.00 (ProxSGD)" in verdict.figure


def test_of_a_loss_the_lower_one_is_better() -> None:
    def ended(label: str, loss: float) -> Result:
        made = result("ramda-table5", label, 0.0, 0.5 if label == "ProxSGD" else 0.6)
        made.metrics[-1]["val_loss"] = loss
        return made

    for loss, word in ((0.4, "confirmed"), (0.6, "not confirmed")):
        comparisons = compare([ended("RAMDA", loss), ended("ProxSGD", 0.5)])
        assert only([sparser(duel) for duel in duels(comparisons)]).word == word


def test_runs_of_other_lengths_and_strengths_are_no_rivals() -> None:
    ours = lenet("RMDA", 0.99, 0.8)
    others = [
        lenet("ProxSGD", 0.99, 0.5, "epochs=7", "milestones=2"),
        lenet("ProxSGD", 0.99, 0.5, "epoch_steps=9"),
        lenet("ProxSGD", 0.99, 0.5, "penalty.strength=0.1"),
        lenet("Dense", 0.99, 0.0),
    ]
    assert duels(compare([ours, *others])) == []
    # Another solver is no other length.
    same = lenet("ProxSSI", 0.99, 0.5, "optimizer.solver.max_iter=5")
    assert len(duels(compare([ours, *others, same]))[0].rivals) == 1
    # With and without early stopping are two comparisons.
    stopping = [
        result("ramda-table1", f"{name}, {text}early stopping", 0.9, 0.8, block="VGG19/CIFAR10")
        for name in ("ProxGen", "RAMDA")
        for text in ("", "no ")
    ]
    pairs = [(d.ours.row.label, d.rivals[0].row.label) for d in duels(compare(stopping))]
    assert sorted(pairs) == [
        ("RAMDA, early stopping", "ProxGen, early stopping"),
        ("RAMDA, no early stopping", "ProxGen, no early stopping"),
    ]


def test_errors_are_those_of_seeds_or_of_counting() -> None:
    one = compare([logistic("RMDA", 0.90, 0.5), logistic("ProxSGD", 0.80, 0.5)])[0].lines
    expected = 200 * math.sqrt(0.9 * 0.1 / 10_000 + 0.8 * 0.2 / 10_000)
    assert allowance(one[0], one[1], ACCURACY) == pytest.approx(expected, rel=1e-12)
    assert allowance(one[0], one[1], WEIGHTED_SPARSITY) == 0
    more = [logistic("RMDA", 0.90, 0.5, "seed=2"), logistic("RMDA", 0.96, 0.5, "seed=3")]
    three = compare([logistic("RMDA", 0.90, 0.5), *more, logistic("ProxSGD", 1.0, 0.5)])[0].lines
    # 90, 90 and 96: a sample's standard deviation of sqrt(12); 100 % has no error of counting.
    assert allowance(three[1], three[0], ACCURACY) == pytest.approx(2 * math.sqrt(12 / 3))


def test_what_stands_still_moves_less_than_every_rival_in_both_ways() -> None:
    def judge(ours: list[float], jaccard: float, *others: tuple[list[float], float]) -> Verdict:
        rivals = zip(("ProxSGD", "ProxSSI"), others, strict=False)
        found = [lenet(name, 0.9, zero, jaccard=j) for name, (zero, j) in rivals]
        comparisons = compare([lenet("RMDA", 0.9, ours, jaccard=jaccard), *found])
        return only([steadier(duel) for duel in duels(comparisons)])

    still, moving = ([0.1, 0.9, 0.80, 0.81, 0.80], 0.99), ([0.2, 0.5, 0.5, 0.7, 0.6], 0.8)
    verdict = judge(*still, moving)
    assert verdict.word == "confirmed"
    assert verdict.figure == "1.00 points, 1.00 %; beside: ProxSGD 20.00 points, 20.00 %"
    assert judge(*moving, still).word == "not confirmed"
    assert judge(*still, still).word == "not confirmed"
    assert judge(*still, moving, still).word == "not confirmed"
    # As many groups as before, but others.
    assert judge(still[0], 0.7, moving).word == "not confirmed"
    short = [lenet(name, 0.9, 0.5, "epochs=3", "milestones=1") for name in ("RMDA", "ProxSGD")]
    assert only([steadier(duel) for duel in duels(compare(short))]).word == "not tested here"


def test_the_last_tenth_of_many_epochs_counts_and_means_are_over_seeds() -> None:
    fields = ("epochs=40", "milestones=10")
    zero = [0.9] * 8 + [0.1, 0.2, 0.3, 0.2]  # the last four
    made = [result("rmda-lenet5-mnist", "RMDA", 0.9, zero, *fields, jaccard=0.5)]
    still = [0.4] * 4
    made += [result("rmda-lenet5-mnist", "RMDA", 0.9, still, *fields, "seed=2", jaccard=0.7)]
    (line,) = compare(made)[0].lines
    assert line.row.label == "RMDA" and len(line.results) == 2
    column = TABLES["rmda-lenet5-mnist"].structure
    assert column is not None
    found = unrest(line, column)
    assert (found.span, found.moved) == (pytest.approx(10.0), pytest.approx(40.0))


@pytest.mark.parametrize(
    ("accuracy", "zero", "word"),
    [
        (0.9930, 0.983, "confirmed"),
        (0.9930, 0.9796, "confirmed"),  # as sparse, but for 0.05 points
        (0.9915, 0.983, "not confirmed"),  # which may be chance
        (0.9800, 0.983, "not confirmed"),
        (0.9930, 0.95, "not tested here"),
        (0.9800, 0.95, "not confirmed"),  # worse in both
    ],
)
def test_rigl_is_beaten_by_more_than_chance_at_no_fewer_zeros(accuracy, zero, word) -> None:
    found = [result("rigl-lenet5-mnist", "RMDA", accuracy, zero)]
    found += [result("rigl-lenet5-mnist", "RigL", 0.990, 0.98)]
    comparisons = compare(found)
    assert duels(comparisons) == []
    verdict = only([beats_rigl(duel) for duel in duels(comparisons, SINGLE)])
    assert verdict.word == word and verdict.experiment == "LeNet5/MNIST"
    # Of RigL with two settings the better one counts.
    found.append(result("rigl-lenet5-mnist", "RigL", 0.1, 0.98, "optimizer.drop_fraction=0.5"))
    assert [beats_rigl(duel) for duel in duels(compare(found), SINGLE)] == [verdict]


def test_times_are_judged_beside_proxssi_and_beside_the_dense_network() -> None:
    seconds = {"Adam": 1.0, "ProxSSI": 3.0, "ProxGen": 1.2, "RAMDA": 1.3, "RAMDA, exact": 1.1}
    found = [(v.method, v.word) for v in solver_ratios("x", seconds)]
    assert found == [
        ("ProxGen beside ProxSSI", "confirmed"),
        ("ProxGen beside dense", "confirmed"),
        ("RAMDA beside dense", "not confirmed"),
    ]
    slow = solver_ratios("x", {"ProxSSI": 1.9, "ProxGen": 1.0})
    assert [(v.word, v.figure) for v in slow] == [
        ("not confirmed", "ProxSSI takes 1.90 times as long")
    ]
    table, block = "ramda-table2", "VGG19/CIFAR10"
    runs = [
        result(table, name, 0.9, 0.5, "device=cuda", seconds=s, block=block)
        for name, s in (("ProxSSI", 3.0), ("ProxGen", 1.0))
    ]
    verdict = only(solver_verdicts(compare(runs), []))
    assert verdict.word == "confirmed" and verdict.experiment == "VGG19/CIFAR10 (cuda)"
    elsewhere = [runs[0], replace(runs[1], machine="another machine")]
    assert solver_verdicts(compare(elsewhere), []) == []


def test_a_support_is_right_where_all_of_it_is_with_every_seed() -> None:
    def words(correct: dict[str, list[float]], errors: dict[str, float]) -> list[str]:
        return [verdict.word for verdict in support_verdicts([], [planted(correct, errors)])]

    correct = {"RMDA": [1.0, 1.0], "RAMDA": [1.0, 0.99], "ProxSGD": [0.9, 1.0]}
    errors = {"RMDA": 0.1, "RAMDA": 0.11, "ProxSGD": 0.5}
    assert words(correct, errors) == [
        *("confirmed", "not confirmed"),
        *("confirmed", "not confirmed"),
    ]
    assert words(correct | {"ProxSGD": [1.0, 1.0]}, errors)[0] == "not confirmed"
    assert words(correct, errors | {"ProxSGD": 0.1})[2] == "not confirmed"
    runs = [logistic(name, 0.9, 0.5) for name in ("RMDA", "RAMDA", "ProxSGD")]
    for made, wrong in zip(runs, (0, 3, 170), strict=True):
        made.metrics[-1] |= {"objective_gap": 1e-5, "wrong_groups": wrong}
    found = support_verdicts(compare(runs), [])
    assert [verdict.word for verdict in found] == ["confirmed", "not confirmed"]
    assert found[1].figure == "3 groups are not as at the optimum; ProxSGD 170"


def test_a_claim_counts_its_verdicts_and_names_what_was_not_run() -> None:
    by_title = {claim.title[:4]: claim for claim in claims([], {})}
    assert all(not claim.verdicts for claim in by_title.values())
    rigl = by_title["RMDA"]
    assert isinstance(rigl, Claim) and {*by_title["Thei"].untested} >= {"LeNet5/MNIST"}
    named = [claim for claim in claims([], {}) if "RigL" in claim.title]
    assert named[0].untested == ("ResNet50/CIFAR10", "ResNet50/CIFAR100", "LeNet5/MNIST")
    found = [lenet("RMDA", 0.99, 0.8), lenet("ProxSGD", 0.99, 0.5)]
    first = claims(compare(found), {})[0]
    assert first.count("confirmed") == 1 and first.count("not confirmed") == 0
    assert "LeNet5/MNIST" not in first.untested and "LeNet5/FashionMNIST" in first.untested
    # A table without one of our methods tests nothing of them.
    assert "ViT/CIFAR10" in first.untested and first.untested.count("VGG19/CIFAR10") == 1
