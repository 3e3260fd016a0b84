"""The processes of one run, as torchrun starts them: who they are, and what they tell each other.

Without torchrun, and with one process, every function here does nothing or returns its argument.
"""

import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .settings import Run
from .usage import UsageError

T = TypeVar("T")
# Where the processes agree on which of them reports a failure; None before `join`.
_store: Any = None


def launched() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this one, from 0."""
    return dist.get_rank() if world() > 1 else 0


def is_first() -> bool:
    """Whether this process writes files, evaluates and reports."""
    return rank() == 0


def join() -> None:
    """Meet the other processes that torchrun has started; all but the first print nothing more.

    They talk by gloo, about what is on a GPU by NCCL. Does nothing for a single process.
    """
    global _store
    if launched() == 1:
        return
    from torch.distributed.rendezvous import rendezvous  # not in every build of torch

    # gloo's threads add numbers up, and threads take the mode that they are born under.
    torch.set_flush_denormal(True)
    store, number, count = next(iter(rendezvous("env://")))
    _store = _fresh(store, number, count)
    on_gpus = torch.cuda.is_available() and dist.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
    dist.init_process_group(backend, store=_store, rank=number, world_size=count)
    if number > 0:
        sys.stdout = open(os.devnull, "w")


def _fresh(store: Any, number: int, count: int) -> Any:
    """A part of the store in which nobody has written before.

    Torchrun restarts processes on the store of those before, and the addresses of these are still
    there; how often it has restarted need not be the same on all machines. So every process says
    a word that nobody has said before, the first one repeats all that it hears, with its own, and
    who hears his own among them answers.

    Raises:
        UsageError: not all processes have come in five minutes.
    """
    from torch.distributed.distributed_c10d import PrefixStore

    word, until = uuid.uuid4().hex, time.monotonic() + 300
    others, agreed = range(1, count), ""

    def said(key: str) -> str:
        return store.get(key).decode() if store.check([key]) else ""

    if number > 0:
        store.set(f"dualprox/here/{number}", word)
    while not agreed:
        if number > 0:
            first, *heard = said("dualprox/heard").split() or [""]
            if word in heard:
                store.set(f"dualprox/{first}/{number}", word)
                agreed = first
        else:
            here = [said(f"dualprox/here/{other}") for other in others]
            store.set("dualprox/heard", " ".join([word, *here]))
            if store.check([f"dualprox/{word}/{other}" for other in others]):
                agreed = word
        if time.monotonic() > until:
            raise UsageError(f"not all of {count} processes have come in five minutes")
        time.sleep(0.01)
    return PrefixStore(f"dualprox/{agreed}", store)


def leave(code: int) -> int:
    """Part from the other processes, and return the exit code of this one.

    After a failure the process ends here and now: the others may wait in the middle of a sum, and
    closing the group in good order would wait for them.
    """
    if _store is None:
        return code
    sys.stdout.flush()
    sys.stderr.flush()
    if code != 0:
        os._exit(code)
    dist.destroy_process_group()
    return code


def complain(text: str) -> None:
    """Print an error, unless another process of the run has reported one before."""
    if _store is None:
        is_mine = int(os.environ.get("RANK", "0")) == 0
    else:
        try:
            is_mine = _store.add("dualprox/failures", 1) == 1
        except dist.DistError:  # the process that kept the store is gone, and torchrun says so
            is_mine = False
    if is_mine:
        print(text, file=sys.stderr)


def is_loss_of_another(error: BaseException) -> bool:
    """Whether an error means that another process of the run has ended."""
    return world() > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error))


def placed(run: Run) -> Run:
    """The run on the device of this process: a GPU each if it asks for one.

    Raises:
        UsageError: this machine has fewer GPUs than processes.
    """
    if world() == 1 or run.device == "cpu":
        return run
    local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= gpus:
        count = os.environ.get("LOCAL_WORLD_SIZE", "?")
        raise UsageError(
            f"device={run.device} takes a GPU for every process of a machine, "
            f"got {count} processes and {gpus} GPUs"
        )
    torch.cuda.set_device(local)
    return replace(run, device=f"cuda:{local}")


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes; the others wait for it."""
    if world() == 1:
        return make()
    box: list[Any] = [make() if is_first() else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def rows(count: int) -> slice:
    """Which of `count` rows are this process's; as even as can be, and of few rows maybe none."""
    return slice(rank() * count // world(), (rank() + 1) * count // world())


def total(tensor: Tensor) -> Tensor:
    """The sum over all processes, of tensors of one shape."""
    if world() == 1:
        return tensor
    summed = tensor.detach().clone()
    dist.all_reduce(summed)
    return summed


def largest(*numbers: int) -> list[int]:
    """The largest of the processes' first numbers, of their second ones, and so on."""
    if world() == 1:
        return list(numbers)
    box = torch.tensor(numbers)
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return box.tolist()


def wait() -> None:
    """Return when all processes have come here."""
    if world() > 1:
        dist.barrier()


def at_first(tensor: Tensor, dim: int) -> Tensor:
    """The parts of all processes, joined along an axis; on other processes than the first its own.

    Args:
        tensor: of this process, on the CPU; sizes along `dim` may differ.
        dim: the axis.
    """
    if world() == 1:
        return tensor
    parts: list[Any] | None = [None] * world() if is_first() else None
    dist.gather_object(tensor, parts, dst=0)
    return tensor if parts is None else torch.cat(parts, dim)


def require_same(weights: Iterable[Tensor], when: str) -> None:
    """Raise FloatingPointError unless all processes have the same float32 weights, bit for bit.

    All of them take each step by themselves from one gradient, so they must.
    """
    if world() == 1:
        return
    bits = [weight.detach().contiguous().view(torch.int32) for weight in weights]
    sums = torch.stack([each.sum(dtype=torch.int64) for each in bits])
    extremes = torch.cat((sums, -sums))
    dist.all_reduce(extremes, dist.ReduceOp.MAX)
    if not torch.equal(extremes, torch.cat((sums, -sums))):
        raise FloatingPointError(
            f"{when} the processes have different weights: they must run on machines of one kind, "
            "with one version of torch; the checkpoint of the epoch before is untouched"
        )


def launch() -> str:
    """A name of this start of torchrun that stays through its restarts."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return f"{socket.gethostname()} {os.getppid()}" if name == "none" else name


def may_restart() -> bool:
    """Whether torchrun will start processes again that fail."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def has_restarted() -> bool:
    """Whether torchrun has started this process again, after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
