"""Reading the structure of a network while it trains."""

from .metrics import LayerStructure, NetworkStructure, structure
from .monitor import StructureMonitor, StructureRecord

__all__ = [
    "LayerStructure",
    "NetworkStructure",
    "StructureMonitor",
    "StructureRecord",
    "structure",
]
