"""The metric that tells how well a run did, for people."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Score:
    """A metric of a task.

    Args:
        metric: its name among the metrics of an epoch.
        label: its name for a person.
        is_share: whether it is a share, shown in percent.
    """

    metric: str
    label: str
    is_share: bool = False

    def text(self, value: float) -> str:
        """A value as people read it.

        Example:
            >>> SCORES[0].text(0.987), SCORES[1].text(26.97)
            ('98.7%', '26.97')
        """
        return f"{value:.1%}" if self.is_share else f"{value:.4g}"


# The first that a run has.
SCORES = (
    Score("val_accuracy", "accuracy", is_share=True),
    Score("val_perplexity", "perplexity"),
    Score("val_loss", "validation loss"),
)


def score_of(found: Mapping[str, Any]) -> Score:
    """The metric that tells how well a run did, of those of an epoch or of a summary."""
    return next(score for score in SCORES if score.metric in found)
