import json
import subprocess
from pathlib import Path

import pytest
import torch

import dualprox as dp
from dualprox import timing
from dualprox.lab.bench import (
    check,
    contenders,
    memory,
    readme,
    results,
    scale,
    step,
    subproblem,
    tables,
    workloads,
)
from dualprox.lab.cli import main

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
MODELS = {"step": "tiny,lenet_conv,embedding", "subproblem": "linear_512x784", "nuclear": "512x784"}
TIMES = {"median", "q1", "q3", "samples", "calls"}
PLACE = {"device", "cpu", "cores", "threads", "python", "torch", "dualprox", "commit", "dirty"}


def bench(question, *args, models=None):
    chosen = models or MODELS.get(question)
    return main(["bench", question, "--quick", *(["--models", chosen] if chosen else []), *args])


def result_of(capsys, question, *args, models=None):
    assert bench(question, "--json", "-", *args, models=models) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A git checkout, clean, that the benchmarks take for their own."""

    def git(*args):
        subprocess.run(["git", "-C", str(tmp_path), *args], check=True, capture_output=True)

    git("init")
    (tmp_path / "code.py").write_text("x = 1\n")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "first")
    monkeypatch.setattr(results, "repository", lambda: tmp_path)
    return tmp_path


def test_resnet50_and_the_transformer_have_their_published_sizes():
    resnet = workloads.resnet50()
    assert resnet.parameters == 25_557_032
    shapes = [weight.shape for weight in resnet.weights]
    assert len(shapes) == 161
    assert shapes[0] == (64, 3, 7, 7) and shapes[-2:] == [(1000, 2048), (1000,)]
    assert sum(len(shape) == 4 for shape in shapes) == 53
    assert shapes.count((512, 512, 3, 3)) == 3 and shapes.count((2048, 1024, 1, 1)) == 1
    transformer = workloads.transformer()
    assert transformer.parameters == 12 * (4 * 768 * 769 + 2 * 768 * 3072 + 3840 + 2 * 2 * 768)
    assert [w.axis for w in transformer.weights if len(w.shape) == 1] == [None] * (12 * 10)
    assert workloads.tiny().parameters == 7850 and workloads.tiny().groups == 784


def test_distinct_keeps_every_shape_and_axis_once():
    resnet = workloads.resnet50()
    distinct = resnet.distinct().weights
    assert len({(w.shape, w.axis) for w in distinct}) == len(distinct)
    assert {(w.shape, w.axis) for w in resnet.weights} == {(w.shape, w.axis) for w in distinct}


def test_training_is_the_same_for_all_and_leaves_gradients_alone():
    training, again = (workloads.Training(workloads.tiny(), CPU) for _ in range(2))
    for ours, theirs in zip(training.gradients[1], again.gradients[1], strict=True):
        assert torch.equal(ours, theirs)
    params = training.parameters()
    training.give(params, 3)
    torch.optim.SGD(params, lr=1.0).step()
    assert torch.equal(training.start[0], again.start[0])
    assert torch.equal(training.gradients[1][0], again.gradients[1][0])
    dead = (training.start[0] == 0).all(dim=0).double().mean()
    assert 0.3 < dead < 0.5


def test_contenders_take_turns_and_the_baseline_runs_in_every_round():
    calls = []

    class Steady(timing.Clock):
        def seconds(self, call, calls):
            call()
            return 8.0 if name_of[0] == "slow" else 0.125

    name_of = [""]

    def case(name):
        def run():
            calls.append(name)
            name_of[0] = name

        return timing.Case(run)

    budget = timing.Budget(seconds=1.0, least=5, most=20)
    found = timing.interleave(
        {"base": case("base"), "fast": case("fast"), "slow": case("slow")}, Steady(), budget
    )
    assert found["slow"].samples == 3 and found["slow"].median == 8.0
    assert found["fast"].samples == 8 and found["base"].samples == 8
    rounds = calls[calls.index("slow") + 1 :]
    assert [set(rounds[k : k + 3]) for k in (0, 3)] == [{"base", "fast", "slow"}] * 2


def test_threads_are_set_and_put_back():
    before = torch.get_num_threads()
    with timing.threads(1) as used:
        assert used == torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("question", ["step", "subproblem", "nuclear", "memory", "scale"])
def test_every_result_says_where_it_comes_from(question, tmp_path, capsys):
    data, picture = tmp_path / "result.json", tmp_path / "result.png"
    models = {"step": "tiny", "memory": "tiny"}.get(question)
    assert bench(question, "--json", str(data), "--png", str(picture), models=models) == 0
    printed = capsys.readouterr().out
    assert "QUICK: the times mean nothing" in printed
    result = json.loads(data.read_text())
    assert result["question"] == question and result["settings"]["quick"] is True
    assert result["environment"].keys() >= PLACE
    assert result["environment"]["threads"] == torch.get_num_threads()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["result.json", "result.png"]
    assert all("|" in tables.markdown(table) for table in tables.tables(result))


def test_step_reports_every_contender_with_ratio_and_quality(capsys):
    result = result_of(capsys, "step")
    rows = result["rows"]
    names = [one.name for one in contenders.contenders()]
    assert [row["contender"] for row in rows] == 3 * names
    base = {
        row["workload"]: row["median"] for row in rows if row["contender"] == contenders.BASELINE
    }
    for row in rows:
        if row["missing"]:
            assert row["median"] is None and row["impl"] not in ("eager", "torch", "as published")
            continue
        assert row.keys() >= TIMES and row["q1"] <= row["median"] <= row["q3"]
        assert row["ratio"] == row["median"] / base[row["workload"]]
        ours = row["method"] in contenders.METHODS
        assert (row["quality"] is not None) == (ours and row["workload"] != "embedding")
        if row["quality"] and row["impl"] != "as published":
            assert row["quality"]["support_errors"] == 0
            assert row["quality"]["objective_gap"] < 1e-6
            assert row["quality"]["certificate"] < 1e-4
    kinds = 2 * len(check.PENALTIES) + 1  # nothing to penalize in an embedding
    assert len(result["checks"]) == len(contenders.METHODS) * kinds * 2
    assert all(row["status"] in ("ok", "not here") for row in result["checks"])
    assert [f["workload"] for f in result["figures"]] == ["tiny"]


def test_figures_are_quotients_of_medians_of_the_same_run():
    rows = [
        {"workload": "tiny", "contender": "AdamW fused", "median": 2.0, "missing": None},
        {"workload": "tiny", "contender": "RAMDA native", "median": 3.0, "missing": None},
    ]
    (figure,) = step.figures(rows, "cpu", ("tiny",))
    assert (figure["value"], figure["bound"], figure["met"]) == (1.5, 2.0, True)
    rows[1] |= {"median": None, "missing": "no compiler"}
    (figure,) = step.figures(rows, "cpu", ("tiny",))
    assert (figure["value"], figure["met"], figure["missing"]) == (None, None, "no compiler")
    names = {one.name for one in contenders.contenders()}
    for bound in step.FIGURES:
        assert {bound.contender, bound.against} <= names
        assert set(bound.models) <= set(step.MODELS)


def test_a_wrong_implementation_is_found_and_an_absent_one_named(monkeypatch, capsys):
    def made(groups, impl="eager", **options):
        if impl == "triton":
            raise RuntimeError("no GPU\nand more")
        lr = 1.01e-3 if impl == "native" else 1e-3
        return dp.RAMDA(groups, lr=lr, impl="eager", **options)

    monkeypatch.setattr(check, "METHODS", {"RAMDA": made})
    rows = check.to_rows(check.check(workloads.tiny().shrunk(), CPU))
    assert {row["status"] for row in rows if row["impl"] == "native"} == {"wrong"}
    away = [row for row in rows if row["impl"] == "triton"]
    assert {(row["status"], row["detail"]) for row in away} == {("not here", "no GPU")}
    assert bench("step", "--json", "-", models="tiny") == 1
    said = capsys.readouterr()
    assert "implementations differ from the eager definition" in said.err
    text = "\n".join(map(tables.markdown, tables.tables(json.loads(said.out))))
    assert "support errors" in text and "not here" in text


def test_an_equal_implementation_passes_every_check(monkeypatch):
    def same(method):
        return lambda groups, impl="eager": contenders.METHODS[method](groups, impl="eager")

    monkeypatch.setattr(check, "METHODS", {name: same(name) for name in contenders.METHODS})
    rows = check.to_rows(check.check(workloads.WORKLOADS["lenet_conv"](), CPU))
    assert len(rows) == 4 * len(check.PENALTIES) * 2
    assert {(row["status"], row["largest_difference"]) for row in rows} == {("ok", 0.0)}


@pytest.mark.parametrize("method", contenders.METHODS)
def test_the_subproblem_read_from_the_state_is_the_one_that_was_solved(method):
    found = check.quality(
        lambda groups: contenders.METHODS[method](groups, impl="eager"),
        workloads.Training(workloads.tiny(), CPU),
    )
    assert found.support_errors == 0
    assert found.objective_gap < 1e-8 and found.certificate < 1e-4


@pytest.mark.parametrize("method", contenders.METHODS)
def test_a_grown_up_state_is_that_of_so_many_steps(method):
    training = workloads.Training(workloads.tiny().shrunk(), CPU)
    make = contenders.METHODS[method]
    params, other = training.parameters(), training.parameters()
    walked = make(contenders.param_groups(training.workload, params, contenders.group_lasso))
    for number in range(contenders._AGE):
        training.give(params, number)
        walked.step()
    jumped = make(contenders.param_groups(training.workload, other, contenders.group_lasso))
    contenders.grow_up(jumped, training, other)
    for ours, theirs in zip(other, params, strict=True):
        for name, value in walked.state[theirs].items():
            if isinstance(walked, dp.DualAveraging) and name != "eps":
                torch.testing.assert_close(jumped.state[ours][name], value, rtol=1e-4, atol=1e-9)
        assert jumped.state[ours].keys() == walked.state[theirs].keys()


def test_subproblem_reports_each_solver_at_each_target(capsys):
    rows = result_of(capsys, "subproblem")["rows"]
    solvers = list(dict.fromkeys(row["solver"] for row in rows))
    assert [(row["target"], row["solver"]) for row in rows] == [
        (target, solver) for target in subproblem.TARGETS for solver in solvers
    ]
    for row in rows:
        assert row.keys() >= TIMES and row["reached"] == (row["certificate"] <= row["target"])
        assert row["iterations"] >= 1 and row["objective_gap"] > -1e-6
    assert all(row["reached"] for row in rows if row["solver"] == "Exact")


def test_nuclear_reports_every_route_with_its_error(capsys):
    result = result_of(capsys, "nuclear")
    rows = result["rows"]
    assert rows[0]["contender"] == "torch.linalg.svd" and rows[0]["ratio"] == 1.0
    for row in rows:
        assert row.keys() >= TIMES and row["ratio"] == row["median"] / rows[0]["median"]
        assert row["rank"] == row["above_threshold"] == 3
        assert row["relative_error"] < 1e-4 and abs(row["objective_gap"]) < 1e-4
    (figure,) = result["figures"]
    assert figure["value"] == rows[-1]["ratio"] and figure["met"] == (figure["value"] <= 0.1)


def test_memory_counts_the_state_exactly(capsys):
    result = result_of(capsys, "memory", models="resnet50")
    for row in result["rows"]:
        if row["missing"]:
            continue
        assert row["state_per_parameter"] == row["state_bytes"] / row["parameters"]
        buffers = next(c.buffers for c in contenders.contenders() if c.name == row["contender"])
        extra = row["state_bytes"] - 4 * buffers * row["parameters"]
        assert 0 <= extra <= memory.ALLOWANCE * (row["groups"] + row["tensors"])
        assert row["peak_bytes"] >= 0
    assert result["figures"] and all(figure["met"] for figure in result["figures"])


def test_the_peak_of_a_step_is_what_its_temporaries_take():
    training = workloads.Training(scale.square(512), CPU)
    (fused,) = (c for c in contenders.contenders() if c.name == contenders.BASELINE)
    runner = contenders.Runner(fused, training)
    assert memory.step_peak(runner, CPU) < 4096
    (eager,) = (c for c in contenders.contenders() if c.name == "RAMDA eager")
    runner = contenders.Runner(eager, training)
    assert memory.step_peak(runner, CPU) >= 2 * 4 * 512 * 512


def test_scale_has_three_sweeps_and_their_slopes(capsys):
    result = result_of(capsys, "scale")
    found = {(row["sweep"], row["contender"]) for row in result["rows"]}
    names = [one.name for one in scale.entrants()]
    assert found == {(sweep, name) for sweep in scale.MODELS for name in names}
    lines = {(line["sweep"], line["contender"]) for line in result["slopes"]}
    assert lines >= {("parameters", name) for name in names}
    row = next(row for row in result["rows"] if row["sweep"] == "tensors" and row["size"] == 4)
    assert row["tensors"] == 4


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--device", "tpu"], "--device must be cpu or cuda, got 'tpu'"),
        (["--threads", "0"], "--threads must be a whole number >= 1, got '0'"),
        (["--seconds", "soon"], "--seconds must be a number >= 0, got 'soon'"),
        (["--seconds", "inf"], "--seconds must be a number >= 0, got 'inf'"),
        (["--repeats", "1.5"], "--repeats must be a whole number >= 1, got '1.5'"),
        (["--models", "tiny,vgg"], "--models must be of resnet50, transformer"),
        (["--json", "no/where.json"], "--json must be a file in a folder that exists, got"),
        (["--png", "."], "--png must be a file in a folder that exists, got '.'"),
        (["--commit", "abc"], "--commit goes with --save, got 'abc' alone"),
        (["--quick", "--save"], "--save does not go with --quick"),
    ],
)
def test_mistakes_cost_one_line(args, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "step", *args]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_is_refused_without_a_gpu(capsys):
    assert main(["bench", "step", "--device", "cuda"]) == 2
    assert "--device cuda needs a GPU that torch can use" in capsys.readouterr().err


def test_a_dirty_tree_is_not_stored(tree, capsys):
    (tree / "code.py").write_text("x = 2\n")
    assert main(["bench", "nuclear", "--save"]) == 2
    error = capsys.readouterr().err
    assert "--save needs a clean git tree, code.py differs from the commit" in error
    (tree / "more.py").write_text("")
    assert main(["bench", "nuclear", "--save"]) == 2
    assert "code.py and 1 more differ from" in capsys.readouterr().err
    assert not (tree / "benchmarks").exists()


def test_a_copy_without_git_needs_a_commit(monkeypatch, capsys):
    monkeypatch.setattr(results, "repository", lambda: None)
    assert main(["bench", "nuclear", "--save", "."]) == 2
    assert "give --commit HASH" in capsys.readouterr().err
    assert main(["bench", "nuclear", "--save", "--commit", "abc"]) == 2
    assert "name a folder" in capsys.readouterr().err


def test_a_clean_tree_is_stored_and_the_readme_made_from_it(tree, capsys, monkeypatch):
    monkeypatch.setattr(step, "WORKLOADS", {"tiny": lambda: workloads.tiny().shrunk()})
    args = ["bench", "step", "--models", "tiny", "--seconds", "0", "--repeats", "2", "--save"]
    assert main(args) == 0
    folder = tree / "benchmarks" / "results"
    assert sorted(p.name for p in folder.iterdir()) == ["step-cpu.json", "step-cpu.png"]
    stored = json.loads((folder / "step-cpu.json").read_text())
    assert stored["environment"]["dirty"] is False
    assert stored["environment"]["commit"] == results.commit()
    # What was stored does not make the tree dirty for the next result.
    assert results.changes() == []
    empty = "\n\n".join(f"{begin}\nold\n{end}" for begin, end in readme.MARKS.values())
    (tree / "README.md").write_text(f"# A\n\n{empty}\n\nrest\n")
    capsys.readouterr()
    assert main(["bench", "table", "--write"]) == 0
    text = (tree / "README.md").read_text()
    assert "RAMDA eager" in text and "old" not in text and text.endswith("\n\nrest\n")
    for name, content in readme.blocks(folder).items():
        assert readme.with_block(text, name, content) == text
    assert main(["bench", "table"]) == 0
    assert capsys.readouterr().out.strip() in text


def test_a_file_that_is_no_result_is_refused(tmp_path, capsys):
    (tmp_path / "a.json").write_text("{}")
    assert main(["bench", "table", "--results", str(tmp_path)]) == 2
    assert "must be a stored result" in capsys.readouterr().err
    (tmp_path / "a.json").write_text('{"format": 0}')
    assert main(["bench", "table", "--results", str(tmp_path)]) == 2
    assert "must be a result of format 1, got 0" in capsys.readouterr().err


def test_the_readme_holds_what_the_stored_results_say():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    folder = ROOT / "benchmarks" / "results"
    for name, content in readme.blocks(folder).items():
        assert readme.with_block(text, name, content) == text


def test_ctrl_c_writes_nothing(tmp_path, monkeypatch, capsys):
    def interrupted(settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(step, "run", interrupted)
    assert bench("step", "--json", str(tmp_path / "a.json")) == 130
    assert "stopped; nothing was written" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_help_teaches(capsys):
    for args in (["bench", "--help"], ["bench", "step", "--help"], ["bench", "table", "--help"]):
        with pytest.raises(SystemExit) as stopped:
            main(args)
        assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "dualprox bench step --device cuda" in printed and "--models" in printed
