"""Text as one long row of words, and the segments that a language model reads of it."""

import io
from array import array
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import layout
from .layout import Layout, open_unpacked
from .split import generator_of

END, UNKNOWN = "<eos>", "<unk>"


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text as numbers of words, in three parts.

    Args:
        words: the vocabulary: `<eos>`, which ends a line, then the words of the training text by
            falling frequency, those that come first in it first among equals.
        train, validation, test: places in `words`, int32, (tokens,).
    """

    words: tuple[str, ...]
    train: Tensor
    validation: Tensor
    test: Tensor

    def batches(
        self, batch_size: int, length: int, seed: int, epoch: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Segments of the training text for a network with a memory, as `segments` has them.

        Each row begins at a random place of its share of the text, and what is before it follows
        at the end. Seed and epoch alone decide where.
        """
        rows = _rows(self.train, batch_size)
        shifts = torch.randint(rows.shape[1], (batch_size,), generator=generator_of(seed, epoch))
        rolled = [row.roll(-shift) for row, shift in zip(rows, shifts.tolist(), strict=True)]
        return segments(torch.cat(rolled), batch_size, length)


def segments(tokens: Tensor, batch_size: int, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Segments of a text: row k of every batch goes on where row k of the one before ended.

    The text is cut into `batch_size` rows of equal length; a few words at its end are left over.

    Args:
        tokens: whole numbers, (tokens,), at least two for each row.
        batch_size: rows, >= 1.
        length: words in a segment, >= 1; the last may have fewer.

    Returns:
        An iterator over (words, the words that follow each), both int64 (batch_size, length).

    Source: Dai et al., arXiv:1901.02860, section 3.2.

    Example:
        >>> for words, targets in segments(torch.arange(11), 2, 3):
        ...     print(words.tolist(), targets.tolist())
        [[0, 1, 2], [5, 6, 7]] [[1, 2, 3], [6, 7, 8]]
        [[3], [8]] [[4], [9]]
    """
    rows = _rows(tokens, batch_size)
    for start in range(0, rows.shape[1] - 1, length):
        part = rows[:, start : start + length + 1].long()
        yield part[:, :-1], part[:, 1:]


def _rows(tokens: Tensor, batch_size: int) -> Tensor:
    """The text cut into rows, (batch_size, words in a row)."""
    size = len(tokens) // batch_size
    if size < 2:
        raise ValueError(f"batch_size must leave two words to a row, got {batch_size} rows")
    return tokens[: size * batch_size].view(batch_size, size)


def _lines(path: Path) -> Iterator[list[str]]:
    """The words of each line, its end included."""
    with io.TextIOWrapper(open_unpacked(path), encoding="utf8", newline="\n") as text:
        for line in text:
            yield [*line.split(), END]


def read_corpus(train: Path, validation: Path, test: Path) -> Corpus:
    """The three parts of a text, words apart by white space.

    Raises:
        ValueError: a word is not in the training text, nor is `<unk>`.
    """
    places: defaultdict[str, int] = defaultdict(count().__next__)
    places[END]
    found = array("i")  # 100 million words as Python's numbers would not fit in memory
    for line in _lines(train):
        found.extend(map(places.__getitem__, line))
    tokens = np.frombuffer(found, np.int32)
    frequencies = np.bincount(tokens)
    frequencies[0] = len(tokens) + 1  # the end of a line comes first, as frequent as it may be
    order = np.argsort(-frequencies, kind="stable")
    ranks = np.empty(len(order), np.int32)
    ranks[order] = np.arange(len(order), dtype=np.int32)
    names = list(places)
    words = tuple(names[place] for place in order)
    index = {word: rank for rank, word in enumerate(words)}

    def numbers(path: Path) -> Tensor:
        unknown = index.get(UNKNOWN)
        part = [index.get(word, unknown) for line in _lines(path) for word in line]
        if None in part:
            raise ValueError(f"{path} has words that are not in {train}, which has no {UNKNOWN}")
        return torch.tensor(part, dtype=torch.int32)

    return Corpus(words, torch.from_numpy(ranks[tokens]), numbers(validation), numbers(test))


CORPORA: dict[str, tuple[Layout[Corpus], ...]] = {
    name: tuple(
        Layout(tuple(f"{name}/{file}" for file in files), read_corpus)
        for files in (
            ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"),
            ("train.txt", "valid.txt", "test.txt"),
        )
    )
    for name in ("wikitext-2", "wikitext-103")
}


def load_corpus(name: str, data_dir: str | None) -> Corpus:
    """The text called `name`, "wikitext-2" or "wikitext-103", read from the user's data folder.

    Raises:
        DataError: its files are missing or damaged.
    """
    return layout.read(name, CORPORA[name], data_dir)
