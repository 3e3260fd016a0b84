"""Data sets in memory, and the order in which a run sees them."""

from .catalogue import CATALOGUE, DataError, DataSet, load, require_files
from .split import Split

__all__ = ["CATALOGUE", "DataError", "DataSet", "Split", "load", "require_files"]
