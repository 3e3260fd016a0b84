import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dualprox.lab.models import mlp
from frontier import record, report, runner
from frontier.dense import DENSE
from frontier.depgraph import pruned
from frontier.envelope import Point, at, best, envelope
from frontier.methods import Method, Outcome, largest_within, parameters, split_epochs
from frontier.networks import transformer
from frontier.registry import METHODS
from frontier.tasks import Examples, Loader, Recipe, Task, divide, seeded, windows
from frontier.training import Clock, make_optimizer, train
from frontier.unstructured import budget, nonzero, weights_of

DENSE_SIZE = 1458
PEERS = {
    "tp_magnitude": "torch_pruning",
    "tp_group_norm": "torch_pruning",
    "pat_group_lasso": "torchao.prototype.pat",
    "pat_constraint": "torchao.prototype.pat",
    "oto_hesso": "only_train_once",
}


def blobs(count: int, seed: int) -> Examples:
    """Points around ten corners of a cube, in 12 dimensions."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randn(10, 12, generator=torch.Generator().manual_seed(0)).sign() * 1.5
    y = torch.randint(10, (count,), generator=generator)
    return Examples(corners[y] + torch.randn(count, 12, generator=generator), y)


def tiny(folder: Path = Path()) -> Task:
    return Task(
        name="tiny",
        make_model=seeded(lambda: mlp(12, (32, 24), 10)),
        parts={"train": blobs(640, 1), "validation": blobs(200, 2), "test": blobs(200, 3)},
        batch_size=32,
        epochs=6,
        recipes=(Recipe("sgd", 0.1, 1e-4), Recipe("adamw", 1e-2, 1e-2)),
        fixed=("fc3",),
        note="made up",
    )


def narrow(task, seed, target, setting):
    """A stand-in for a pruner: a network of the width that the target allows, not trained."""
    sizes = {width: parameters(mlp(12, (width, width), 10)) for width in range(1, 25)}
    widths = [width for width, size in sizes.items() if size <= target * DENSE_SIZE]
    torch.manual_seed(seed)
    width = max(widths) - setting["less"]
    return Outcome(mlp(12, (width, width), 10), Clock([0.5] * task.epochs))


def breaks(task, seed, target, setting):
    raise RuntimeError("no such operator\nsecond line")


NARROW = Method("narrow", narrow, ({"less": 0}, {"less": 1}))
BROKEN = Method("broken", breaks, ({}, {}))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Latency is taken for a hundredth of a second, and torch's modes are put back."""
    threads = torch.get_num_threads()
    taken = record.latencies
    monkeypatch.setattr(record, "latencies", lambda d, s, t, seconds: taken(d, s, t, 0.01))
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


def plan(out, methods, **changed):
    named = {method.name: method for method in methods}
    made = runner.Plan({"tiny": tiny}, named, (0.2, 0.5), (0, 1), 2, Path(), out, 0)
    return replace(made, **changed)


def test_every_method_tries_the_same_number_of_settings_and_runs_with_the_best(tmp_path):
    said = []
    runner.run(plan(tmp_path, (NARROW, DENSE)), said.append)
    tries = [json.loads(p.read_text()) for p in sorted(tmp_path.glob("tiny/narrow/try*.json"))]
    assert [r["setting_number"] for r in tries] == [0, 1]
    assert all(r["seed"] == 100 and r["target"] == 0.1 and r["test"] is None for r in tries)
    winner = max(tries, key=lambda r: r["validation"])["setting_number"]
    final = [json.loads(p.read_text()) for p in sorted(tmp_path.glob("tiny/narrow/size*.json"))]
    assert [(r["target"], r["seed"]) for r in final] == [(0.2, 0), (0.2, 1), (0.5, 0), (0.5, 1)]
    assert {r["setting_number"] for r in final} == {winner}
    assert final[0]["params_dense"] == 12 * 32 + 32 + 32 * 24 + 24 + 24 * 10 + 10 == DENSE_SIZE
    assert all(0 <= r["test"] <= 1 and r["size"] <= r["target"] for r in final)
    assert final[0]["macs_dense"] == 12 * 32 + 32 * 24 + 24 * 10
    assert (
        final[0]["epoch_seconds"] == [0.5] * 6
        and final[0]["train_seconds"] > 0
        and final[0]["latency_slim_ms_batch_64"] > 0
    )
    assert len(list(tmp_path.glob("tiny/dense/sizedense-seed*.json"))) == 2
    assert any("[4/6]" in text and "left" in text for text in said)


def test_finished_runs_are_not_done_again(tmp_path):
    runner.run(plan(tmp_path, (NARROW,), seeds=(0,)), lambda text: None)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/*.json")}
    lost = tmp_path / "tiny" / "narrow" / "size0.5-seed0.json"
    lost.unlink()
    runner.run(plan(tmp_path, (NARROW,)), lambda text: None)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/*.json")}
    assert len(before) == 4 and len(after) == 6
    assert [path for path in before if after[path] != before[path]] == [lost]


def test_a_run_with_another_setting_is_done_again(tmp_path):
    runner.run(plan(tmp_path, (NARROW,), seeds=(0,)), lambda text: None)
    changed = replace(NARROW, settings=({"less": 0}, {"less": 2}))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("tiny/narrow/try*.json")}
    runner.run(plan(tmp_path, (changed,), seeds=(0,)), lambda text: None)
    assert [path.name for path in before if path.stat().st_mtime_ns != before[path]] == [
        "try1.json"
    ]


def test_a_failing_method_is_recorded_and_the_others_go_on(tmp_path):
    said = []
    runner.run(plan(tmp_path, (BROKEN, NARROW), seeds=(0,)), said.append)
    broken = json.loads((tmp_path / "tiny/broken/try0.json").read_text())
    assert broken["status"] == "failed" and broken["error"] == "RuntimeError: no such operator"
    assert broken["traceback"].splitlines()[-1].startswith("test_frontier.py:")
    assert not list(tmp_path.glob("tiny/broken/size*"))
    assert len(list(tmp_path.glob("tiny/narrow/size*"))) == 2
    assert any("no setting came to anything" in text for text in said)
    text = report.report(tmp_path, tmp_path / "to")
    assert "- broken could not run: RuntimeError: no such operator" in text


def test_failed_runs_are_done_again_when_asked(tmp_path):
    broken = replace(NARROW, train=breaks)
    runner.run(plan(tmp_path, (broken,), seeds=(0,)), lambda text: None)
    runner.run(plan(tmp_path, (NARROW,), seeds=(0,)), lambda text: None)
    assert not list(tmp_path.glob("tiny/narrow/size*"))
    runner.run(plan(tmp_path, (NARROW,), seeds=(0,), retry=True), lambda text: None)
    assert len(list(tmp_path.glob("tiny/narrow/size*"))) == 2


def test_a_process_that_dies_leaves_a_failed_record(tmp_path):
    job = record.Job("tiny", "narrow", 0, 0.5, 0)
    found = runner.in_subprocess(plan(tmp_path, (NARROW,)), job)
    assert found["status"] == "failed" and found["error"].startswith("the process ended with")
    assert "KeyError" in found["traceback"]
    assert json.loads(job.path(tmp_path).read_text()) == found


def test_a_method_can_have_an_interpreter_of_its_own(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho not one of yours\nexit 3\n")
    python.chmod(0o755)
    job = record.Job("tiny", "narrow", 0, 0.5, 0)
    made = plan(tmp_path / "out", (NARROW,), pythons={"narrow": str(python)})
    found = runner.in_subprocess(made, job)
    assert found["error"] == "the process ended with status 3"
    assert found["traceback"] == "not one of yours\n"


def test_a_network_that_diverged_is_a_failure():
    task = replace(tiny(), metric="perplexity")
    model = task.make_model(0)
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    with pytest.raises(FloatingPointError, match="validation part is nan"):
        record.judged(task, 0, Outcome(model, Clock()), 1.0, True)


def trial(number: int, size: float, validation: float, target: float | None = 0.1) -> dict:
    return {
        "status": "ok",
        "setting_number": number,
        "size": size,
        "validation": validation,
        "target": target,
    }


def test_a_try_that_misses_its_size_does_not_win():
    tries = [trial(0, 0.099, 0.90), trial(1, 0.3, 0.99), trial(2, 0.109, 0.92)]
    assert runner.choose(tries, True) == 2
    assert runner.choose(tries, False) == 0
    assert runner.choose([trial(0, 0.3, 0.9), trial(1, 0.2, 0.5)], True) == 1
    assert runner.choose([trial(0, 1.0, 0.9, None), trial(1, 1.0, 0.95, None)], True) == 1
    broken = {"status": "failed", "setting_number": 0, "target": 0.1}
    assert runner.choose([broken], True) is None


def test_tries_of_several_seeds_have_records_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setitem(record.TUNING_SEEDS, "tiny", (100, 101))
    jobs = plan(tmp_path, (NARROW,)).tuning_jobs()
    assert {job.seed for job in jobs} == {100, 101}
    assert len({job.path(tmp_path) for job in jobs}) == len(jobs) == 2 * len(NARROW.settings)


def test_a_try_is_judged_by_its_mean_over_seeds():
    lucky = [trial(0, 0.1, 0.95), trial(0, 0.1, 0.80), trial(1, 0.1, 0.88), trial(1, 0.1, 0.89)]
    assert runner.choose(lucky, True) == 1
    broken = {"status": "failed", "setting_number": 1, "target": 0.1}
    assert runner.choose([*lucky, broken], True) == 0


def test_the_report_has_every_method_and_a_csv_line_for_each_final_run(tmp_path):
    out, to = tmp_path / "out", tmp_path / "to"
    ours = replace(NARROW, name="dualprox_narrow")
    loose = replace(NARROW, name="loose", unstructured=True, caveat="counts nonzeros")
    runner.run(plan(out, (DENSE, NARROW, ours, loose)), lambda text: None)
    text = report.report(out, to)
    assert text == (to / "frontier.md").read_text()
    rows = list(csv.DictReader((to / "frontier.csv").read_text().splitlines()))
    assert len(rows) == 2 + 3 * 4
    dense = [float(row["test"]) for row in rows if row["method"] == "dense"]
    assert f"| dense | {50 * sum(dense):.2f} ({100 * min(dense):.2f} to" in text
    assert "| loose * |" in text and "- * loose: counts nonzeros." in text
    assert "best peer there, between its points: narrow" in text
    assert (to / "tiny.png").read_bytes().startswith(b"\x89PNG")
    # Whose runs were made elsewhere are told apart.
    records = sorted(out.rglob("*.json"))
    moved = json.loads(records[0].read_text())
    here = moved["environment"]["cpu"]
    moved["environment"]["cpu"] = "another CPU"
    records[0].write_text(json.dumps(moved))
    foot = report.report(out, to).splitlines()[-1]
    assert f"{len(records) - 1} on {here} with" in foot and "1 on another CPU with" in foot


def test_a_report_of_nothing_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="--out must hold records of runs"):
        report.report(tmp_path, tmp_path / "to")


def point(size, mean):
    return Point(size, size, mean, mean, mean, 1, size)


def test_curves_are_straight_in_log_size_and_end_where_they_end():
    curve = [point(0.4, 0.8), point(0.1, 0.6)]
    assert at(curve, 0.2) == pytest.approx(0.7)
    assert at(curve, 0.1) == pytest.approx(0.6) and at(curve, 0.4) == pytest.approx(0.8)
    assert at(curve, 0.098) == pytest.approx(0.6) and at(curve, 0.411) == pytest.approx(0.8)
    assert at(curve, 0.096) is None and at(curve, 0.413) is None and at([], 0.2) is None


def test_the_envelope_is_the_best_curve_at_every_size():
    curves = {"a": [point(0.01, 0.9), point(1.0, 0.9)], "b": [point(0.1, 0.8), point(1.0, 1.0)]}
    assert best(curves, 0.05, True) == ("a", pytest.approx(0.9))
    assert best(curves, 0.5, True) == ("b", pytest.approx(0.8 + 0.2 * (1 + math.log10(0.5))))
    assert best(curves, 0.2, False) == ("b", pytest.approx(0.8 + 0.2 * math.log10(2)))
    assert best(curves, 2.0, True) is None
    edge = envelope(curves, True)
    assert edge[0] == (0.01, pytest.approx(0.9)) and edge[-1] == (1.0, pytest.approx(1.0))
    assert min(value for _, value in edge) == pytest.approx(0.9)
    # The curves cross where b is at 0.9: halfway between 0.1 and 1 on the log scale.
    assert max(size for size, value in edge if value < 0.9001) < 10**-0.49


def test_rivals_are_the_peers_of_the_same_kind(tmp_path):
    curves = {name: [] for name in ("dense", "dualprox_ramda", "rigl", "tp_magnitude")}
    assert list(report.rivals(curves)) == ["rigl", "tp_magnitude"]
    ours = replace(NARROW, name="dualprox_narrow")
    loose = [replace(m, name=f"{m.name}_loose", unstructured=True) for m in (ours, NARROW)]
    runner.run(plan(tmp_path, (DENSE, NARROW, ours, *loose)), lambda text: None)
    lines = report.report(tmp_path, tmp_path / "to").splitlines()
    found = {line.split()[1]: line.split()[-2] for line in lines if "best peer there" in line}
    assert found == {"dualprox_narrow": "narrow", "dualprox_narrow_loose": "narrow_loose"}
    records = report.records_in(tmp_path)
    by_size, by_macs, by_zeros = (
        set(axes.get_legend_handles_labels()[1]) for axes in report.figure(records).axes
    )
    assert by_size == {"dense", "best peer", "narrow", "dualprox_narrow"}
    assert by_macs == by_size - {"best peer"}
    assert by_zeros == {"dense", "best peer", "narrow_loose", "dualprox_narrow_loose"}


def test_bisection_finds_the_largest_size_within_the_target():
    asked = []

    def size_at(knob):
        asked.append(knob)
        return max(0.0, 1 - knob) ** 2

    knob = largest_within(size_at, 0.25, 0.0, 1.0, steps=15)
    assert (1 - knob) ** 2 <= 0.25 and knob == pytest.approx(0.5, abs=1e-4)
    assert len(asked) == 15
    assert largest_within(lambda knob: 1.0, 0.25, 0.0, 1.0) == 1.0


@pytest.mark.parametrize("epochs", [3, 7, 8, 10, 12])
def test_shares_of_epochs_add_up(epochs):
    for shares in ((0.3, 0.3, 0.4), (0.2, 0.8, 0.0), (0.5, 0.5)):
        parts = split_epochs(epochs, *shares)
        assert sum(parts) == epochs
        assert all((part > 0) == (share > 0) for part, share in zip(parts, shares, strict=True))


def test_loaders_give_the_same_epochs_for_the_same_seed():
    examples = Examples(torch.arange(10), torch.arange(10))
    one, other, third = (Loader(examples, 3, seed, torch.Tensor.float) for seed in (4, 4, 5))
    first = [y.tolist() for _, y in one]
    assert len(one) == 3 and all(len(batch) == 3 for batch in first)
    assert len({place for batch in first for place in batch}) == 9
    assert first == [y.tolist() for _, y in other] != [y.tolist() for _, y in third]
    assert [y.tolist() for _, y in one] == [y.tolist() for _, y in other] != first
    assert len(Loader(examples, 3, 0, torch.Tensor.float, batches=2)) == 2


def test_parts_do_not_share_examples():
    examples = Examples(torch.arange(100), torch.arange(100))
    parts = divide(examples, 60, 20, 20)
    places = [set(part.x.tolist()) for part in parts.values()]
    assert [len(part) for part in places] == [60, 20, 20] and len(set.union(*places)) == 100
    apart = divide(examples, 60, 20, Examples(torch.ones(5), torch.ones(5)))
    assert len(apart["test"].x) == 5 and len(apart["train"].x) == 60
    assert not set(apart["train"].x.tolist()) & set(apart["validation"].x.tolist())


def test_evaluation_counts_and_puts_the_mode_back():
    task = tiny()
    model = task.make_model(0).train()
    x, y = task.parts["test"].x.double(), task.parts["test"].y
    scores = model.double()(x).detach()
    model.float()
    assert task.evaluate(model, "test") == pytest.approx(float((scores.argmax(1) == y).sum()) / 200)
    assert model.training
    log_p = torch.log_softmax(scores, 1)[torch.arange(200), y]
    told = replace(task, metric="perplexity").evaluate(model, "test")
    assert told == pytest.approx(math.exp(-float(log_p.mean())), rel=1e-5)


def test_networks_have_their_published_sizes():
    assert parameters(mlp(784, (512, 256), 10)) == 535_818
    model = transformer(96, 64).eval()
    width, tokens = 128, 96
    block = 4 * (width * width + width) + 8 * width * width + 5 * width + 4 * width
    assert parameters(model) == 2 * block + (tokens + 64) * width + 2 * width + (width + 1) * tokens
    text = torch.randint(96, (2, 64), generator=torch.Generator().manual_seed(0))
    changed = text.clone()
    changed[:, 40:] = 0
    with torch.no_grad():
        assert torch.equal(model(text)[:, :40], model(changed)[:, :40])
        assert not torch.equal(model(text)[:, 40:], model(changed)[:, 40:])


def test_windows_of_text_are_followed_by_the_next_token():
    found = windows(torch.arange(14), 4)
    assert found.x.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert torch.equal(found.y, found.x + 1)


def test_dense_training_learns_and_follows_a_cosine_to_zero():
    task, rates = tiny(), []
    model = task.make_model(0)
    opt = make_optimizer(task.recipes[0], model)
    clock, before = Clock(), task.evaluate(model, "test")
    look = lambda: rates.append(opt.param_groups[0]["lr"])  # noqa: E731
    train(task, model, task.loader(0), 6, opt, clock, before_step=look)
    assert task.evaluate(model, "test") > max(0.8, before)
    assert len(clock.epochs) == 6 and len(rates) == 120
    assert rates[0] == 0.1 and rates[60] == pytest.approx(0.05) and rates[-1] < 1e-4


def test_torch_pruning_comes_as_near_as_it_can_to_a_size_out_of_its_reach():
    """It prunes nothing at a ratio at which a layer would lose everything."""
    pytest.importorskip("torch_pruning")
    task = tiny()
    model = task.make_model(0)
    least = parameters(pruned(task, model, 1e-4, "mean"))
    assert least < 0.2 * DENSE_SIZE
    assert least <= parameters(pruned(task, model, 0.2, "mean")) <= 0.2 * DENSE_SIZE


def test_training_that_diverges_says_when():
    task = tiny()
    model = task.make_model(0)
    opt = make_optimizer(Recipe("sgd", 1e30, 0.0), model)
    with pytest.raises(FloatingPointError, match="after epoch 1 of 6"):
        train(task, model, task.loader(0), 6, opt, Clock())


@pytest.mark.parametrize("name", ["magnitude_unstructured", "rigl"])
def test_unstructured_methods_meet_the_target_exactly(name):
    task, method = tiny(), METHODS[name]
    outcome = method.train(task, 0, 0.3, method.settings[0])
    weights = sum(int((p != 0).sum()) for p in weights_of(outcome.model).values())
    assert outcome.nonzero is not None
    assert outcome.nonzero == nonzero(outcome.model) == weights + 32 + 24 + 10
    assert 0.29 < outcome.nonzero / DENSE_SIZE <= 0.3
    assert weights <= budget(outcome.model, 0.3)
    assert task.evaluate(outcome.model, "test") > 0.6


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.filterwarnings("ignore")
def test_peers_make_a_smaller_network_that_has_learned(name):
    pytest.importorskip(PEERS[name], exc_type=ImportError)
    task, method = tiny(), METHODS[name]
    outcome = method.train(task, 0, 0.4, method.settings[0])
    assert 0.2 < parameters(outcome.model) / DENSE_SIZE <= 0.41
    assert task.evaluate(outcome.model, "test") > 0.6
    assert len(outcome.clock.epochs) == task.epochs


def test_all_methods_offer_the_same_number_of_settings():
    peers = [method for name, method in METHODS.items() if not name.startswith("dualprox")]
    assert {len(method.settings) for method in peers} == {5}
    assert all(len({str(s) for s in method.settings}) == 5 for method in peers)
