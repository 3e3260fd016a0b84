"""Being asked to stop: Ctrl-C, a cluster that takes its machine back, and the time to save first.

Commands listen inside `listening`. Where nothing would be lost, a signal raises `Stopped` at once.
Inside `postponed` it waits until the work asks for it, at a place where it has saved; a second
signal does not wait.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

# Clusters send SIGTERM, and SIGUSR1 where they are told to warn some time before.
_CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 143}


class Stopped(BaseException):
    """Somebody asked the process to stop.

    Args:
        code: that it exits with.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class _Requests:
    """What has been asked for; one for the process, as signals are."""

    def __init__(self) -> None:
        self.code: int | None = None
        self.postpones = False

    def hear(self, code: int) -> None:
        again, self.code = self.code is not None, code
        if again or not self.postpones:
            raise Stopped(code)
        # Not print: the signal may have come while something was being printed.
        os.write(2, b"\ndualprox: stopping after this step; once more stops at once\n")


_requests = _Requests()


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Hear signals inside the block, those excepted that the process was started to ignore."""
    before = {}
    owner = os.getpid()
    if threading.current_thread() is threading.main_thread():
        for name, code in _CODES.items():
            number = getattr(signal, name, None)
            if number is None or signal.getsignal(number) == signal.SIG_IGN:
                continue

            def hear(number: int, frame: FrameType | None, code: int = code) -> None:
                # Processes that load data hear Ctrl-C, too: they end when this one does.
                if os.getpid() == owner:
                    _requests.hear(code)

            before[number] = signal.signal(number, hear)
    try:
        yield
    finally:
        _requests.code = None
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def postponed() -> Iterator[None]:
    """Let signals wait inside the block, where the work looks for them with `asked`."""
    outer, _requests.postpones = _requests.postpones, True
    try:
        yield
    finally:
        _requests.postpones = outer
    stop(asked())


def asked() -> int:
    """The exit code that a waiting signal asks for; 0 if none waits."""
    return _requests.code or 0


def stop(code: int) -> None:
    """Raise `Stopped` unless the code is 0."""
    if code:
        raise Stopped(code)
