"""Solvers of the subproblem with a penalty and a diagonal metric."""

from .exact import Exact
from .newton_raphson import NewtonRaphson
from .problem import Solution, Solver, Subproblem
from .proximal_gradient import ProximalGradient

__all__ = ["Exact", "NewtonRaphson", "ProximalGradient", "Solution", "Solver", "Subproblem"]
