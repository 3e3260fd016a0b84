"""What every optimizer is told by keyword, and what it tells of its last step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from ..checks import require


class Options(TypedDict, total=False):
    """Keyword options of every optimizer, with torch's names.

    Args:
        maximize: ascend along the gradient instead of descending; default False.
        impl: which implementation of the step to use; default "auto". "eager" is torch and the
            definition of the others; "native" the compiled kernels, on the CPU; "triton" those
            for CUDA GPUs. These two raise for what they cannot do. "auto" is "native" wherever
            that can be and "eager" elsewhere.
        foreach: only None or False; `impl` chooses the implementation.
        fused: only None or False; `impl` chooses the implementation.
        capturable: with ``impl="triton"``, keep counters on the device and read a tensor lr there,
            so that steps can be captured in a CUDA graph. Default False.
        differentiable: only False.
        certify: compute the certificate of every subproblem in the step that solves it, for
            `solver_report`; costs about one more pass over the parameters. Default False.
    """

    maximize: bool
    impl: str
    foreach: bool | None
    fused: bool | None
    capturable: bool
    differentiable: bool
    certify: bool


@dataclass(frozen=True)
class SolveReport:
    """How the last subproblem of a parameter, or of a coupled group, was solved.

    Args:
        name: the parameter's name, or its place as "group.index"; of a coupled group the first's,
            with the number of the others.
        iterations: taken by the solver in the last step; 0 for a closed form.
        certificate: the norm of a subgradient of the subproblem at the point found, eq. (7) of
            arXiv:2403.14398. Proximal gradient iterations have one for nothing; for other solvers
            it is dist(0, dQ) if the optimizer was made with ``certify=True``, else None.
    """

    name: str
    iterations: int
    certificate: float | None


def check_options(owner: str, options: Mapping[str, Any]) -> None:
    """Raise for options that the optimizer `owner` does not have or that must be unset."""
    for name, value in options.items():
        if name not in Options.__annotations__:
            raise TypeError(f"{owner} has no option {name!r}")
        if name in ("foreach", "fused", "differentiable"):
            require(value is None or value is False, name, "unset or False", value)
        if name in ("maximize", "capturable", "certify"):
            require(isinstance(value, bool), name, "a bool", value)
