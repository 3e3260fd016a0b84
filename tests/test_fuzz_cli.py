"""The command line given anything: it works, or says in a few words why not and leaves nothing."""

import os
import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cli_runs import check_end, run, tree, without_work
from dualprox.lab.experiments.published import TABLES
from dualprox.lab.recipes import RECIPES
from dualprox.lab.settings import field_names

pytestmark = pytest.mark.usefixtures("torch_as_before")
PROMISE = pytest.mark.promise(
    "input",
    "a command line works, or ends with exit code 2 and a few words, without a traceback and with "
    "every file as it was",
    "command lines",
)

FIELDS = sorted({name for recipe in RECIPES.values() for name in field_names(recipe())})
VALUES = [
    "0", "1", "2", "-1", "1.5", "-0.5", "nan", "inf", "-inf", "1e400", "1e-400", "9" * 30,
    "9" * 5000,
    "", "none", "null", "true", "false", "1,2", "2,1", "1,", ",", "(1)", "[1,2,x]", "x", "\u0663",
    "é" * 20, "\udc80", "\n", "x" * 3000, "cpu", "cuda", "cuda:0", "cuda:-1", "meta", "cosine",
    "linear", "origin", "published", "bfloat16", "float16", "digits", "mnist", "cifar10",
    "wikitext-2", "ljspeech", "imagenet", "fsdd", "1_000", " 3", "0x10", "1e3", "=", "a=b",
    "2147483648", "100000", "../..", "data", "loop", "file.txt", "uniform", "0.5,0.9",
]  # fmt: skip
PATHS = [
    "new", "new/deep/er", "file.txt", "file.txt/under", "full", "loop", "loop/under", "empty", ".",
    "", "..", "/", "/dev/null", "/proc/x", "x" * 300, "a/" * 3000, "nul\0byte", "\udc80", "run",
    "damaged", "data", "é ü", "-", "--", "$HOME", "~", "*",
]  # fmt: skip
NUMBERS = ["0", "1", "2", "-1", "3.5", "nan", "inf", "x", "", "9" * 25, "9" * 5000, "0.5", "1e-3"]
RECIPE = [*RECIPES, *TABLES, "digits", "x" * 500, "", "\udc80", "-", "logistic_*"]
QUESTIONS = ["step", "subproblem", "nuclear", "memory", "scale", "table", "x"]


def option(*names, values=None):
    """An option, with a value if it takes one."""
    if values is None:
        return st.sampled_from(names).map(lambda name: [name])
    return st.tuples(st.sampled_from(names), st.sampled_from(values)).map(list)


ASSIGNMENT = st.one_of(
    st.tuples(st.sampled_from(FIELDS), st.sampled_from(VALUES)).map("=".join),
    st.tuples(st.sampled_from(FIELDS), st.text(max_size=8)).map("=".join),
    st.sampled_from(["x=1", "optimizer.x=1", "penalty=1", "=", "", "a.b.c.d=1", ".=1", "epochs"]),
    st.text(max_size=12),
)
SET = st.lists(ASSIGNMENT, min_size=1, max_size=3).map(lambda some: ["--set", *some])
OUT = option("--out", values=PATHS)
NAME = st.sampled_from(RECIPE).map(lambda name: [name])
PATH = st.sampled_from(PATHS).map(lambda name: [name])
SEED = option("--seed", values=NUMBERS)
RESUME = option("--resume", values=PATHS)
ANY = st.text(max_size=10).map(lambda text: [text])


def command(*words, pieces):
    lines = st.lists(st.one_of(*pieces, ANY), max_size=5)
    return lines.map(lambda found: [*words, *(word for piece in found for word in piece)])


COMMANDS = {
    "train": command("train", pieces=[NAME, OUT, SET, SEED, RESUME]),
    "train digits": command("train", "digits_mlp_ramda", pieces=[OUT, SET, SEED]),
    "fit": command(
        "fit", "digits_mlp_ramda",
        pieces=[
            OUT, SET, SEED, option("--params", "--macs", "--latency-ms", values=NUMBERS),
            option("--weighted-group-sparsity", "--tolerance", values=NUMBERS),
            option("--epochs", "--batch-size", values=NUMBERS), option("--select-inputs"),
        ],
    ),
    "path": command(
        "path",
        pieces=[
            NAME, OUT, SET, SEED, RESUME,
            option("--strengths", values=[*NUMBERS, "1,2", ",", "2,2"]),
            option("--from", "--to", "--share", "--refit", values=NUMBERS),
        ],
    ),
    "reproduce": command(
        "reproduce",
        pieces=[
            NAME, OUT, SET, option("--rows", values=RECIPE), option("--exact"),
            option("--seeds", values=[*NUMBERS, "1,2", "1,1", ","]),
        ],
    ),
    "report": command("report", pieces=[PATH, OUT, option("--optimum")]),
    "study": command(
        "study", "planted",
        pieces=[
            OUT, option("--epochs", values=NUMBERS), option("--seeds", values=[*NUMBERS, "1,1"]),
            option("--problems", values=["logistic", "convolutions", "x"]),
        ],
    ),
    "shrink": command(
        "shrink",
        pieces=[PATH, OUT, option("--round-to", values=NUMBERS), option("--select-inputs")],
    ),
    "show": command("show", pieces=[PATH, NAME]),
    "list": command("list", pieces=[PATH]),
    "bench": st.sampled_from(QUESTIONS).flatmap(
        lambda question: command(
            "bench", question,
            pieces=[
                option("--device", values=VALUES), option("--threads", "--seconds", values=NUMBERS),
                option("--repeats", values=NUMBERS), option("--models", values=["tiny", "x", ""]),
                option("--json", "--png", "--results", values=PATHS), option("--quick"),
            ],
        )
    ),
    "doctor": command("doctor", pieces=[PATH, OUT]).filter(lambda argv: len(argv) > 1),
    "anything": st.lists(st.text(max_size=12), max_size=6),
}  # fmt: skip


# Before the others, for which no command works.
def test_a_target_that_cannot_be_reached_leaves_no_folder(tmp_path, capsys):
    from dualprox.lab.cli import main

    argv = ["fit", "digits_mlp_ramda", "--params", "1", "--epochs", "2", "--out"]
    assert main([*argv, str(tmp_path / "deep" / "fit")]) == 2
    assert "cannot be reached" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
    (tmp_path / "there").mkdir()
    assert main([*argv, str(tmp_path / "there")]) == 2
    assert not any((tmp_path / "there").iterdir())


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A folder to run in: files, folders, a link to itself, and a run that begins."""
    folder = tmp_path_factory.mktemp("ground")
    for name in ("full", "empty", "damaged", "data/mnist"):
        (folder / name).mkdir(parents=True)
    for name in ("file.txt", "full/precious.txt", "damaged/config.json", "data/mnist/x"):
        (folder / name).write_text("precious {")
    (folder / "loop").symlink_to("loop")
    here, threads = os.getcwd(), torch.get_num_threads()
    os.chdir(folder)
    with without_work():
        small = ["--set", "epochs=2", "milestones=1", "model.hidden=4", "baseline=none"]
        assert run(["train", "--out", "run", *small]).code is None
        yield folder
    os.chdir(here)
    torch.set_num_threads(threads)


def obey(argv, ground, known):
    """Run a command line, hold it to the law, and put everything back."""
    end = run(argv)
    check_end(end, known, ground)
    if end.code != 2:
        after = tree(ground)
        assert after.get("full/precious.txt") == b"precious {" == after.get("file.txt"), argv
        for name in sorted(after.keys() - known.keys(), reverse=True):
            path = ground / name
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        for name, content in known.items():
            if isinstance(content, bytes) and after.get(name) != content:
                (ground / name).write_bytes(content)


def fuzz(name, ground, tries, count):
    known = tree(ground)

    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),  # pyright: ignore[reportArgumentType]
    )
    @given(COMMANDS[name])
    def one(argv):
        with tries.one():
            obey(argv, ground, known)

    one()


@PROMISE
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_line_works_or_is_refused(name, ground, tries):
    fuzz(name, ground, tries, 60)


@PROMISE
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", COMMANDS)
def test_thousands_of_command_lines_work_or_are_refused(name, ground, tries):
    fuzz(name, ground, tries, 3000)


@PROMISE
@pytest.mark.parametrize("recipe", [*RECIPES, *(t.rows[0].run.recipe for t in TABLES.values())])
def test_every_field_of_a_recipe_takes_every_text_or_refuses_it(recipe, tries):
    from dualprox.lab.experiments.published import table_with
    from dualprox.lab.settings import with_settings

    table = table_with(recipe)
    row = table.row(recipe) if table else None
    run = RECIPES[recipe]() if row is None else row.run
    rng = random.Random(recipe)
    for field in field_names(run):
        for value in rng.sample(VALUES, 15):
            with tries.one():
                try:
                    with_settings(run, [f"{field}={value}"])
                except ValueError as error:
                    assert field.rpartition(".")[2] in str(error) or "must be" in str(error)
                    assert len(str(error)) < 2000
