"""What `dualprox doctor` says: versions, devices, kernels, and whether they compute right."""

import argparse
import importlib.metadata
import importlib.util
import platform
from collections.abc import Iterator

import torch

import dualprox as dp

from ..kernels import native, triton_steps
from .usage import EXTRAS

# Of the largest entry, after five steps; the kernels' tests hold them to less.
_TOLERANCE = 1e-4


def doctor(args: argparse.Namespace) -> int:
    """Print a line for each finding; exit code 1 if a check has failed."""
    del args
    ok = True
    for name, value in _findings():
        print(f"{name:14}{value}")
        ok = ok and not value.startswith("FAILED")
    return 0 if ok else 1


def _findings() -> Iterator[tuple[str, str]]:
    yield "dualprox", dp.__version__
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield "torch", torch.__version__
    yield "numpy", importlib.metadata.version("numpy")
    for module, name in EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        yield name, importlib.metadata.version(name) if there else "missing (extra: lab)"
    cuda = torch.cuda.is_available()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
    yield "devices", ", ".join(["cpu", *gpus])
    yield "threads", str(torch.get_num_threads())
    yield "native", native.instruction_set() or f"no: {native.why_unavailable()}"
    yield "triton", _triton()
    certificate = _worst_certificate()
    verdict = "ok" if certificate < 1e-10 else "FAILED"
    yield "self-check", f"{verdict}: subproblem certificate {certificate:.1e}"
    if native.why_unavailable() is None:
        difference = native_difference()
        # "<=", not the negated ">": NaN must fail.
        verdict = "ok" if difference <= _TOLERANCE else "FAILED"
        yield "native-check", f"{verdict}: native and eager differ by {difference:.1e}"


def _triton() -> str:
    reason = triton_steps.unavailable()
    there = importlib.util.find_spec("triton") is not None
    version = importlib.metadata.version("triton") if there else ""
    return f"no: {', '.join(filter(None, (version, reason)))}" if reason else version


def _worst_certificate() -> float:
    """Ten steps of RAMDA on a small problem; the worst dist(0, dQ) of its subproblems."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(6, 8, generator=generator, dtype=torch.float64)
    weight = torch.zeros(6, 8, dtype=torch.float64, requires_grad=True)
    group = {"params": [weight], "penalty": dp.GroupLasso(0.3)}
    opt = dp.RAMDA([group], lr=0.1, certify=True)
    worst = 0.0
    for _ in range(10):
        opt.zero_grad()
        (weight - target).square().sum().backward()
        opt.step()
        worst = max(worst, opt.solver_report()[0].certificate or 0.0)
    return worst


def native_difference() -> float:
    """The most by which five native steps differ from eager ones, relative to the largest entry.

    NaN if either has made one.
    """
    worst = torch.zeros(())
    for method in (dp.RMDA, dp.RAMDA, dp.ProxSGD, dp.ProxAdamW):
        points = []
        for impl in ("native", "eager"):
            generator = torch.Generator().manual_seed(0)
            weight = torch.nn.Parameter(torch.randn(40, 50, generator=generator))
            group = {"params": [weight], "penalty": dp.GroupLasso(0.1)}
            opt = method([group], lr=0.1, impl=impl)
            for _ in range(5):
                weight.grad = torch.randn(40, 50, generator=generator)
                opt.step()
            points.append(weight.detach())
        ours, theirs = points
        worst = torch.maximum(worst, (ours - theirs).abs().max() / theirs.abs().max())
    return float(worst)
