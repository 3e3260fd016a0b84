"""Penalties: the regularizers psi and the structures they make."""

from .base import (
    DiagonalPenalty,
    Faces,
    Penalty,
    Rank,
    SeparablePenalty,
    Structure,
    Support,
)
from .constraints import Box, Cardinality, L2Ball, NonNegative
from .coupled import Coupled
from .low_rank import NuclearNorm, RankAtMost
from .nonconvex import L0, MCP, SCAD
from .nonconvex_groups import GroupHalf, GroupL0, GroupMCP, GroupSCAD
from .sparse import L1, ElasticNet, GroupLasso, GroupPenalty, SparseGroupLasso

__all__ = [
    "L0",
    "L1",
    "MCP",
    "SCAD",
    "Box",
    "Cardinality",
    "Coupled",
    "DiagonalPenalty",
    "ElasticNet",
    "Faces",
    "GroupHalf",
    "GroupL0",
    "GroupLasso",
    "GroupMCP",
    "GroupPenalty",
    "GroupSCAD",
    "L2Ball",
    "NonNegative",
    "NuclearNorm",
    "Penalty",
    "Rank",
    "RankAtMost",
    "SeparablePenalty",
    "SparseGroupLasso",
    "Structure",
    "Support",
]
