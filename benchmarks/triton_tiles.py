"""Which tiles are the fastest for the Triton steps, launched one by one and as a CUDA graph?

    python benchmarks/triton_tiles.py [--tiles default clusters] [--output FILE]

Each method steps the weights of ResNet-50 and of the transformer of `dualprox bench step`, group
LASSO on the inputs of each matrix or kernel, beside `torch.optim.AdamW(fused=True)` on the same
weights. Quality is the largest deviation from the eager step and whether the supports agree. With
--output a JSON file is written, from a clean tree only. "clusters" lets thread blocks share a tile;
it should become the default in `kernels.tiling` where it is the faster.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import dualprox as dp
from dualprox.kernels.scalars import Method
from dualprox.kernels.tiling import Tiling
from dualprox.kernels.triton_steps import TritonGroup, unavailable
from dualprox.lab.bench.workloads import WORKLOADS

ROOT = Path(__file__).parents[1]
Shapes = list[tuple[int, ...]]
OPTIMIZERS: dict[Method, Any] = {
    "rmda": dp.RMDA,
    "ramda": dp.RAMDA,
    "prox_sgd": dp.ProxSGD,
    "prox_adamw": dp.ProxAdamW,
}
TILES = {"default": Tiling(), "clusters": Tiling(blocks=8)}
COUNTERS = ("step", "penalty_sum", "restart", "eps")


MODELS: dict[str, Shapes] = {
    name: [weight.shape for weight in WORKLOADS[name]().weights]
    for name in ("resnet50", "transformer")
}


def milliseconds(work: Callable[[], object], rounds: int = 60) -> dict[str, float]:
    """Median and quartiles of the device's time, the caches as a step leaves them."""
    for _ in range(5):
        work()
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    low, median, high = statistics.quantiles(times, n=4)
    return {"median": median, "low": low, "high": high}


def both_ways(plain: Callable[[], object], capturable: Callable[[], object]) -> dict[str, Any]:
    """Times launched from Python, and replayed from a CUDA graph."""
    launched = milliseconds(plain)
    capturable()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        capturable()
    return {"launched": launched, "graph": milliseconds(graph.replay)}


def weights(shapes: Shapes) -> tuple[list[torch.nn.Parameter], list[torch.Tensor]]:
    """The parameters and their gradients, float32."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s, device="cuda") / 30) for s in shapes]
    return params, [torch.randn_like(p) for p in params]


def fused_step(
    method: Method, shapes: Shapes, tiling: Tiling, capturable: bool
) -> tuple[list[torch.nn.Parameter], Callable[[], None], dp.ProximalOptimizer]:
    """The parameters, a function that takes a step, and the optimizer that holds the state."""
    params, grads = weights(shapes)
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    penalized = {"params": [p for p in params if p.dim() > 1], "penalty": dp.GroupLasso(1e-3)}
    opt = OPTIMIZERS[method]([penalized, {"params": [p for p in params if p.dim() == 1]}])
    states = [opt.state[p] for p in params]
    for state in states if capturable else ():
        state.update({c: state[c].cuda() for c in COUNTERS if c in state})
    penalty = dp.GroupLasso(1e-3)
    forms = [penalty.sparse_group_form(p) if p.dim() > 1 else None for p in params]
    fused = TritonGroup(method, [p.data for p in params], states, forms, capturable, tiling)
    return params, lambda: fused.step(grads, opt.param_groups[0]), opt


def deviation(method: Method, shapes: Shapes, tiling: Tiling) -> dict[str, Any]:
    """After three steps with the structured point as iterate: against the eager steps."""
    ours, step, opt = fused_step(method, shapes, tiling, capturable=False)
    theirs, _, eager = fused_step(method, shapes, tiling, capturable=False)
    for one in (opt, eager):
        for group in one.param_groups:
            group.update({k: 0.0 for k in ("momentum",) if k in group})
    for _ in range(3):
        step()
        eager.step()
    pairs = [(a.detach(), b.detach()) for a, b in zip(ours, theirs, strict=True)]
    largest = max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in pairs)
    differing = sum(int(((a == 0) != (b == 0)).sum()) for a, b in pairs)
    dead = sum(int((b == 0).sum()) for _, b in pairs)
    return {"deviation": largest, "entries of other support": differing, "zeros": dead}


def measure(tiles: list[str]) -> list[dict[str, Any]]:
    """A record per model, method and tiling."""
    records = []
    for model, shapes in MODELS.items():
        params, grads = weights(shapes)
        steps = []
        for capturable in (False, True):
            adamw = torch.optim.AdamW(params, fused=True, capturable=capturable)
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad
            steps.append(adamw.step)
        baseline = both_ways(*steps)
        for method in OPTIMIZERS:
            for name in tiles:
                quality = deviation(method, shapes, TILES[name])
                ways = [fused_step(method, shapes, TILES[name], c)[1] for c in (False, True)]
                times = both_ways(*ways)
                ratio = {k: times[k]["median"] / baseline[k]["median"] for k in times}
                head = {"model": model, "method": method, "tiles": name}
                more = {"ratio": ratio, **quality}
                records.append({**head, **more, "ms": times, "adamw ms": baseline})
                print(json.dumps(records[-1]), flush=True)
    return records


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", nargs="+", choices=TILES, default=list(TILES))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    why = unavailable()
    if why or not torch.cuda.is_available():
        print(f"nothing to measure: {why or 'there is no CUDA device'}", file=sys.stderr)
        return 1
    git = ["git", "-C", str(ROOT)]
    dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True).stdout
    if arguments.output and dirty:
        print("the tree has uncommitted changes: no JSON from it", file=sys.stderr)
        return 1
    records = measure(arguments.tiles)
    if arguments.output:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout
        where = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
        text = json.dumps({**where, "commit": commit.strip(), "records": records}, indent=1)
        arguments.output.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
