"""What runs learn, a module for each task."""

from ..settings import Run
from ..specs import Tacotron2Spec, TransformerXLSpec, VitMimSpec
from .base import Task
from .classification import Classification
from .language import Language
from .masked_images import MaskedImages
from .speech import Speech

__all__ = ["Classification", "Language", "MaskedImages", "Speech", "Task", "task_of"]

# By the network; all others classify.
_TASKS: dict[type, type[Task]] = {
    TransformerXLSpec: Language,
    Tacotron2Spec: Speech,
    VitMimSpec: MaskedImages,
}


def task_of(run: Run) -> type[Task]:
    """What a run's network learns."""
    return _TASKS.get(type(run.model), Classification)
