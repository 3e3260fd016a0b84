"""Data sets, and the order in which a run sees them."""

from .catalogue import CATALOGUE, DataSet, caveat, load, load_split, require_files
from .layout import DataError, Layout
from .ljspeech import Recordings, Utterances, load_recordings
from .split import Data, Split
from .wikitext import Corpus, load_corpus

__all__ = [
    "CATALOGUE",
    "Corpus",
    "Data",
    "DataError",
    "DataSet",
    "Layout",
    "Recordings",
    "Split",
    "Utterances",
    "caveat",
    "load",
    "load_corpus",
    "load_recordings",
    "load_split",
    "require_files",
]
