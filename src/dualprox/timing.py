"""Times of several things taken in turns in one process."""

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch

_MOST_CALLS = 500


@dataclass(frozen=True)
class Timing:
    """Seconds of one call.

    Args:
        median: of the samples.
        q1: lower quartile.
        q3: upper quartile.
        samples: how many were taken.
        calls: calls averaged in one sample.
    """

    median: float
    q1: float
    q3: float
    samples: int
    calls: int


def summarize(samples: list[float], calls: int) -> Timing:
    """Median and quartiles.

    Example:
        >>> summarize([1.0, 2.0, 4.0], calls=1)
        Timing(median=2.0, q1=1.5, q3=3.0, samples=3, calls=1)
    """
    median = statistics.median(samples)
    if len(samples) < 2:
        return Timing(median, median, median, len(samples), calls)
    q1, _, q3 = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median, q1, q3, len(samples), calls)


class Clock(ABC):
    """A way to time calls on a device.

    Attributes:
        shortest: seconds that a sample should take; shorter calls are repeated to fill them.
    """

    shortest: ClassVar[float] = 2e-3

    @abstractmethod
    def seconds(self, call: Callable[[], object], calls: int) -> float:
        """Mean seconds of one of `calls` calls, all work they launched included."""


class CpuClock(Clock):
    """The performance counter."""

    def seconds(self, call: Callable[[], object], calls: int) -> float:
        """See `Clock`."""
        began = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - began) / calls


class CudaClock(Clock):
    """Events in the stream: time to launch counts where it is longer than the work launched."""

    # One call alone would show the first launch's delay, which nobody sees behind a backward pass.
    shortest = 2e-2

    def seconds(self, call: Callable[[], object], calls: int) -> float:
        """See `Clock`."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        for _ in range(calls):
            call()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3 / calls


def clock_of(device: torch.device) -> Clock:
    """The clock for a device."""
    return CudaClock() if device.type == "cuda" else CpuClock()


@contextmanager
def threads(count: int | None) -> Iterator[int]:
    """Let torch use `count` threads, or as many as it does; gives the number, undone on exit."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Budget:
    """How long to time.

    Args:
        seconds: for each contender.
        least: fewest samples of each; of those that take longer than `seconds`, three suffice.
        most: most samples of each.
    """

    seconds: float = 2.0
    least: int = 5
    most: int = 200


@dataclass(frozen=True)
class Case:
    """Something to time.

    Args:
        run: the timed call.
        prepare: called before each sample, not timed.
    """

    run: Callable[[], object]
    prepare: Callable[[], object] = lambda: None


def interleave(
    cases: Mapping[str, Case],
    clock: Clock,
    budget: Budget,
    progress: Callable[[str], object] = lambda name: None,
) -> dict[str, Timing]:
    """Time the cases in turns, so that a disturbance of the machine falls on all of them.

    Every round calls each case once, beginning with another one each time. A case whose budget is
    spent sits out the rounds that follow, except the first one: it is the baseline, and runs
    in every round.

    Args:
        cases: by name, the baseline first; none may need a warm-up beyond three calls.
        clock: of the device.
        budget: for each case.
        progress: told the name of a case before it runs.
    """
    calls: dict[str, int] = {}
    least: dict[str, int] = {}
    samples: dict[str, list[float]] = {name: [] for name in cases}
    for name, case in cases.items():
        progress(name)
        case.prepare()
        once = clock.seconds(case.run, 1)
        least[name] = min(budget.least, 3) if once > budget.seconds else budget.least
        if once > max(budget.seconds, 1.0):  # too long for a warm-up to matter
            samples[name].append(once)
        else:
            clock.seconds(case.run, 2)
            once = clock.seconds(case.run, 1)
        calls[name] = max(1, min(_MOST_CALLS, round(clock.shortest / max(once, 1e-9))))
    names = list(cases)
    spent = {name: sum(samples[name]) for name in names}

    def done(name: str) -> bool:
        taken = len(samples[name])
        return taken >= budget.most or (taken >= least[name] and spent[name] >= budget.seconds)

    rounds = 0
    while not all(map(done, names)):
        first = rounds % len(names)
        for name in names[first:] + names[:first]:
            if done(name) and name != names[0]:
                continue
            progress(name)
            cases[name].prepare()
            samples[name].append(clock.seconds(cases[name].run, calls[name]))
            spent[name] += samples[name][-1] * calls[name]
        rounds += 1
    return {name: summarize(samples[name], calls[name]) for name in names}
