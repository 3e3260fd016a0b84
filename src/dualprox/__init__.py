"""dualprox trains PyTorch networks into a structure, with guaranteed identification."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .coupling import Coupling
from .geometry import Slices
from .grouping import ParamGroups, param_groups
from .joint import Member
from .optim import (
    RAMDA,
    RMDA,
    DualAveraging,
    FrozenSupport,
    ProxAdamW,
    ProximalOptimizer,
    ProxSGD,
    RigL,
    SolveReport,
    StageSchedule,
    nonfinite_gradients,
    scale_strength,
    set_concavity,
    set_strength,
    strengths,
)
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
    GroupHalf,
    GroupL0,
    GroupLasso,
    GroupMCP,
    GroupPenalty,
    GroupSCAD,
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
from .sharding import gather_
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

if TYPE_CHECKING:
    from .fitting.control import SizeControl, SizeRecord
    from .fitting.fit import fit
    from .fitting.result import Fit
    from .fitting.strength_max import strength_max
    from .fitting.target import TargetSize
    from .optim.narrow import narrow_, shrink_training
    from .shrinking.attention import NarrowAttention
    from .shrinking.export import export_program, load_slim, save_onnx, save_program, save_slim
    from .shrinking.factorize import LowRank, factorize, factorize_like
    from .shrinking.footprint import Footprint
    from .shrinking.measure import Cost, Latency, compare, measure
    from .shrinking.plan import Plan, apply_plan
    from .shrinking.report import LayerChange, ShrinkReport, report_of
    from .shrinking.select_linear import SelectLinear
    from .shrinking.slim import shrink
    from .shrinking.sparse_layers import SemiStructuredLinear, SparseLinear
    from .shrinking.sparsify import sparsify, sparsify_like
    from .shrinking.trace import ShrinkError

__version__ = "0.1.0.dev0"

# Shrinking comes late in a program's life, and its imports cost as much as all the others.
_LATER = {
    "Cost": "shrinking.measure",
    "Fit": "fitting.result",
    "Footprint": "shrinking.footprint",
    "Latency": "shrinking.measure",
    "LayerChange": "shrinking.report",
    "LowRank": "shrinking.factorize",
    "NarrowAttention": "shrinking.attention",
    "Plan": "shrinking.plan",
    "SelectLinear": "shrinking.select_linear",
    "SemiStructuredLinear": "shrinking.sparse_layers",
    "ShrinkError": "shrinking.trace",
    "ShrinkReport": "shrinking.report",
    "SizeControl": "fitting.control",
    "SizeRecord": "fitting.control",
    "SparseLinear": "shrinking.sparse_layers",
    "TargetSize": "fitting.target",
    "apply_plan": "shrinking.plan",
    "compare": "shrinking.measure",
    "export_program": "shrinking.export",
    "factorize": "shrinking.factorize",
    "factorize_like": "shrinking.factorize",
    "fit": "fitting.fit",
    "load_slim": "shrinking.export",
    "measure": "shrinking.measure",
    "narrow_": "optim.narrow",
    "report_of": "shrinking.report",
    "save_onnx": "shrinking.export",
    "save_program": "shrinking.export",
    "save_slim": "shrinking.export",
    "shrink": "shrinking.slim",
    "shrink_training": "optim.narrow",
    "sparsify": "shrinking.sparsify",
    "sparsify_like": "shrinking.sparsify",
    "strength_max": "fitting.strength_max",
}

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
    "Fit",
    "Footprint",
    "FrozenSupport",
    "GroupHalf",
    "GroupL0",
    "GroupLasso",
    "GroupMCP",
    "GroupPenalty",
    "GroupSCAD",
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
    "RigL",
    "SelectLinear",
    "SemiStructuredLinear",
    "SeparablePenalty",
    "ShrinkError",
    "ShrinkReport",
    "SizeControl",
    "SizeRecord",
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
    "TargetSize",
    "apply_plan",
    "compare",
    "export_program",
    "factorize",
    "factorize_like",
    "fit",
    "gather_",
    "load_slim",
    "measure",
    "narrow_",
    "nonfinite_gradients",
    "param_groups",
    "report_of",
    "save_onnx",
    "save_program",
    "save_slim",
    "scale_strength",
    "set_concavity",
    "set_strength",
    "shrink",
    "shrink_training",
    "sparsify",
    "sparsify_like",
    "strength_max",
    "strengths",
    "structure",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_LATER[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
