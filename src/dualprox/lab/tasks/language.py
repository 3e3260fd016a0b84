"""Guessing the next word, with a memory of the text before."""

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ...checks import require
from .. import data, ranks
from ..data import DataError
from ..data.wikitext import segments
from ..settings import Run
from ..specs import TransformerXLSpec
from .base import Task

Batch = tuple[Tensor, Tensor]
# Rows that the validation text is cut into.
ROWS = 16


class Language(Task[Batch]):
    """The cross-entropy of the next word, by a network that remembers the segments before.

    An epoch goes on where the one before ended; memory is empty where a pass over the text begins.

    Raises:
        DataError: its files are missing or damaged, or it has more words than the network.
    """

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        assert isinstance(run.model, TransformerXLSpec)
        self.length = run.model.length
        self.corpus = data.load_corpus(run.data, run.data_dir)
        words = len(self.corpus.words)
        if words > run.model.tokens:
            raise DataError(
                f"model.tokens must be at least the {words} words of {run.data}, "
                f"got {run.model.tokens}"
            )
        # Which pass, how many of its segments have been read, and what is remembered of them.
        self.round, self.taken = 1, 0
        self.memory: Tensor | None = None

    @staticmethod
    def check(run: Run) -> None:
        """Raise ValueError for settings of images."""
        require_plain(run)

    def __len__(self) -> int:
        """How many segments a row has."""
        words = len(self.corpus.train) // self.run.batch_size
        return -(-(words - 1) // self.length)

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Words and those that follow each, (rows, length), without an end.

        They go on where those before ended, in an epoch or between two.
        """
        del epoch, first
        run = self.run
        while True:
            parts = self.corpus.batches(run.batch_size, self.length, run.seed, self.round)
            for part in islice(parts, self.taken, None):
                self.taken += 1
                yield self._placed(part)
            self.round, self.taken, self.memory = self.round + 1, 0, None

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Minus the mean log-likelihood of the next words; remembers the segment."""
        losses, self.memory = model(*batch, self.memory)
        return losses.mean()

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Validation loss, the mean over words, and perplexity, its exponential."""
        model.eval()
        tokens, memory = self.corpus.validation, None
        total, count = torch.zeros((), dtype=torch.float64, device=self.device), 0
        for part in segments(tokens, min(ROWS, len(tokens) // 2), self.length):
            losses, memory = model(*self._placed(part), memory)
            total += losses.double().sum()
            count += losses.numel()
        loss = total.item() / count
        # Of a network that has learned nothing it may be beyond every number.
        perplexity = math.exp(loss) if loss < 700 else math.inf
        return {"val_loss": loss, "val_perplexity": perplexity}

    def _placed(self, part: Batch) -> Batch:
        """Words and targets on the run's device."""
        words, targets = (tokens.to(self.device, non_blocking=True) for tokens in part)
        return words, targets

    def state_dict(self) -> dict[str, Any]:
        """The place in the text, and the memory, of whose rows each process has its own."""
        memory = self.memory
        if memory is not None:
            mine = ranks.rows(self.run.batch_size)
            # Without rows of its own, a process has remembered all.
            memory = ranks.at_first(memory[:, : mine.stop - mine.start].cpu(), dim=1)
        return {"round": self.round, "taken": self.taken, "memory": memory}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.round, self.taken = saved["round"], saved["taken"]
        memory, mine = saved["memory"], ranks.rows(self.run.batch_size)
        if memory is not None:
            own = memory[:, mine] if mine.start < mine.stop else memory
            memory = own.to(self.device)
        self.memory = memory


def require_plain(run: Run) -> None:
    """Raise ValueError for settings that only images and labels have."""
    require(not run.augment, "augment", f"false for data={run.data}", run.augment)
    rule = f"own for data={run.data}"
    require(run.normalization == "own", "normalization", rule, run.normalization)
    require(run.label_smoothing == 0, "label_smoothing", "0 without labels", run.label_smoothing)
