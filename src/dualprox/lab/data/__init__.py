"""Data sets, and the order in which a run sees them."""

from .catalogue import CATALOGUE, DataSet, caveat, load, load_split, require_files
from .layout import DataError, Layout
from .split import Data, Split

__all__ = [
    "CATALOGUE",
    "Data",
    "DataError",
    "DataSet",
    "Layout",
    "Split",
    "caveat",
    "load",
    "load_split",
    "require_files",
]
