"""What a published table is: rows that can be trained, and the figures printed beside them."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..settings import Run


@dataclass(frozen=True)
class Value:
    """A figure in the unit of its column.

    Args:
        mean: over seeds.
        std: over seeds; None for a single one, or where none was printed.

    Example:
        >>> Value.parsed("92.7±0.1"), Value.parsed("79")
        (Value(mean=92.7, std=0.1), Value(mean=79.0, std=None))
        >>> Value.of([1.0, 3.0]).text(2)
        '2.00 ± 1.41'
    """

    mean: float
    std: float | None = None

    @classmethod
    def parsed(cls, text: str) -> "Value":
        """The figure that a table prints as "mean±std" or "mean"."""
        mean, _, std = text.partition("±")
        return cls(float(mean), float(std) if std else None)

    @classmethod
    def of(cls, values: Sequence[float]) -> "Value":
        """The mean of at least one value, with the sample's standard deviation from two on."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def text(self, digits: int) -> str:
        """As a table shows it."""
        mean = f"{self.mean:.{digits}f}"
        return mean if self.std is None else f"{mean} ± {self.std:.{digits}f}"


@dataclass(frozen=True)
class Column:
    """A figure that tables show.

    Args:
        metric: its name among the metrics of an epoch, or "seconds_per_epoch".
        heading: its name for a person, with its unit.
        scale: from the metric to that unit.
    """

    metric: str
    heading: str
    scale: float = 100.0


ACCURACY = Column("val_accuracy", "accuracy (%)")
WEIGHTED_SPARSITY = Column("weighted_group_sparsity", "weighted group sparsity (%)")
GROUP_SPARSITY = Column("group_sparsity", "group sparsity (%)")
UNSTRUCTURED_SPARSITY = Column("unstructured_sparsity", "unstructured sparsity (%)")
LOW_RANK = Column("low_rank_level", "low-rank level (%)")
PERPLEXITY = Column("val_perplexity", "perplexity", 1.0)
LOSS = Column("val_loss", "validation loss", 1.0)
SECONDS = Column("seconds_per_epoch", "time per epoch (s)", 1.0)
COLUMNS = (
    ACCURACY,
    PERPLEXITY,
    WEIGHTED_SPARSITY,
    GROUP_SPARSITY,
    UNSTRUCTURED_SPARSITY,
    LOW_RANK,
    SECONDS,
)
QUALITIES = (ACCURACY, PERPLEXITY, LOSS)
STRUCTURES = (WEIGHTED_SPARSITY, GROUP_SPARSITY, UNSTRUCTURED_SPARSITY, LOW_RANK)


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Args:
        block: which part of the table, a network and a data set.
        label: what the paper calls it.
        run: what it trains; `run.recipe` names the row in all tables that print it.
        published: the paper's figures by metric; nothing where it prints none.
        seeds: those that the paper's figures are over.
        script: the file among the paper's published experiments that the settings come from;
            None where its own were not published.
        note: what a reader has to know to compare; "" for nothing.
    """

    block: str
    label: str
    run: Run
    published: dict[str, Value] = field(default_factory=dict)
    seeds: tuple[int, ...] = (1, 2, 3)
    script: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A published table.

    Args:
        name: what `dualprox reproduce` calls it.
        title: one line.
        source: the paper and the number of the table.
        columns: what it shows.
        rows: what it compares.
        digits: decimals it is printed with.
        note: what holds for all rows; "" for nothing.
    """

    name: str
    title: str
    source: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    digits: int = 2
    note: str = ""

    @property
    def quality(self) -> Column | None:
        """The column that tells how well a network does; None for a table without one."""
        return next((column for column in self.columns if column in QUALITIES), None)

    @property
    def structure(self) -> Column | None:
        """The first column that tells of structure; None for a table without one."""
        return next((column for column in self.columns if column in STRUCTURES), None)

    def row(self, recipe: str) -> Row | None:
        """The row that is trained by the recipe of that name, if there is one."""
        return next((row for row in self.rows if row.run.recipe == recipe), None)
