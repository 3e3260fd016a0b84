"""Damaged files of run folders and of slim networks: read, or refused, and never run."""

import ast
import contextlib
import hashlib
import itertools
import json
import os
import pickle
import random
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import dualprox as dp
from cli_runs import check_end, run, tree, without_work
from dualprox.lab.cli import main
from dualprox.lab.training import Training
from mutations import damaged, damaged_json

pytestmark = pytest.mark.usefixtures("torch_as_before")
PROMISE = pytest.mark.promise(
    "input",
    "a damaged file in the folder of a run, a fit, a path, a table or a slim network is read or "
    "refused with a clear error, and everything stays as it was; nothing in it is run",
    "files",
)
SHORT = ["epochs=2", "milestones=1", "model.hidden=6", "baseline=none"]
ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def stopped_after(epochs):
    """Ctrl-C, after so many epochs of whatever is trained."""
    train_epoch, done = Training.train_epoch, itertools.count()

    def stop(training):
        if next(done) == epochs:
            raise KeyboardInterrupt
        return train_epoch(training)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "train_epoch", stop)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run with its slim network, one that is not finished, a path, a fit, a table."""
    folder = tmp_path_factory.mktemp("made")
    threads = torch.get_num_threads()
    short = ["--set", *SHORT]
    assert main(["train", "--out", str(folder / "run"), *short]) == 0
    with stopped_after(1):
        assert main(["train", "--out", str(folder / "begun"), *short]) == 130
    assert main(["shrink", str(folder / "run")]) == 0
    path = ["path", "digits_mlp_ramda", "--strengths", "2", "--out", str(folder / "path")]
    assert main([*path, *short]) == 0
    with stopped_after(2):
        assert main([*path[:-1], str(folder / "walked"), *short]) == 130
    fit = ["fit", "digits_mlp_ramda", "--params", "0.5", "--epochs", "3"]
    main([*fit, "--out", str(folder / "fit"), "--set", "model.hidden=6"])
    shutil.copytree(folder / "run", folder / "table" / "x-seed1")
    config = {"command": "reproduce", "table": "ramda-table7", "runs": {"x-seed1": {}}}
    (folder / "table" / "config.json").write_text(json.dumps(config))
    torch.set_num_threads(threads)
    return folder


COMMANDS = {
    "show run": ("run", ["show", "run"]),
    "resume run": ("run", ["train", "--resume", "run"]),
    "shrink": ("run", ["shrink", "run", "--out", "slim"]),
    "report": ("run", ["report", "run", "--out", "report"]),
    "show begun": ("begun", ["show", "begun"]),
    "resume begun": ("begun", ["train", "--resume", "begun"]),
    "show path": ("path", ["show", "path"]),
    "resume path": ("path", ["path", "--resume", "path"]),
    "resume walked": ("walked", ["path", "--resume", "walked"]),
    "show fit": ("fit", ["show", "fit"]),
    "show table": ("table", ["show", "table"]),
    "report table": ("table", ["report", "table", "--out", "report"]),
    "reproduce": ("table", ["reproduce", "ramda-table7", "--out", "table"]),
}
# They trace the network, or draw pages of plots.
DEAR = ("shrink", "report", "report table")
IMAGES = (".png", ".html", ".md")


def files_of(folder):
    names = [str(p.relative_to(folder)) for p in sorted(folder.rglob("*")) if p.is_file()]
    return [name for name in names if not name.endswith(IMAGES)]


def changed(name, content, rng):
    """The content damaged as its format can be."""
    if rng.random() < 0.7 and name.endswith(".json"):
        return damaged_json(content.decode(), rng).encode("utf-8", "surrogatepass")
    if rng.random() < 0.7 and name.endswith(".jsonl"):
        lines = content.decode().splitlines()
        place = rng.randrange(len(lines))
        lines[place] = damaged_json(lines[place], rng)
        return "\n".join(lines).encode("utf-8", "surrogatepass")
    return damaged(content, rng)


def obey(argv, ground):
    before = tree(ground)
    with without_work():
        end = run(argv)
    # Of a run that had ended, the plots come before what says so.
    for picture in ground.rglob("*.png"):
        picture.unlink()
    check_end(end, {name: part for name, part in before.items() if name[-4:] != ".png"}, ground)


def fuzz(command, made, ground, tries, count):
    name, argv = COMMANDS[command]
    rng = random.Random(command)
    files = files_of(made / name)
    for _ in range(count):
        shutil.copytree(made / name, ground / name)
        file = ground / name / rng.choice(files)
        file.write_bytes(changed(file.name, file.read_bytes(), rng))
        kept = file.read_bytes()
        with tries.one():
            try:
                obey(argv, ground)
            except BaseException as error:
                raise AssertionError(f"{file}: {kept[:300]!r}") from error
        for path in ground.iterdir():
            shutil.rmtree(path)


@pytest.fixture
def ground(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@PROMISE
@pytest.mark.parametrize("command", COMMANDS)
def test_damaged_folders_are_read_or_refused(command, made, ground, tries):
    fuzz(command, made, ground, tries, 3 if command in DEAR else 12)


@PROMISE
@pytest.mark.exhaustive
@pytest.mark.parametrize("command", COMMANDS)
def test_thousands_of_damaged_folders_are_read_or_refused(command, made, ground, tries):
    fuzz(command, made, ground, tries, 300 if command in DEAR else 2000)


def damaged_values(value, rng):
    """A checkpoint's content with another value somewhere."""
    bad = (None, 5, -1, "x", float("nan"), [], {}, torch.ones(3), torch.ones(()), True)
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {name: part for name, part in value.items() if name != key}
        return {**value, key: damaged_values(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        place = rng.randrange(len(value))
        return [*value[:place], damaged_values(value[place], rng), *value[place + 1 :]]
    return rng.choice(bad)


def checkpoints(folder):
    return sorted(folder.rglob("*.pt"))


@PROMISE
@pytest.mark.parametrize("times", [25, pytest.param(3000, marks=pytest.mark.exhaustive)])
def test_checkpoints_with_other_values_are_read_or_refused(times, made, ground, tries):
    shutil.copytree(made / "begun", ground / "begun")
    rng = random.Random(0)
    (file,) = checkpoints(ground / "begun")
    good = torch.load(file, weights_only=True)
    for _ in range(times):
        saved = damaged_values(good, rng)
        torch.save(saved, file)
        with tries.one():
            try:
                obey(["train", "--resume", "begun"], ground)
            except BaseException as error:
                raise AssertionError(f"{saved!r:.600}") from error
        (ground / "begun" / "summary.json").unlink(missing_ok=True)


class Runs:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@PROMISE
@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_in_a_folder_runs(command, made, ground, tries, tmp_path_factory):
    marker = tmp_path_factory.mktemp("marked") / "marker"
    name, argv = COMMANDS[command]
    shutil.copytree(made / name, ground / name)
    files = files_of(ground / name)
    for file in random.Random(command).sample(files, min(2 if command in DEAR else 6, len(files))):
        good = (ground / name / file).read_bytes()
        for zipped in (False, True):
            if zipped:
                torch.save({"run": Runs(marker), "plan": Runs(marker)}, ground / name / file)
            else:
                (ground / name / file).write_bytes(pickle.dumps(Runs(marker)))
            with tries.one():
                obey(argv, ground)
                assert not marker.exists(), file
        (ground / name / file).write_bytes(good)
        for other in ("report", "slim"):
            shutil.rmtree(ground / other, ignore_errors=True)


@PROMISE
def test_a_checkpoint_that_unpacks_to_more_than_it_is_is_refused(made, ground, tries):
    shutil.copytree(made / "begun", ground / "begun")
    (file,) = checkpoints(ground / "begun")
    entries = {}
    with zipfile.ZipFile(file) as old:
        entries = {entry: old.read(entry) for entry in old.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for entry, content in entries.items():
            new.writestr(entry, content if not entry.endswith("/0") else bytes(1 << 26))
    found = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    file.rename(file.with_name(f"{file.name.rpartition('-')[0]}-{found}.pt"))
    with tries.one():
        end = run(["train", "--resume", "begun"])
        assert end.code == 2 and "do not fit" in end.told


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 3))


def slim_folders(folder):
    """A folder for each way to make a network smaller."""
    model, x = network(), torch.ones(2, 8)
    with torch.no_grad():
        model.get_parameter("3.weight")[:, 4:] = 0
        first = model.get_parameter("0.weight")
        first[:] = first[:, :1] @ torch.ones(1, 8) * (torch.arange(8) < 3)
    ways = {
        "shrink": lambda: dp.shrink(model, x, select_inputs=True, latency=False),
        "factorize": lambda: dp.factorize(model, x, latency=False),
        "sparsify": lambda: dp.sparsify(model, x, faster_only=False, latency=False, seconds=0.01),
    }
    for way, make in ways.items():
        dp.save_slim(make(), folder / way)
        yield way


@PROMISE
@pytest.mark.parametrize("times", [120, pytest.param(8000, marks=pytest.mark.exhaustive)])
def test_damaged_slim_networks_are_read_or_refused(times, tmp_path, tries):
    rng = random.Random(0)
    for way in list(slim_folders(tmp_path)):
        folder = tmp_path / way
        good = {path.name: path.read_bytes() for path in folder.iterdir()}
        model = network()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        assert type(dp.load_slim(model, folder)) is nn.Sequential
        for _ in range(times):
            name = rng.choice((*good, "plan.json"))
            (folder / name).write_bytes(changed(name, good[name], rng))
            with tries.one():
                try:
                    dp.load_slim(model, folder)
                except ValueError as error:
                    assert str(error)
                except Exception as error:
                    raise AssertionError(f"{(folder / name).read_bytes()[:500]!r}") from error
            (folder / name).write_bytes(good[name])
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@PROMISE
def test_a_plan_cannot_set_what_is_no_size(tmp_path, tries):
    for name, attributes in {
        "forward": {"0": {"forward": 1}},
        "dict": {"0": {"__dict__": 1}},
        "class": {"0": {"__class__": 1}},
        "training": {"0": {"training": 1}},
        "nowhere": {"9": {"in_features": 1}},
        "new": {"0": {"new": 1}},
        "method": {"0": {"in_features": "x"}},
    }.items():
        with tries.one(), pytest.raises(ValueError, match="plan must"):
            plan = {**dp.Plan().to_dict(), "attributes": attributes}
            dp.apply_plan(network(), plan)
            raise AssertionError(name)


def test_tensors_of_another_kind_are_refused(tmp_path):
    (way, *_) = slim_folders(tmp_path)
    save_file({"x": torch.ones(2)}, tmp_path / way / "slim.safetensors")
    with pytest.raises(ValueError, match="only one of them has"):
        dp.load_slim(network(), tmp_path / way)


LOADERS = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}


def test_no_file_is_read_in_a_way_that_runs_it():
    """Every load in the library says that it runs nothing."""
    seen = 0
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called in LOADERS:
                seen += 1
                name, value = LOADERS[called]
                given = {k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg == name}
                assert given == {name: value}, f"{path}:{node.lineno}"
            forbidden = ("pickle.load", "pickle.loads", "eval", "exec", "joblib.load", "yaml.load")
            assert called not in forbidden, f"{path}:{node.lineno}"
            if called == "__import__" or called.startswith(("marshal.", "shelve.", "dill.")):
                raise AssertionError(f"{path}:{node.lineno}")
    assert seen >= 2
