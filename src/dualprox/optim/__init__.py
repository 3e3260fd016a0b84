"""Optimizers and their schedule."""

from .base import ProximalOptimizer
from .dual_averaging import DualAveraging
from .finite import nonfinite_gradients
from .momentum import ProxAdamW, ProxSGD
from .options import Options, SolveReport
from .ramda import RAMDA
from .rigl import RigL
from .rmda import RMDA
from .schedule import StageSchedule
from .strength import scale_strength, set_concavity, set_strength, strengths
from .support import FrozenSupport

__all__ = [
    "RAMDA",
    "RMDA",
    "DualAveraging",
    "FrozenSupport",
    "Options",
    "ProxAdamW",
    "ProxSGD",
    "ProximalOptimizer",
    "RigL",
    "SolveReport",
    "StageSchedule",
    "nonfinite_gradients",
    "scale_strength",
    "set_concavity",
    "set_strength",
    "strengths",
]
