import json
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from dualprox.lab import checkpoints, settings, specs, train
from dualprox.lab.cli import main
from dualprox.lab.recipes import RECIPES

SHORT = ["--set", "epochs=3", "milestones=1,2", "model.hidden=12", "baseline=none"]


pytestmark = pytest.mark.usefixtures("torch_as_before")


def spawn(*args, **kwargs):
    return subprocess.Popen(
        [sys.executable, "-m", "dualprox", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_its_json(name):
    run = RECIPES[name]()
    assert run.recipe == name and RECIPES[name].__doc__
    assert settings.from_json(json.loads(json.dumps(settings.to_json(run)))) == run
    if run.baseline:
        assert run.baseline in RECIPES


def test_set_reaches_every_typed_field():
    run = settings.with_settings(
        RECIPES["digits_mlp_ramda"](),
        [
            "seed=3",
            "optimizer.lr=0.5",
            "penalty.strength=2e-3",
            "penalty.size_weighted=false",
            "milestones=4,9",
            "model.hidden=16",
            "baseline=none",
        ],
    )
    assert (run.seed, run.optimizer.lr, run.milestones) == (3, 0.5, (4, 9))
    assert run.model == specs.MlpSpec(hidden=(16,))
    assert run.penalty == replace(
        RECIPES["digits_mlp_ramda"]().penalty,  # pyright: ignore
        strength=2e-3,
        size_weighted=False,
    )
    assert run.baseline is None


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("epocs=3", "epocs is not a field of the run; did you mean epochs?"),
        ("optimizer.learning=1", "optimizer.learning is not a field of the run; did you mean"),
        ("recipe=x", "recipe is not a field"),
        ("epochs=many", "epochs must be a whole number, got 'many'"),
        ("epochs=0", "epochs must be an int >= 1, got 0"),
        ("epochs=1", "milestones must be increasing ints between 1 and epochs - 1 = 0"),
        ("optimizer.lr=fast", "optimizer.lr must be a number, got 'fast'"),
        ("optimizer=sgd", "optimizer must be"),
        ("penalty.strength=-1", "strength must be a finite number >= 0, got -1.0"),
        ("penalty.size_weighted=2", "penalty.size_weighted must be true or false, got '2'"),
        ("optimizer.momentum=1.0", "momentum must be in [0, 1), got 1.0"),
        ("baseline=digits_mlp", "baseline must be the name of a recipe or none, got 'digits_mlp'"),
        ("data=imagenette", "data must be one of digits, mnist, fashion_mnist, cifar10, "),
        ("data=mnist", "data_dir must be a folder that holds mnist/train-images-idx3-ubyte.gz and"),
        ("data=fsdd", "model must be Conv1dSpec for data=fsdd, got MlpSpec(hidden=(256, 128))"),
        ("augment=true", "augment must be false for data=digits, got True"),
        ("model.hidden=0", "hidden must be ints >= 1, got (0,)"),
        ("epochs", "--set takes field=value, got 'epochs'"),
    ],
)
def test_bad_settings_cost_one_line_and_leave_nothing(assignment, message, tmp_path, capsys):
    assert main(["train", "--out", str(tmp_path / "run"), "--set", assignment]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "digits_mlp_rmd"], "did you mean digits_mlp_rmda?"),
        (["train", "--resume", "nowhere"], "nowhere is not a run folder: it has no config.json"),
        (["train", "--resume", "x", "--seed", "1"], "--resume takes everything from its folder"),
        (["train", "--seed", "-1"], "seed must be an int >= 0, got -1"),
        (["show", "nowhere"], "'nowhere' is neither a run folder nor a recipe or table"),
    ],
)
def test_other_mistakes_cost_one_line_too(args, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    assert message in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_run_folder_holds_what_it_promises(tmp_path, capsys):
    folder = tmp_path / "run"
    args = ["train", "--out", str(folder), "--set", "epochs=3", "milestones=1,2", "model.hidden=12"]
    assert main(args) == 0
    printed = capsys.readouterr().out
    assert "weighted group sparsity" in printed and "dead input pixels" in printed
    for name in ("config.json", "metrics.jsonl", "checkpoints", "model.safetensors"):
        assert (folder / name).stat().st_size and (folder / "dense" / name).stat().st_size
    for name in ("training.png", "pixels.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    summary = json.loads((folder / "summary.json").read_text())
    assert {
        "val_accuracy",
        "dense_val_accuracy",
        "weighted_group_sparsity",
        "group_sparsity",
        "identified_epoch",
        "train_seconds",
    } <= summary.keys()
    assert not [p for p in folder.rglob("*") if p.name.endswith(".tmp")]
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in metrics] == [1, 2, 3]
    weights = load_file(folder / "model.safetensors")
    dead = (weights["fc1.weight"] == 0).all(dim=0).nonzero().flatten().tolist()
    assert dead and dead == summary["dead_inputs"]["fc1"]
    last, before = checkpoints.listed(folder)
    assert torch.load(last, weights_only=True)["epoch"] == 3
    assert torch.load(before, weights_only=True)["epoch"] == 2

    assert main(["train", "--out", str(folder)]) == 2
    assert "is not empty; continue it with --resume" in capsys.readouterr().err
    assert main(["train", "--resume", str(folder)]) == 0
    assert "is finished already" in capsys.readouterr().out
    assert main(["show", str(folder)]) == 0
    assert "digits_mlp_ramda" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: [path.write_bytes(b"junk") for path in checkpoints.listed(f)],
            "is whole: epoch-3-step-0-",
        ),
        (
            lambda f: (f / "metrics.jsonl").write_text("{}\n"),
            "metrics.jsonl has 1 epochs, the last checkpoint beside it 3",
        ),
        (lambda f: (f / "timing.jsonl").write_text("{\n"), "timing.jsonl is damaged"),
        (
            lambda f: [path.unlink() for path in checkpoints.listed(f)],
            "has 3 epochs, the last checkpoint beside it 0",
        ),
        (lambda f: (f / "config.json").write_text("{"), "is damaged"),
        (lambda f: (f / "config.json").write_text('{"a": 1}'), "not a run of this version"),
        (
            lambda f: (f / "config.json").write_text(
                (f / "config.json").read_text().replace('"seed": 0', '"seed": 1')
            ),
            "belongs to another run",
        ),
    ],
)
def test_a_damaged_folder_is_refused_and_left_as_it_is(damage, message, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["train", "--out", str(folder), *SHORT]) == 0
    (folder / "summary.json").unlink()
    damage(folder)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert main(["train", "--resume", str(folder)]) == 2
    assert message in capsys.readouterr().err
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_a_damaged_summary_is_not_shown(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["train", "--out", str(folder), *SHORT]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "params_dense": {}}))
    assert main(["show", str(folder)]) == 2
    assert "summary.json is damaged: TypeError" in capsys.readouterr().err


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this CPU keeps subnormal numbers")
@pytest.mark.parametrize("threads", [1, 2])
def test_subnormal_numbers_of_dead_groups_do_not_slow_a_run_down(threads):
    """At momentum 0.5 a dead group of the iterate is subnormal after some 126 steps."""
    program = (
        "import torch\n"
        "from dualprox.lab import settings, training\n"
        "from dualprox.lab.recipes import RECIPES\n"
        f"fields = ['threads={threads}', 'model.hidden=', 'baseline=none']\n"
        "run = settings.with_settings(RECIPES['digits_mlp_ramda'](), fields)\n"
        "training.Training(run)\n"
        "tiny = torch.full((1 << 20,), 1e-38)\n"
        "print(int((tiny * 1e-3).count_nonzero()))\n"
    )
    printed = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert printed == "0\n"


def test_a_loss_that_is_not_finite_stops_the_run_with_the_place(tmp_path, capsys):
    args = ["train", "digits_mlp_prox_sgd", "--out", str(tmp_path / "run"), *SHORT]
    assert main([*args, "optimizer.lr=1e30"]) == 1
    assert "in epoch 1, step" in capsys.readouterr().err


def test_a_refit_holds_the_structure_of_its_first_epoch(tmp_path):
    run = settings.with_settings(
        RECIPES["digits_mlp_ramda_refit"](),
        ["epochs=6", "milestones=2,4", "model.hidden=12", "baseline=none"],
    )
    train.start(run, tmp_path)
    train.go_on(tmp_path, lambda run, row: None)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[3]["group_sparsity"] == rows[4]["group_sparsity"] == rows[5]["group_sparsity"] > 0


@pytest.mark.parametrize("field", ["milestones=()", "penalty=none"])
def test_a_refit_needs_a_penalty_and_a_milestone(field):
    with pytest.raises(ValueError, match="refit must be false without a penalty and a milestone"):
        settings.with_settings(RECIPES["digits_mlp_ramda_refit"](), [field])


@pytest.mark.parametrize("name", ["digits_mlp_ramda", "digits_mlp_ramda_refit"])
def test_a_run_stopped_between_its_files_ends_with_the_same_bits(tmp_path, name):
    """Metrics of an epoch are written before its checkpoint: lines beyond that are cut."""
    run = settings.with_settings(
        RECIPES[name](),
        ["epochs=4", "milestones=1,2", "model.hidden=12", "baseline=none"],
    )

    def stop(run, row):
        if row["epoch"] == 3:
            raise KeyboardInterrupt

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train.start(run, whole)
    train.go_on(whole, lambda run, row: None)
    train.start(run, stopped)
    with pytest.raises(KeyboardInterrupt):
        train.go_on(stopped, stop)
    with open(stopped / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 4, "val_accuracy": 0.0}\n')
    torch.manual_seed(12345)
    train.go_on(stopped, lambda run, row: None)
    for name in ("metrics.jsonl", "model.safetensors"):
        assert (whole / name).read_bytes() == (stopped / name).read_bytes()
    assert len((whole / "metrics.jsonl").read_text().splitlines()) == 4


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_go_on_and_does(tmp_path):
    folder = tmp_path / "run"
    args = ["train", "--out", folder, "--set", "epochs=400", "model.hidden=12", "baseline=none"]
    # A shell's background job ignores SIGINT, and so would its children: undo that.
    process = spawn(*args, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130
    assert f"go on with: dualprox train --resume {folder}" in error
    assert "Traceback" not in error
    show = spawn("show", folder)
    assert "unfinished" in show.communicate()[0]
    again = spawn("train", "--resume", folder)
    assert again.stdout is not None
    first = again.stdout.readline()
    again.kill()
    again.communicate()
    assert "epoch" in first


@pytest.mark.slow
def test_the_default_recipe_keeps_its_promise(tmp_path):
    """At least half of the weights in dead groups, at most 1.5 points below dense."""
    folder = tmp_path / "run"
    assert main(["train", "--out", str(folder)]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["weighted_group_sparsity"] >= 0.5
    assert summary["dense_val_accuracy"] >= 0.96
    assert summary["val_accuracy"] >= summary["dense_val_accuracy"] - 0.015
    assert summary["identified_epoch"] <= summary["epochs"]


def test_list_show_doctor_and_help_work(capsys):
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in RECIPES)
    assert main(["show", "digits_mlp_ramda"]) == 0
    assert settings.from_json(json.loads(capsys.readouterr().out)) == RECIPES["digits_mlp_ramda"]()
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "native" in printed and "triton" in printed and "self-check    ok" in printed
    for args in (["--help"], ["train", "--help"]):
        with pytest.raises(SystemExit) as stopped:
            main(args)
        assert stopped.value.code == 0
        assert "dualprox train" in capsys.readouterr().out


def test_importing_dualprox_costs_little_beside_torch():
    """The bound of 0.3 s of processor time, so that a busy machine does not matter."""
    program = "import torch, time; t = time.process_time(); import dualprox; "
    program += "print(time.process_time() - t)"
    times = [
        float(subprocess.check_output([sys.executable, "-c", program], text=True)) for _ in range(3)
    ]
    assert min(times) < 0.3


def test_whoever_reads_the_output_may_stop():
    """As `head` does."""
    listing = spawn("list")
    assert listing.stdout is not None and listing.stderr is not None
    listing.stdout.close()
    errors = listing.stderr.read()
    listing.stderr.close()
    assert listing.wait(timeout=60) == 0 and errors == ""
