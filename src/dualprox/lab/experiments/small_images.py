"""Tables 1, 2 and 7 of the RAMDA paper: logistic regression, VGG-19 and ResNet-50."""

from dataclasses import replace

import dualprox as dp

from ..settings import DataName, Run
from ..specs import MlpSpec, ModelSpec, ProxAdamwSpec, RamdaSpec, Resnet50Spec, Vgg19Spec
from .methods import OPTIMIZERS, RAMDA_PAPER, RECIPE_NAMES, SCRIPTS, figures, lasso
from .tables import ACCURACY, SECONDS, WEIGHTED_SPARSITY, Row, Table, Value

_MODELS: dict[str, ModelSpec] = {"VGG19": Vgg19Spec(), "ResNet50": Resnet50Spec()}
_DATA: dict[str, DataName] = {"CIFAR10": "cifar10", "CIFAR100": "cifar100"}


def cifar(network: str, data: str, algorithm: str, strength: float) -> Run:
    """A run of Table 7, with a strength that is 0 for MSGD."""
    return Run(
        recipe=f"{network}_{data}_{RECIPE_NAMES[algorithm]}".lower(),
        data=_DATA[data],
        augment=True,
        normalization="published",
        model=_MODELS[network],
        optimizer=OPTIMIZERS[algorithm],
        penalty=lasso(strength),
        epochs=1000,
        batch_size=128,
        milestones=(200, 400, 600, 800),
    )


def _logistic(algorithm: str) -> Run:
    """A run of logistic regression."""
    return Run(
        recipe=f"logistic_mnist_{RECIPE_NAMES[algorithm]}",
        data="mnist",
        normalization="published",
        model=MlpSpec(hidden=()),
        init="origin",
        optimizer=OPTIMIZERS[algorithm],
        penalty=lasso(1e-3),
        epochs=500,
        batch_size=128,
        milestones=(100, 200, 300, 400),
    )


_LOGISTIC = {
    # accuracy, sparsity, what to know
    "ProxSGD": ("91.31", "39.29", "the published sparsity is that of its best epoch"),
    "ProxSSI": ("91.31", "39.92", "the published sparsity is that of its best epoch"),
    "ProxGen": ("91.31", "39.92", "the published sparsity is that of its best epoch"),
    "RMDA": ("91.34", "57.02", ""),
    "RAMDA": ("91.35", "57.40", ""),
}
_CIFAR = {
    # strength, accuracy, sparsity
    ("VGG19", "CIFAR10"): {
        "MSGD": (0, "93.95±0.14", ""),
        "ProxSGD": (3e-5, "92.82±0.09", "82.76±5.42"),
        "ProxSSI": (1e-6, "92.81±0.15", "88.40±0.23"),
        "ProxGen": (1e-6, "92.83±0.05", "86.64±0.12"),
        "RMDA": (1.5e-4, "93.13±0.10", "90.22±0.06"),
        "RAMDA": (8e-7, "92.89±0.13", "86.31±0.31"),
    },
    ("VGG19", "CIFAR100"): {
        "MSGD": (0, "74.07±0.05", ""),
        "ProxSGD": (4e-5, "71.96±0.15", "72.34±11.9"),
        "ProxSSI": (1e-6, "67.29±0.06", "78.58±0.34"),
        "ProxGen": (1e-6, "68.13±0.36", "75.46±0.17"),
        "RMDA": (1e-4, "71.96±0.31", "80.88±0.11"),
        "RAMDA": (2e-7, "70.47±0.25", "65.19±0.77"),
    },
    ("ResNet50", "CIFAR10"): {
        "MSGD": (0, "95.54±0.19", ""),
        "ProxSGD": (5e-5, "92.36±0.05", "82.18±2.67"),
        "ProxSSI": (5e-7, "94.04±0.12", "83.67±0.63"),
        "ProxGen": (5e-7, "94.07±0.12", "80.45±0.45"),
        "RMDA": (5e-5, "95.11±0.11", "85.64±0.12"),
        "RAMDA": (1e-6, "93.85±0.10", "81.99±1.26"),
    },
    ("ResNet50", "CIFAR100"): {
        "MSGD": (0, "79.49±0.49", ""),
        "ProxSGD": (4e-5, "74.54±0.58", "49.29±5.91"),
        "ProxSSI": (1e-6, "73.65±0.39", "70.38±0.74"),
        "ProxGen": (1e-6, "73.63±0.43", "65.51±3.58"),
        "RMDA": (2e-4, "75.62±0.19", "79.97±0.27"),
        "RAMDA": (5e-7, "69.23±0.86", "68.65±1.83"),
    },
}


def table7() -> Table:
    """Logistic regression and convolutional networks, all methods."""
    columns = (ACCURACY, WEIGHTED_SPARSITY)
    rows = [
        Row(
            "Logistic regression/MNIST",
            name,
            _logistic(name),
            figures(columns, accuracy, sparsity),
            seeds=(1,),
            script=f"Linear/{SCRIPTS[name]}_Lin_on_MNIST.sh",
            note=note,
        )
        for name, (accuracy, sparsity, note) in _LOGISTIC.items()
    ]
    for (network, data), block in _CIFAR.items():
        rows += [
            Row(
                f"{network}/{data}",
                name,
                cifar(network, data, name, strength),
                figures(columns, accuracy, sparsity),
                script=f"CIFAR/{SCRIPTS[name]}_{network}_on_{data}.sh",
            )
            for name, (strength, accuracy, sparsity) in block.items()
        ]
    return Table(
        "ramda-table7",
        "group sparsity and accuracy on smaller data sets",
        f"{RAMDA_PAPER}, Table 7",
        columns,
        tuple(rows),
    )


_STOPPING = {
    # strength, then accuracy and sparsity without and with early stopping
    ("VGG19", "CIFAR10"): {
        "ProxGen": (1e-6, ("92.7±0.2", "88.8±0.0"), ("92.7±0.1", "86.9±0.4")),
        "RAMDA": (1e-6, ("92.7±0.2", "86.7±0.3"), ("92.9±0.2", "86.3±0.4")),
    },
    ("ResNet50", "CIFAR100"): {
        "ProxGen": (1e-6, ("73.6±0.1", "74.7±0.6"), ("74.0±0.1", "67.6±3.1")),
        "RAMDA": (1e-6, ("69.9±1.5", "69.5±2.1"), ("71.2±1.4", "67.5±1.6")),
    },
}


def _stopping(run: Run, early: bool) -> Run:
    """The run of Table 1 that is like a run of Table 7, with other milestones."""
    assert isinstance(run.optimizer, ProxAdamwSpec | RamdaSpec)
    assert isinstance(run.optimizer.solver, dp.ProximalGradient)
    solver = run.optimizer.solver if early else replace(run.optimizer.solver, rtol=0.0)
    return replace(
        run,
        recipe=f"{run.recipe}_stopping_{'early' if early else 'never'}",
        optimizer=replace(run.optimizer, solver=solver),
        init="torch",
    )


def table1() -> Table:
    """The solver of the subproblem with and without early stopping."""
    columns = (ACCURACY, WEIGHTED_SPARSITY)
    rows = []

    def add(
        block: str, script: str, name: str, run: Run, found: dict[str, Value], early: bool
    ) -> None:
        stopping = "EarlyStopping" if early else "NoEarlyStopping"
        rows.append(
            Row(
                block,
                f"{name}, {'early stopping' if early else 'no early stopping'}",
                _stopping(run, early),
                found,
                seeds=(1, 2, 3) if found else (1,),
                script=f"Subproblem/{SCRIPTS[name]}_100_{script}_{stopping}.sh",
                note="" if found else "among the experiments, but not in the printed table",
            )
        )

    for (network, data), block in _STOPPING.items():
        for name, (strength, *printed) in block.items():
            run = replace(cifar(network, data, name, strength), milestones=(250, 500, 750))
            for early, texts in zip((False, True), printed, strict=True):
                printed_here = figures(columns, *texts)
                add(f"{network}/{data}", f"{network}_on_{data}", name, run, printed_here, early)
    for name in ("ProxGen", "RAMDA"):
        for early in (False, True):
            add("Logistic regression/MNIST", "Lin_on_MNIST", name, _logistic(name), {}, early)
    return Table(
        "ramda-table1",
        "when the solver of the subproblem stops",
        f"{RAMDA_PAPER}, Table 1",
        columns,
        tuple(rows),
        digits=1,
    )


_SOLVERS = {
    # accuracy, sparsity, seconds per epoch
    ("VGG19", "CIFAR10"): {
        "ProxSSI": ("92.8±0.1", "88.4±0.2", "79"),
        "ProxGen": ("92.8±0.0", "86.6±0.1", "24"),
    },
    ("VGG19", "CIFAR100"): {
        "ProxSSI": ("67.3±0.1", "78.6±0.3", "79"),
        "ProxGen": ("68.1±0.4", "75.5±0.2", "26"),
    },
    ("ResNet50", "CIFAR10"): {
        "ProxSSI": ("94.0±0.1", "83.7±0.6", "260"),
        "ProxGen": ("94.1±0.1", "80.4±0.4", "70"),
    },
    ("ResNet50", "CIFAR100"): {
        "ProxSSI": ("73.7±0.4", "70.4±0.7", "251"),
        "ProxGen": ("73.6±0.4", "65.5±3.6", "74"),
    },
}


def table2() -> Table:
    """ProxSSI beside ProxGen, which differ in the solver alone."""
    columns = (ACCURACY, WEIGHTED_SPARSITY, SECONDS)
    rows = [
        Row(
            f"{network}/{data}",
            name,
            cifar(network, data, name, _CIFAR[network, data][name][0]),
            figures(columns, *texts),
            script=f"CIFAR/{SCRIPTS[name]}_{network}_on_{data}.sh",
        )
        for (network, data), block in _SOLVERS.items()
        for name, texts in block.items()
    ]
    return Table(
        "ramda-table2",
        "two solvers of AdamW's subproblem, and their time",
        f"{RAMDA_PAPER}, Table 2",
        columns,
        tuple(rows),
        digits=1,
        note="the published times are those of one NVIDIA V100",
    )
