"""Tables 3, 4, 5 and 9 of the RAMDA paper: ImageNet, Transformer-XL, Tacotron 2, masked images."""

from dataclasses import replace

import dualprox as dp

from ..settings import Run
from ..specs import (
    AdamSpec,
    AdamwSpec,
    OptimizerSpec,
    ProxAdamwSpec,
    ProxSgdSpec,
    RamdaSpec,
    Resnet50Spec,
    RmdaSpec,
    Tacotron2Spec,
    TransformerXLSpec,
    VitMimSpec,
)
from .methods import (
    GEN_SOLVER,
    OPTIMIZERS,
    RAMDA_PAPER,
    RAMDA_SOLVER,
    RECIPE_NAMES,
    SCRIPTS,
    figures,
    lasso,
)
from .tables import ACCURACY, LOSS, LOW_RANK, PERPLEXITY, SECONDS, WEIGHTED_SPARSITY, Row, Table

# The dense baselines are no methods of the other tables.
_NAMES = RECIPE_NAMES | {"Adam": "adam", "AdamW": "adamw"}
_SCRIPTS = SCRIPTS | {"Adam": "Adam", "AdamW": "AdamW"}
_GEN, _RAMDA = (OPTIMIZERS[name] for name in ("ProxGen", "RAMDA"))
assert isinstance(_GEN, ProxAdamwSpec) and isinstance(_RAMDA, RamdaSpec)

_IMAGENET: dict[str, tuple[OptimizerSpec, float, str, str]] = {
    # optimizer, strength, accuracy, sparsity
    "MSGD": (replace(OPTIMIZERS["MSGD"], weight_decay=1e-4), 0, "77.14±0.04", ""),
    "ProxSGD": (OPTIMIZERS["ProxSGD"], 1.25e-5, "73.50±0.20", "17.54±1.26"),
    "ProxGen": (_GEN, 1.3e-7, "74.17±0.08", "20.29±0.22"),
    "RMDA": (RmdaSpec(lr=1.0, momentum=0.9), 1.35e-5, "74.47±0.08", "25.20±1.69"),
    "RAMDA": (_RAMDA, 4e-7, "74.53±0.10", "29.19±0.94"),
}


def table3() -> Table:
    """ResNet-50 on ImageNet."""
    columns = (ACCURACY, WEIGHTED_SPARSITY)
    rows = [
        Row(
            "ResNet50/ImageNet",
            name,
            Run(
                recipe=f"resnet50_imagenet_{_NAMES[name]}",
                data="imagenet",
                augment=True,
                model=Resnet50Spec(images="large"),
                optimizer=optimizer,
                penalty=lasso(strength),
                epochs=160,
                batch_size=256,
                milestones=(40, 80, 120),
                precision="float16",
                label_smoothing=0.1,
            ),
            figures(columns, *printed),
            script=f"ImageNet/{_SCRIPTS[name]}_ResNet50_on_ImageNet.sh",
        )
        for name, (optimizer, strength, *printed) in _IMAGENET.items()
    ]
    return Table(
        "ramda-table3",
        "group sparsity and accuracy on ImageNet",
        f"{RAMDA_PAPER}, Table 3",
        columns,
        tuple(rows),
        note="the published batches of 256 lay on 8 devices, each with batch norms of its 32",
    )


_LANGUAGE: dict[str, tuple[OptimizerSpec, float, str, str, str]] = {
    # optimizer, strength, perplexity, sparsity, seconds
    "Adam": (AdamSpec(lr=2.5e-4), 0, "23.00±0.05", "", "6261±21"),
    "ProxSGD": (ProxSgdSpec(lr=10.0, momentum=0.9), 2.5e-7, "27.42±0.02", "33.1±1.5", "6167±12"),
    "ProxGen": (replace(_GEN, lr=2.5e-4), 1.75e-7, "27.49±0.19", "30.5±0.6", "6652±21"),
    "RMDA": (RmdaSpec(lr=25.0, momentum=0.99), 1.65e-7, "27.10±0.08", "36.0±2.7", "6184±20"),
    "RAMDA": (replace(_RAMDA, lr=5e-3), 1.25e-7, "26.97±0.10", "36.2±0.3", "6954±30"),
}


def table4() -> Table:
    """Transformer-XL on WikiText-103: 400000 steps, told in 80 epochs of 5000."""
    columns = (PERPLEXITY, WEIGHTED_SPARSITY, SECONDS)
    rows = []
    for name, (optimizer, strength, *printed) in _LANGUAGE.items():
        staged = name in ("RMDA", "RAMDA")
        run = Run(
            recipe=f"transformer_xl_wikitext103_{_NAMES[name]}",
            data="wikitext-103",
            model=TransformerXLSpec(),
            optimizer=optimizer,
            penalty=lasso(strength),
            epochs=80,
            epoch_steps=5000,
            batch_size=64,
            milestones=(20, 40, 60) if staged else (),
            schedule="multistep" if staged else "cosine",
            clip=0.25,
        )
        script = f"Transformer-XL/pytorch/{_SCRIPTS[name]}_wt103_base.yaml"
        found = figures(columns, *printed)
        rows.append(Row("Transformer-XL/WikiText-103", name, run, found, script=script))
    return Table(
        "ramda-table4",
        "group sparsity and perplexity of Transformer-XL",
        f"{RAMDA_PAPER}, Table 4",
        columns,
        tuple(rows),
        note="an epoch here is 5000 steps, between two validations; the published times are of an "
        "epoch whose steps are not said",
    )


_SPEECH: dict[str, tuple[OptimizerSpec, float, str, str, str]] = {
    # optimizer, strength, loss, sparsity, seconds
    "Adam": (AdamSpec(lr=1e-3, weight_decay=1e-6), 0, "0.39±0.02", "", "431±2"),
    "ProxSGD": (ProxSgdSpec(lr=1.0, momentum=0.9), 2.5e-6, "0.50±0.00", "34.3±1.6", "431±0"),
    "ProxGen": (_GEN, 8e-7, "0.45±0.01", "45.6±0.9", "438±2"),
    "RMDA": (RmdaSpec(lr=2.5, momentum=0.99), 1e-6, "0.46±0.01", "45.9±1.7", "431±2"),
    "RAMDA": (replace(_RAMDA, lr=2.5e-3), 6e-7, "0.44±0.01", "52.9±1.6", "443±1"),
}


def table5() -> Table:
    """Tacotron 2 on LJSpeech."""
    columns = (LOSS, WEIGHTED_SPARSITY, SECONDS)
    rows = [
        Row(
            "Tacotron2/LJSpeech",
            name,
            Run(
                recipe=f"tacotron2_ljspeech_{_NAMES[name]}",
                data="ljspeech",
                model=Tacotron2Spec(),
                optimizer=optimizer,
                penalty=lasso(strength),
                epochs=1000,
                batch_size=64,
                milestones=(300, 600),
                clip=1.0,
            ),
            figures(columns, *printed),
            script=f"Tacotron2/{_SCRIPTS[name]}_Tacotron2_on_LJSpeech.sh",
        )
        for name, (optimizer, strength, *printed) in _SPEECH.items()
    ]
    return Table(
        "ramda-table5",
        "group sparsity and loss of Tacotron 2",
        f"{RAMDA_PAPER}, Table 5",
        columns,
        tuple(rows),
        note="losses here are means over the frames that there are; the published ones count the "
        "padding of a batch among the frames, and are smaller for it",
    )


_FEW = {"max_iter": 5, "rtol": 1e-3}
_MASKED: dict[str, tuple[OptimizerSpec, float, str, str]] = {
    # optimizer, strength, loss, low-rank level
    "AdamW": (AdamwSpec(lr=1e-3, weight_decay=0.0), 0, "0.0865±0.0001", ""),
    "ProxSGD": (ProxSgdSpec(lr=10.0, momentum=0.9), 2.5e-5, "0.1042±0.0003", "82.60±0.34"),
    "ProxGen": (
        replace(_GEN, solver=replace(GEN_SOLVER, **_FEW)),
        1e-4,
        "0.1120±0.0019",
        "82.64±2.47",
    ),
    "RMDA": (RmdaSpec(lr=10.0, momentum=0.9), 1e-5, "0.1054±0.0031", "86.23±0.41"),
    "RAMDA": (
        replace(_RAMDA, momentum=0.9, solver=replace(RAMDA_SOLVER, **_FEW)),
        1e-5,
        "0.1035±0.0016",
        "86.20±0.35",
    ),
}


def table9() -> Table:
    """A vision transformer that fills in masked images."""
    columns = (LOSS, LOW_RANK)
    rows = []
    for name, (optimizer, strength, *printed) in _MASKED.items():
        staged = name in ("RMDA", "RAMDA")
        run = Run(
            recipe=f"vit_cifar10_nuclear_{_NAMES[name]}",
            data="cifar10",
            augment=True,
            model=VitMimSpec(),
            optimizer=optimizer,
            penalty=dp.NuclearNorm(strength) if strength else None,
            epochs=300,
            batch_size=128,
            milestones=(100, 200) if staged else (),
            schedule="multistep" if staged else "linear",
        )
        script = f"ViT/{_SCRIPTS[name]}_ViT_on_CIFAR10.sh"
        found = figures(columns, *printed)
        rows.append(Row("ViT/CIFAR10", name, run, found, script=script))
    return Table(
        "ramda-table9",
        "low rank and loss of masked image modelling",
        f"{RAMDA_PAPER}, Table 9",
        columns,
        tuple(rows),
        digits=4,
        note="the published losses are the best of the last 50 epochs, those here of the last; "
        "which images are held out differs",
    )
