"""Reading text aloud, as mel spectrograms."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .. import data
from ..data import Utterances
from ..models import tacotron2_loss
from ..settings import Run
from .base import Task
from .language import require_plain


class Speech(Task[Utterances]):
    """The errors of spectrograms under teacher forcing, and of where the speech ends."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.recordings = data.load_recordings(run.data_dir)

    @staticmethod
    def check(run: Run) -> None:
        """Raise ValueError for settings of images."""
        require_plain(run)

    def __len__(self) -> int:
        """How many batches a pass has."""
        return -(-len(self.recordings) // self.run.batch_size)

    def batches(self, epoch: int, first: int = 0) -> Iterator[Utterances]:
        """Sentences, padded; seed and epoch alone determine their bits."""
        batches = self.recordings.batches(self.run.batch_size, self.run.seed, epoch, first)
        return map(self._placed, batches)

    def loss(self, model: nn.Module, batch: Utterances) -> Tensor:
        """`tacotron2_loss`."""
        return tacotron2_loss(model(*batch), batch.mel, batch.mel_lengths)

    def share(self, batch: Utterances, rows: slice) -> Utterances:
        """Some of the sentences."""
        return Utterances(*super().share(batch, rows))

    def weight(self, batch: Utterances) -> Tensor:
        """How many frames there are."""
        return batch.mel_lengths.sum()

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Validation loss, the mean over frames."""
        model.eval()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        frames = torch.zeros((), dtype=torch.int64, device=self.device)
        for batch in map(self._placed, self.recordings.validation()):
            count = batch.mel_lengths.sum()
            total += self.loss(model, batch).double() * count
            frames += count
        return {"val_loss": (total / frames).item()}

    def _placed(self, batch: Utterances) -> Utterances:
        """The batch on the run's device."""
        return Utterances(*(part.to(self.device, non_blocking=True) for part in batch))
