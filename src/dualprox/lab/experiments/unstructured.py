"""Sparsity without structure: RMDA with l1 beside RigL, published and as an own small study."""

from dataclasses import replace

import dualprox as dp

from ..settings import Run
from ..specs import Lenet5Spec, RiglSpec
from .methods import OPTIMIZERS, RMDA_PAPER, figures
from .small_images import cifar
from .tables import ACCURACY, UNSTRUCTURED_SPARSITY, Row, Table

_COLUMNS = (ACCURACY, UNSTRUCTURED_SPARSITY)
# SGD as the dense baseline has it; the others are the settings of RigL's own paper.
_RIGL = RiglSpec(lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=False, sparsity=0.98)
_PRINTED = {
    # strength of l1, then accuracy and sparsity of: dense, RMDA, RigL
    "CIFAR10": (5e-5, ("94.81", ""), ("93.78", "98.36"), ("93.41", "98.00")),
    "CIFAR100": (2e-4, ("74.61", ""), ("74.32", "98.32"), ("70.88", "98.00")),
}


def _rows(block: str, base: Run, strength: float, *printed: tuple[str, str]) -> tuple[Row, ...]:
    """The dense network of a run, RMDA with l1, and RigL, beside what was printed of them."""
    network = base.recipe.removesuffix("_msgd")
    rmda = replace(
        base,
        recipe=f"{network}_l1_rmda",
        optimizer=OPTIMIZERS["RMDA"],
        penalty=dp.L1(strength),
    )
    rigl = replace(base, recipe=f"{network}_rigl", optimizer=_RIGL)
    runs = {"Dense": base, "RMDA": rmda, "RigL": rigl}
    found = [figures(_COLUMNS, *texts) for texts in printed] or [{}, {}, {}]
    return tuple(
        Row(block, label, run, values, seeds=(1,))
        for (label, run), values in zip(runs.items(), found, strict=True)
    )


def rigl_cifar(data: str) -> Table:
    """ResNet-50 with 98 % of its weights zero."""
    strength, *printed = _PRINTED[data]
    dense = cifar("ResNet50", data, "MSGD", 0)
    return Table(
        f"rmda-rigl-{data.lower()}",
        f"unstructured sparsity and accuracy of ResNet-50 on {data}, RMDA with l1 beside RigL",
        f"{RMDA_PAPER}, unstructured sparsity",
        _COLUMNS,
        _rows(f"ResNet50/{data}", dense, strength, *printed),
        note="1000 epochs and RigL's sparsity are all that was published of the settings, and not "
        "over how many seeds: the strength of l1 is that of the group LASSO with which the same "
        "authors train this network (a channel of equal weights has the same penalty by both), "
        "batches, stages and dense SGD are theirs, too, and RigL has its own paper's settings; "
        "the networks differ, as the dense accuracies do; do not expect the same figures",
    )


def rigl_lenet5() -> Table:
    """LeNet-5 with 98 % of its weights zero, in minutes on a CPU."""
    dense = Run(
        recipe="lenet5_mnist_short_msgd",
        data="mnist",
        normalization="published",
        model=Lenet5Spec(),
        optimizer=OPTIMIZERS["MSGD"],
        epochs=12,
        batch_size=128,
        milestones=(4, 8),
    )
    return Table(
        "rigl-lenet5-mnist",
        "unstructured sparsity and accuracy of LeNet-5 on MNIST, RMDA with l1 beside RigL",
        "nothing, a study of our own",
        _COLUMNS,
        _rows("LeNet5/MNIST", dense, 6e-4),
        note="the strength of l1 was chosen so that about 98 % of the weights are zero after all "
        "12 epochs",
    )
