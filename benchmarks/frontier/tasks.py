"""Tasks: a network, real data in three parts, a loss, a metric and a recipe for dense training.

Every method gets the same task: the same network from the same seed, the same batches in the same
order, the same number of epochs in all, fine-tuning included. `TASKS[name](folder)` reads the data;
the formats are those of docs/data.md.
"""

import lzma
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from dualprox.lab.data import CATALOGUE, load_split
from dualprox.lab.data.cifar import read_pack
from dualprox.lab.data.split import Augmentation, random_crop
from dualprox.lab.models import conv1d, lenet5, mlp, resnet

from .networks import transformer

Part = Literal["train", "validation", "test"]
# Which examples are validation examples; no setting of a run changes it.
SPLIT_SEED = 20_240_314


@dataclass(frozen=True)
class Recipe:
    """Dense training: an optimizer under a cosine schedule from `lr` to 0.

    Args:
        optimizer: "sgd" (Nesterov momentum 0.9) or "adamw".
        lr: at the start, > 0.
        weight_decay: >= 0.
    """

    optimizer: Literal["sgd", "adamw"]
    lr: float
    weight_decay: float


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs as they are kept, and targets; first axis: the example."""

    x: Tensor
    y: Tensor

    def pick(self, places: Tensor) -> "Examples":
        return Examples(self.x[places], self.y[places])


class Loader:
    """Batches of an epoch, in another order each time that it is iterated.

    Args:
        examples: to draw from.
        batch_size: examples in each batch; what is left over at the end is not used.
        seed: this and the number of iterations begun before determine the bits.
        prepare: kept examples to float32 inputs, or to tokens.
        augment: random changes of kept examples.
        batches: in an epoch; None for all that the examples give.
    """

    def __init__(
        self,
        examples: Examples,
        batch_size: int,
        seed: int,
        prepare: Callable[[Tensor], Tensor],
        augment: Augmentation | None = None,
        batches: int | None = None,
    ) -> None:
        self.examples, self.batch_size, self.seed = examples, batch_size, seed
        self.prepare, self.augment = prepare, augment
        self.batches = min(len(examples.x) // batch_size, batches or len(examples.x))
        self.epoch = 0

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        self.epoch += 1
        order = torch.randperm(len(self.examples.x), generator=generator)
        for places in order[: self.batches * self.batch_size].split(self.batch_size):
            kept = self.examples.x[places]
            if self.augment is not None:
                kept = self.augment(kept, generator)
            yield self.prepare(kept), self.examples.y[places]


@dataclass(frozen=True, eq=False)
class Task:
    """What is trained on what, and how it is judged.

    Args:
        name: as on the command line.
        make_model: seed to a fresh network.
        parts: the examples.
        batch_size: of training.
        epochs: of every method, everything included.
        recipes: of dense training; peers train with the first. That is the better one on
            validation, and SGD, with which the peers' own examples train, where the two are within
            two standard errors of each other.
        metric: "accuracy" or "perplexity".
        prepare: kept examples to inputs.
        augment: of training.
        batches: in an epoch; None for all.
        fixed: names of modules that pruning leaves alone: the output layer.
        heads: names of the projections of attention, with the number of heads of each.
        readers: names of the layers that read channels which can be removed; none for all but the
            first.
        selects_inputs: whether layers may leave inputs of the network unread, for methods that can.
        note: what must be said wherever a figure is shown.
    """

    name: str
    make_model: Callable[[int], nn.Module]
    parts: Mapping[Part, Examples]
    batch_size: int
    epochs: int
    recipes: tuple[Recipe, ...]
    metric: Literal["accuracy", "perplexity"] = "accuracy"
    prepare: Callable[[Tensor], Tensor] = Tensor.float
    augment: Augmentation | None = None
    batches: int | None = None
    fixed: tuple[str, ...] = ()
    heads: Mapping[str, int] = field(default_factory=dict)
    selects_inputs: bool = False
    readers: tuple[str, ...] = ()
    note: str = ""

    @property
    def higher_is_better(self) -> bool:
        return self.metric == "accuracy"

    @property
    def example_input(self) -> Tensor:
        """The first two test inputs."""
        return self.prepare(self.parts["test"].x[:2])

    def loader(self, seed: int, part: Part = "train") -> Loader:
        """Training batches, (inputs, targets), one epoch per iteration."""
        return Loader(
            self.parts[part], self.batch_size, seed, self.prepare, self.augment, self.batches
        )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy; classes or tokens on the last axis of the outputs."""
        return nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())

    @torch.no_grad()
    def evaluate(self, model: nn.Module, part: Part) -> float:
        """Accuracy, or exp of the mean loss per token, in evaluation mode, which is put back."""
        examples, right, losses, count = self.parts[part], 0, 0.0, 0
        training = model.training
        model.eval()
        for kept, targets in zip(examples.x.split(250), examples.y.split(250), strict=True):
            outputs = model(self.prepare(kept))
            right += int((outputs.argmax(-1) == targets).sum())
            losses += float(self.loss(outputs, targets)) * targets.numel()
            count += targets.numel()
        model.train(training)
        return right / count if self.higher_is_better else math.exp(min(losses / count, 700.0))

    def better(self, one: float, other: float) -> bool:
        """Whether the first value of the metric is the better one; NaN never is."""
        return one > other if self.higher_is_better else one < other

    def shortened(self, epochs: int) -> "Task":
        """The same with fewer epochs."""
        return replace(self, epochs=epochs)


def divide(
    examples: Examples, train: int, validation: int, test: Examples | int
) -> dict[Part, Examples]:
    """Random disjoint parts of the examples, the same at every call.

    Args:
        examples: the published training examples, or all there are.
        train: how many to train on.
        validation: how many to choose by.
        test: the published test examples, or how many to take.
    """
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    order = torch.randperm(len(examples.x), generator=generator)
    if isinstance(test, int):
        start = validation
        validation += test
        test = examples.pick(order[start:validation])
        held = examples.pick(order[:start])
    else:
        held = examples.pick(order[:validation])
    return {
        "train": examples.pick(order[validation : validation + train]),
        "validation": held,
        "test": test,
    }


def seeded(make: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    """The maker as a function of the seed; torch's own random numbers stay as they were."""

    def made(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return make()

    return made


def pixels(kept: Tensor) -> Tensor:
    """Grey values 0..255 to mean 0 and variance 1 over MNIST's training images."""
    return (kept.float() / 255 - 0.1307) / 0.3081


def mnist_parts(folder: Path, train: int) -> dict[Part, Examples]:
    split = load_split("mnist", str(folder))
    test = Examples(split.val_x, split.val_y)
    return divide(Examples(split.x, split.y), train, 5000, test)


def mlp_mnist(folder: Path) -> Task:
    """784-512-256-10 on 25000 images of MNIST."""
    return Task(
        name="mlp_mnist",
        make_model=seeded(lambda: mlp(784, (512, 256), 10)),
        parts=mnist_parts(folder, 25_000),
        batch_size=128,
        epochs=10,
        recipes=(Recipe("sgd", 0.05, 5e-4), Recipe("adamw", 1e-3, 1e-2)),
        selects_inputs=True,
        prepare=pixels,
        fixed=("fc3",),
        note="25000 of MNIST's training images",
    )


def lenet5_mnist(folder: Path) -> Task:
    """LeNet-5 with 20 and 50 filters and 500 hidden units, on 8000 images of MNIST."""
    return Task(
        name="lenet5_mnist",
        make_model=seeded(lambda: lenet5(1, 10)),
        parts=mnist_parts(folder, 8_000),
        batch_size=128,
        epochs=8,
        recipes=(Recipe("sgd", 0.05, 5e-4), Recipe("adamw", 1e-3, 1e-2)),
        prepare=lambda kept: pixels(kept).view(-1, 1, 28, 28),
        fixed=("fc2",),
        note="8000 of MNIST's training images",
    )


def fsdd_conv1d(folder: Path) -> Task:
    """Four 1-d convolutions on spoken digits, one second at 4 kHz."""
    split = load_split("fsdd", str(folder))

    def halved(waves: Tensor) -> Tensor:
        return nn.functional.avg_pool1d(split.normalize(waves), 2)

    def shifted(x: Tensor, generator: torch.Generator) -> Tensor:
        return random_crop(x, 400, generator)

    test = Examples(halved(split.val_x), split.val_y)
    return Task(
        name="fsdd_conv1d",
        make_model=seeded(lambda: conv1d(1, (24, 32, 48, 64), 10)),
        parts=divide(Examples(halved(split.x), split.y), 2400, 300, test),
        batch_size=48,
        epochs=14,
        recipes=(Recipe("sgd", 0.05, 5e-4), Recipe("adamw", 2e-3, 1e-2)),
        augment=shifted,
        fixed=("fc",),
        note="waveforms at 4 kHz",
    )


def resnet20_cifar4000(folder: Path) -> Task:
    """ResNet-20, its first convolution in steps of 2, on 3000 images of CIFAR-10.

    The published test images are the judges, a quarter of them in validation: 500 images, which
    these parts once had, cannot tell networks apart whose accuracies differ by two points.
    """
    split = load_split("cifar10_first4000", str(folder))
    exact = Examples(torch.cat((split.x, split.val_x)), torch.cat((split.y, split.val_y)))
    published = Examples(*read_pack(folder / "cifar10/cifar10_test_jpeg.npz"))

    def normalized(kept: Tensor) -> Tensor:
        scaled = (kept.float() / 255 - 0.473) / 0.251
        return scaled.contiguous(memory_format=torch.channels_last)

    return Task(
        name="resnet20_cifar4000",
        make_model=seeded(lambda: resnet(3, (16, 32, 64), 10, stride=2)),
        parts={
            **divide(published, 0, 2500, 7500),
            "train": divide(exact, 3000, 500, 500)["train"],
        },
        batch_size=50,
        epochs=12,
        recipes=(Recipe("sgd", 0.05, 5e-4), Recipe("adamw", 2e-3, 5e-2)),
        prepare=normalized,
        augment=CATALOGUE["cifar10_first4000"].augment,
        fixed=("fc",),
        note="3000 exact images of CIFAR-10 for training, 7500 from lossy JPEG for the test: "
        "accuracies are not comparable with published ones",
    )


def characters(path: Path, keep: int, alphabet: str | None) -> tuple[Tensor, str]:
    """The first characters of an xz file as indices into an alphabet, 0 for those not in it."""
    with lzma.open(path, "rt", encoding="utf8", newline="") as file:
        text = file.read(keep)
    if alphabet is None:
        counts = {letter: text.count(letter) for letter in sorted(set(text))}
        alphabet = "\0" + "".join(sorted(counts, key=lambda letter: -counts[letter])[:95])
    index = {letter: place for place, letter in enumerate(alphabet)}
    return torch.tensor([index.get(letter, 0) for letter in text]), alphabet


def windows(tokens: Tensor, length: int = 64) -> Examples:
    """Consecutive windows of tokens, and of the tokens that follow each."""
    count = (len(tokens) - 1) // length
    ahead = tokens[1 : count * length + 1]
    return Examples(tokens[: count * length].view(-1, length), ahead.view(-1, length))


def lm_wikitext2(folder: Path) -> Task:
    """A causal transformer on the characters of WikiText-2: 2 layers of width 128."""
    texts = folder / "wikitext-2"
    train, alphabet = characters(texts / "train.txt.xz", 4_000_000, None)
    validation, _ = characters(texts / "valid.txt.xz", 64_001, alphabet)
    test, _ = characters(texts / "test.txt.xz", 128_001, alphabet)
    heads = {f"blocks.{k}.attention.{name}": 4 for k in (0, 1) for name in ("q", "k", "v")}
    return Task(
        name="lm_wikitext2",
        make_model=seeded(lambda: transformer(len(alphabet), 64)),
        parts={
            "train": windows(train),
            "validation": windows(validation),
            "test": windows(test),
        },
        batch_size=32,
        epochs=10,
        recipes=(Recipe("adamw", 1.2e-3, 1e-2), Recipe("sgd", 0.05, 0.0)),
        metric="perplexity",
        prepare=lambda kept: kept,
        batches=50,
        fixed=("head",),
        heads=heads,
        readers=tuple(f"blocks.{k}.{name}" for k in (0, 1) for name in ("attention.out", "down")),
        note="perplexity per character, 96 characters; an epoch is 50 batches of 32 x 64; "
        "parameters of the embeddings count",
    )


TASKS: dict[str, Callable[[Path], Task]] = {
    "mlp_mnist": mlp_mnist,
    "lenet5_mnist": lenet5_mnist,
    "fsdd_conv1d": fsdd_conv1d,
    "resnet20_cifar4000": resnet20_cifar4000,
    "lm_wikitext2": lm_wikitext2,
}
