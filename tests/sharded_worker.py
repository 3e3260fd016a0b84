"""What several processes do with sharded parameters; the tests start them and judge.

    python sharded_worker.py MODULE RANK WORLD FOLDER

runs the `cases(folder)` of a module, and leaves what failed on this process in a file.
"""

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

Case = tuple[str, Callable[[], None]]


class Traffic(TorchDispatchMode):
    """Counts what this process gives to collectives, the operations of DTensor included.

    `bytes` and `calls` are totals; of a gather what it brings is counted, not what it takes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # DTensor runs first, and comes back with plain tensors
        result = func(*args, **(kwargs or {}))
        if func.namespace in ("c10d", "_c10d_functional") and "wait" not in str(func):
            self.calls += 1
            self.bytes += max(_bytes(args), _bytes(result))
        return result


def _bytes(values: Any) -> int:
    if isinstance(values, torch.Tensor):
        return values.numel() * values.element_size()
    return sum(map(_bytes, values)) if isinstance(values, list | tuple) else 0


def full(tensor: Any) -> torch.Tensor:
    """The whole tensor, sharded or not."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def cut(tensor: torch.Tensor, mesh: Any, placements: Any) -> DTensor:
    """The DTensor of a tensor that all processes have whole: nothing is sent.

    Torch's own way is to scatter what the first process has. In one run of some thirty, each of
    some thousand scatters, a thread of gloo freed there what was not its own (torch 2.13).
    """
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)


def main(module: str, rank: int, world: int, folder: str) -> None:
    """Run all cases, up to the first that fails: then the others would wait for this process."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    patience = timedelta(minutes=3)
    dist.init_process_group("gloo", store, rank=rank, world_size=world, timeout=patience)
    cases: Iterable[Case] = importlib.import_module(module).cases(Path(folder))
    wanted = os.environ.get("DUALPROX_CASES", "")
    outcomes = {}
    for name, case in cases:
        if wanted not in name:
            continue
        try:
            case()
            outcomes[name] = ""
        except Exception:
            outcomes[name] = traceback.format_exc()
            break
    torch.save(outcomes, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
