"""Processes of `dualprox` that are killed: at random moments, and within a write.

Run as a program, it is `dualprox` with a disk that is slow or kills:

    python kills.py slow SECONDS ...     every fsync takes so long
    python kills.py at NUMBER BYTE ...   SIGKILL when so many bytes of that file are written
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random


def spawn(arguments: Sequence[object], *disk: object) -> "subprocess.Popen[str]":
    """Start `dualprox`, on a disk as it is or as this program has it."""
    program = [__file__, *disk] if disk else ["-m", "dualprox"]
    command = [sys.executable, *program, *arguments]
    return subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(arguments: Sequence[object]) -> None:
    """Let `dualprox` come to its end, which must be a good one."""
    process = spawn(arguments)
    _, error = process.communicate()
    assert process.returncode == 0, error


def kill_at_random(
    process: "subprocess.Popen[str]", folder: Path, latest: float, moments: Random
) -> bool:
    """Kill a process some time after it has begun to train; False if it came to its end before.

    It has begun when something in its folder has changed.
    """
    before = _state_of(folder)
    while process.poll() is None and _state_of(folder) == before:
        time.sleep(0.005)
    time.sleep(moments.uniform(0, latest))
    return _kill(process)


def kill_in_a_write(process: "subprocess.Popen[str]", folder: Path) -> bool:
    """Kill a process while a temporary file of it is there; False if there was none."""
    while process.poll() is None:
        if any(str(process.pid) in path.name for path in folder.rglob(".*")):
            return _kill(process)
    return _kill(process)


def _kill(process: "subprocess.Popen[str]") -> bool:
    is_killed = process.poll() is None
    process.kill()
    _, error = process.communicate()
    if not is_killed:
        assert process.returncode in (0, -signal.SIGKILL), error
    return is_killed or process.returncode == -signal.SIGKILL


def _state_of(folder: Path) -> list[tuple[str, float]]:
    found = []
    for path in folder.rglob("*"):
        try:
            found.append((str(path), path.stat().st_mtime))
        except FileNotFoundError:  # renamed since
            continue
    return sorted(found)


def _slow(seconds: float) -> None:
    fsync = os.fsync

    def slow(handle: int) -> None:
        time.sleep(seconds)
        fsync(handle)

    os.fsync = slow


def _kill_at(number: int, byte: int) -> None:
    """Have the process killed by itself in the middle of the `number`-th checkpoint's file."""
    from dualprox.lab import checkpoints

    write, files, written = checkpoints._Summed.write, [], [0]

    def counted(self: checkpoints._Summed, part: bytes) -> int:
        if self not in files:
            files.append(self)
            written[0] = 0
        content = bytes(part)
        if len(files) == number and written[0] + len(content) > byte:
            self.file.write(content[: byte - written[0]])
            self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        written[0] += len(content)
        return write(self, part)

    checkpoints._Summed.write = counted


def _main(arguments: list[str]) -> int:
    from dualprox.lab.cli import main

    if arguments[0] == "slow":
        _slow(float(arguments[1]))
        return main(arguments[2:])
    _kill_at(int(arguments[1]), int(arguments[2]))
    return main(arguments[3:])


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
