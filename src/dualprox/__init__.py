"""dualprox trains PyTorch networks into a structure, with guaranteed identification."""

from .coupling import Coupling, Member
from .geometry import Slices
from .grouping import ParamGroups, param_groups
from .optim import (
    RAMDA,
    RMDA,
    DualAveraging,
    ProxAdamW,
    ProximalOptimizer,
    ProxSGD,
    SolveReport,
    StageSchedule,
)
from .optim.narrow import narrow_, shrink_training
from .penalties import (
    L0,
    L1,
    MCP,
    SCAD,
    Box,
    Cardinality,
    Coupled,
    DiagonalPenalty,
    ElasticNet,
    Faces,
    GroupLasso,
    GroupMCP,
    GroupPenalty,
    L2Ball,
    NonNegative,
    NuclearNorm,
    Penalty,
    Rank,
    RankAtMost,
    SeparablePenalty,
    SparseGroupLasso,
    Structure,
    Support,
)
from .shrink.attention import NarrowAttention
from .shrink.export import export_program, load_slim, save_onnx, save_program, save_slim
from .shrink.factorize import LowRank, factorize, factorize_like
from .shrink.measure import Cost, Latency, compare, measure
from .shrink.plan import Plan, apply_plan
from .shrink.report import LayerChange, ShrinkReport, report_of
from .shrink.slim import shrink
from .shrink.sparse_layers import SemiStructuredLinear, SparseLinear
from .shrink.sparsify import sparsify, sparsify_like
from .shrink.trace import ShrinkError
from .structure import NetworkStructure, StructureMonitor, StructureRecord
from .structure.metrics import structure
from .subproblem import (
    Exact,
    NewtonRaphson,
    ProximalGradient,
    Solution,
    Solver,
    Subproblem,
)

__version__ = "0.1.0.dev0"

__all__ = [
    "L0",
    "L1",
    "MCP",
    "RAMDA",
    "RMDA",
    "SCAD",
    "Box",
    "Cardinality",
    "Cost",
    "Coupled",
    "Coupling",
    "DiagonalPenalty",
    "DualAveraging",
    "ElasticNet",
    "Exact",
    "Faces",
    "GroupLasso",
    "GroupMCP",
    "GroupPenalty",
    "L2Ball",
    "Latency",
    "LayerChange",
    "LowRank",
    "Member",
    "NarrowAttention",
    "NetworkStructure",
    "NewtonRaphson",
    "NonNegative",
    "NuclearNorm",
    "ParamGroups",
    "Penalty",
    "Plan",
    "ProxAdamW",
    "ProxSGD",
    "ProximalGradient",
    "ProximalOptimizer",
    "Rank",
    "RankAtMost",
    "SemiStructuredLinear",
    "SeparablePenalty",
    "ShrinkError",
    "ShrinkReport",
    "Slices",
    "Solution",
    "SolveReport",
    "Solver",
    "SparseGroupLasso",
    "SparseLinear",
    "StageSchedule",
    "Structure",
    "StructureMonitor",
    "StructureRecord",
    "Subproblem",
    "Support",
    "apply_plan",
    "compare",
    "export_program",
    "factorize",
    "factorize_like",
    "load_slim",
    "measure",
    "narrow_",
    "param_groups",
    "report_of",
    "save_onnx",
    "save_program",
    "save_slim",
    "shrink",
    "shrink_training",
    "sparsify",
    "sparsify_like",
    "structure",
]
