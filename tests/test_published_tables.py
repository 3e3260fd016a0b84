"""The papers' tables: every setting and figure against the list of the papers' experiments."""

import csv
import json
import os
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import dualprox as dp
from dualprox.lab import settings
from dualprox.lab.data.normalization import PUBLISHED
from dualprox.lab.experiments.published import TABLES, table_with
from dualprox.lab.experiments.tables import Row, Table
from dualprox.lab.models import TransformerXL
from dualprox.lab.models.transformer_xl import AdaptiveSoftmax
from dualprox.lab.networks import make_model
from dualprox.lab.optimizers import make_optimizer
from dualprox.lab.specs import (
    AdamSpec,
    AdamwSpec,
    Lenet5Spec,
    MlpSpec,
    ProxAdamwSpec,
    ProxSgdSpec,
    RamdaSpec,
    Resnet50Spec,
    RiglSpec,
    RmdaSpec,
    SgdSpec,
    Tacotron2Spec,
    TransformerXLSpec,
    Vgg19Spec,
    VitMimSpec,
)
from dualprox.lab.tasks.masked_images import SCALE

# The list lies beside the folder of data sets.
EXPERIMENTS = Path(os.environ.get("DUALPROX_DATA", "nowhere")).parent / "papers" / "experiments.csv"
needs_the_list = pytest.mark.skipif(not EXPERIMENTS.exists(), reason=f"there is no {EXPERIMENTS}")


def cases(prefix: str = "", scripted: bool = True) -> list:
    return [
        pytest.param(table, row, id=f"{table.name}-{row.run.recipe}")
        for table in TABLES.values()
        for row in table.rows
        if table.name.startswith(prefix) and (row.script or not scripted)
    ]


KINDS = {
    "MSGD": SgdSpec,
    "Adam": AdamSpec,
    "AdamW": AdamwSpec,
    "ProxSGD": ProxSgdSpec,
    "ProxAdamW": ProxAdamwSpec,
    "ProxSSI": ProxAdamwSpec,
    "RMDA": RmdaSpec,
    "RAMDA": RamdaSpec,
}
MODELS = {
    "torchvision vgg19_bn": Vgg19Spec(),
    "CIFAR ResNet50": Resnet50Spec(),
    "Linear(784,10)": MlpSpec(hidden=()),
    "7 Linear": MlpSpec(hidden=(512, 256, 128, 64, 32, 16)),
    "LeNet5-large": Lenet5Spec(),
    "torchvision.models.resnet50()": Resnet50Spec(images="large"),
    "NVIDIA Transformer-XL base": TransformerXLSpec(),
    "NVIDIA DeepLearningExamples Tacotron2": Tacotron2Spec(),
    "HF ViTConfig(": VitMimSpec(),
}


# Embeddings, and what scores words by them.
UNPENALIZED = {
    TransformerXLSpec: (nn.Embedding, AdaptiveSoftmax, TransformerXL),
    Tacotron2Spec: (nn.Embedding,),
}


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"[-+]?\d*\.?\d+(?:e[-+]?\d+)?", text)]


def first(text: str) -> float:
    return numbers(text)[0]


def experiment(row: Row) -> dict[str, str]:
    """The line of the list that a row's script stands in."""
    with open(EXPERIMENTS, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    script = row.script or ""
    if script.startswith("Example/"):
        found = [x for x in lines if x["id"] == script.replace("Example", "RAMDA-repo")]
    else:
        found = [x for x in lines if x["source"].split(" ")[0] == script]
    assert len(found) == 1, (script, found)
    return found[0]


def check_optimizer(row: Row, line: dict[str, str]) -> None:
    optimizer = row.run.optimizer
    assert type(optimizer) is KINDS[line["algorithm"]]
    assert optimizer.lr == first(line["lr"])
    decay = getattr(optimizer, "weight_decay", 0.0)
    assert decay == first(line["weight_decay"])
    if isinstance(optimizer, SgdSpec):
        assert optimizer.momentum == first(line["momentum_c"]) and not optimizer.nesterov
    elif isinstance(optimizer, ProxSgdSpec | RmdaSpec | RamdaSpec):
        assert 1 - optimizer.momentum == pytest.approx(first(line["momentum_c"]), rel=1e-12)
    else:
        assert isinstance(optimizer, ProxAdamwSpec | AdamwSpec | AdamSpec)
        assert list(optimizer.betas) == numbers(line["betas"])
    if isinstance(optimizer, ProxAdamwSpec | RamdaSpec):
        assert optimizer.eps == first(line["eps"])
        # The schedule multiplies RAMDA's eps by gamma and leaves AdamW's.
        assert line["eps_times_gamma_at_restart"] == (
            "yes" if isinstance(optimizer, RamdaSpec) else "no"
        )
        check_solver(optimizer.solver, line)
    elif isinstance(optimizer, AdamwSpec | AdamSpec):
        assert optimizer.eps == first(line["eps"]) and line["subproblem_max_iters"] == ""
    else:
        assert line["eps"] == line["subproblem_max_iters"] == ""


def check_solver(solver: object, line: dict[str, str]) -> None:
    if line["algorithm"] == "ProxSSI":
        assert line["subproblem_max_iters"] == "100 (Newton-Raphson)"
        assert line["subproblem_rtol"] == "atol=rtol=1e-7"
        assert solver == dp.NewtonRaphson(max_iter=100, tol=1e-7)
        return
    assert isinstance(solver, dp.ProximalGradient)
    assert solver.max_iter == int(line["subproblem_max_iters"])
    off = line["subproblem_rtol"].startswith("off")
    assert solver.rtol == (0.0 if off else float(line["subproblem_rtol"]))
    assert solver.min_iter == (1 if line["algorithm"] == "RAMDA" else 2) and solver.tol is None


def check_penalty(row: Row, line: dict[str, str]) -> None:
    penalty = row.run.penalty
    if line["regularizer"] == "none":
        assert penalty is None and first(line["lambda"]) == 0
    elif line["regularizer"].startswith("nuclear norm"):
        assert penalty == dp.NuclearNorm(first(line["lambda"]))
    else:
        assert line["regularizer"] == "group LASSO"
        assert penalty == dp.GroupLasso(first(line["lambda"]), axis=1, size_weighted=True)


def check_schedule(row: Row, line: dict[str, str]) -> None:
    run = row.run
    unit = run.epoch_steps or 1
    assert ("steps" in line["budget"]) == (unit > 1)
    assert run.epochs * unit == first(line["budget"])
    if line["lr_schedule"].startswith(("cosine", "linear")):
        assert run.schedule == line["lr_schedule"].split(" ")[0] and run.milestones == ()
        assert line["lr_schedule"].endswith(f"warmup {run.warmup}") and line["milestones"] == "-"
        return
    assert run.schedule == "multistep" and run.gamma == first(line["gamma"])
    milestones = numbers(line["milestones"])
    assert ("steps" in line["milestones"]) == (unit > 1)
    assert [unit * each for each in run.milestones] == milestones


def check_steps(row: Row, line: dict[str, str]) -> None:
    run = row.run
    assert run.clip == (None if line["grad_clip"] == "none" else first(line["grad_clip"]))
    half = line["precision"].startswith("AMP fp16")
    assert half or "fp32" in line["precision"]
    assert run.precision == ("float16" if half else "float32")
    smooth = line["loss"].startswith("label smoothing")
    assert run.label_smoothing == (first(line["loss"]) if smooth else 0)


def check_images(row: Row, line: dict[str, str]) -> None:
    run, told = row.run, line["augmentation"]
    assert run.augment == ("HFlip" in told)
    assert run.augment or told.startswith(("none", "roll: true"))
    published = run.data in PUBLISHED and not isinstance(run.model, VitMimSpec)
    assert run.normalization == ("published" if published else "own")
    if published:
        means, scales = PUBLISHED[run.data]
        assert numbers(told.partition("Normalize")[2]) == [*means, *scales]
    if isinstance(run.model, VitMimSpec):
        assert f"mask_patch {run.model.mask_patch}, mask_ratio {run.model.mask_ratio}" in told
        assert f"scale {str(SCALE[0]).lstrip('0')}-1" in told


@pytest.mark.parametrize(("table", "row"), cases())
@pytest.mark.data
@needs_the_list
def test_a_row_has_the_settings_of_its_experiment(table: Table, row: Row) -> None:
    line, run = experiment(row), row.run
    # LeNet-5's settings are those of an example on Fashion-MNIST, for both data sets.
    if not isinstance(run.model, Lenet5Spec):
        named = line["dataset"].lower().replace("ilsvrc2012", "imagenet")
        assert re.split(r"-1\.1| ", named)[0] == run.data.replace("_", "")
    models = [model for start, model in MODELS.items() if line["model"].startswith(start)]
    assert models == [run.model]
    assert run.batch_size == numbers(line["batch_size"])[-1]
    check_optimizer(row, line)
    check_penalty(row, line)
    check_schedule(row, line)
    check_steps(row, line)
    check_images(row, line)
    assert run.init == ("origin" if "origin" in line["init"] else "torch")
    assert not (run.coupled or run.shrink_at_restart or run.refit) and run.baseline is None
    if table.name.startswith("ramda"):
        assert row.seeds == tuple(int(seed) for seed in numbers(line["seeds"].split("(")[0]))


def check_figures(table: Table, row: Row, line: dict[str, str]) -> None:
    text = re.sub(r"\(.*\)", "", line["paper_result"]).split("%")[-1]
    if "not in paper" in text:
        assert not row.published
        return
    # Table 2 prints the figures of Table 7 again, with fewer digits.
    places = {"ramda-table2": 1, "ramda-table9": 4}.get(table.name, 2)
    for column, part in zip(table.columns, text.strip().split("/"), strict=False):
        value = row.published.get(column.metric)
        if part == "-":
            assert value is None
            continue
        assert value is not None
        mean, std = (*map(float, part.split("±")), None)[:2]
        assert value.mean == pytest.approx(mean, abs=0.5 * 10**-places + 1e-9)
        assert (value.std is None) == (std is None)
        if value.std is not None and std is not None:
            assert value.std == pytest.approx(std, abs=0.5 * 10**-places + 1e-9)


@pytest.mark.parametrize(("table", "row"), cases("ramda"))
@pytest.mark.data
@needs_the_list
def test_a_row_has_the_figures_that_were_published(table: Table, row: Row) -> None:
    line = experiment(row)
    assert table.source.partition(", ")[2] in line["paper_ref"]
    check_figures(table, row, line)


@pytest.mark.data
@needs_the_list
@pytest.mark.parametrize(("name", "place"), [("mnist", 0), ("fashion-mnist", 1)])
def test_the_figures_of_lenet5_are_those_of_the_talk(name: str, place: int) -> None:
    lines = (EXPERIMENTS.parent / "rmda_slides.md").read_text(encoding="utf-8").splitlines()
    begin = next(i for i, line in enumerate(lines) if "LeNet5/" in line)
    for row, line in zip(TABLES[f"rmda-lenet5-{name}"].rows, lines[begin + 1 :], strict=False):
        label, *cells = line.split("\t")
        assert label == row.label
        printed = [numbers(cell.replace("\\%", "")) for cell in cells[2 * place : 2 * place + 2]]
        ours = [row.published.get(metric) for metric in ("val_accuracy", "group_sparsity")]
        assert [[v.mean, v.std] if v else [] for v in ours] == printed


@pytest.mark.data
@needs_the_list
@pytest.mark.parametrize(("name", "place"), [("cifar10", 0), ("cifar100", 1)])
def test_the_figures_beside_rigl_are_those_of_the_talk(name: str, place: int) -> None:
    lines = (EXPERIMENTS.parent / "rmda_slides.md").read_text(encoding="utf-8").splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("Dense baseline"))
    table = TABLES[f"rmda-rigl-{name}"]
    for row, line in zip(table.rows, lines[begin : begin + 3], strict=True):
        label, *cells = line.split("\t")
        assert label.split()[0] == row.label and row.run.epochs == 1000
        printed = [numbers(cell) for cell in cells[2 * place : 2 * place + 2]]
        ours = [row.published.get(m) for m in ("unstructured_sparsity", "val_accuracy")]
        assert [[v.mean] if v else [] for v in ours] == printed
    rigl = table.rows[2].run.optimizer
    assert isinstance(rigl, RiglSpec) and rigl.sparsity == 0.98


@pytest.mark.data
@needs_the_list
def test_the_times_are_those_that_were_printed() -> None:
    paper = (EXPERIMENTS.parent / "ramda_neurips2024.txt").read_text(encoding="utf-8")
    rows = TABLES["ramda-table2"].rows
    assert len(rows) == 8
    for row in rows:
        accuracy, sparsity, time = row.published.values()
        cells = [f"{value.mean:.1f}±{value.std:.1f}%" for value in (accuracy, sparsity)]
        assert f"{' '.join(cells)} {time.mean:.0f}s" in paper


def test_a_name_of_a_row_means_one_run_and_survives_its_json() -> None:
    seen: dict[str, settings.Run] = {}
    for table in TABLES.values():
        names = [row.run.recipe for row in table.rows]
        assert len(set(names)) == len(names)
        for row in table.rows:
            assert seen.setdefault(row.run.recipe, row.run) == row.run
            saved = json.loads(json.dumps(settings.to_json(row.run)))
            assert settings.from_json(saved) == row.run
            found = table_with(row.run.recipe)
            assert found is not None and found.row(row.run.recipe) is not None
            assert set(row.published) <= {column.metric for column in table.columns}


@pytest.mark.parametrize(("table", "row"), cases(scripted=False))
def test_a_row_can_be_trained_here(table: Table, row: Row) -> None:
    if isinstance(row.run.model, VitMimSpec):
        pytest.importorskip("transformers")
    with torch.device("meta"):  # where the largest network costs nothing
        model = make_model(row.run)
        opt = make_optimizer(row.run, model)
    penalized = [g for g in opt.param_groups if g.get("penalty") is not None]
    free = UNPENALIZED.get(type(row.run.model), ())
    # Of the vision transformer all matrices, and no convolution.
    most = 2 if isinstance(row.run.model, VitMimSpec) else 4
    weights = {
        id(param)
        for module in model.modules()
        for param in module.parameters(recurse=False)
        if 1 < param.dim() <= most and not isinstance(module, free)
    }
    found = {id(p) for group in penalized for p in group["params"]}
    # No bias or norm is penalized, and of layers only those are excluded that the papers exclude.
    assert found == (weights if row.run.penalty else set())
