"""Files that are either whole or not there."""

import contextlib
import csv
import errno
import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class DamagedFile(Exception):
    """A file that does not hold what its name says."""


# What the system says when it cannot, whoever asks: no room, or a device that fails.
_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
_LEFTOVER = re.compile(r"\.(\d+)\..+")


class WriteError(Exception):
    """The system could not write a file: no room is left, or the device fails."""


@contextlib.contextmanager
def faults_named(path: Path) -> Iterator[None]:
    """Raise `WriteError`, which names `path`, for what is no mistake of the caller."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FAULTS:
            raise
        raise WriteError(f"cannot write {path}: {error.strerror}") from error


@contextlib.contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to by name; what is there when the block ends is removed."""
    beside = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        with faults_named(path):
            yield beside
    finally:
        beside.unlink(missing_ok=True)


def settle(written: Path, path: Path) -> None:
    """Flush a written file to the disk and rename it to `path`, for good."""
    with open(written, "rb") as file:
        os.fsync(file.fileno())
    os.replace(written, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, where the system has that."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary path to write to by name, renamed to `path` when the block ends well."""
    with temporary(path) as beside:
        yield beside
        settle(beside, path)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files in a folder of processes that were killed while they wrote."""
    for path in folder.glob(".*"):
        found = _LEFTOVER.fullmatch(path.name)
        # This process writes nothing now; after a restart of a container it has the number of
        # the one that was killed.
        if found and (int(found[1]) == os.getpid() or not _is_alive(int(found[1]))):
            path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    if os.name == "nt":
        return True  # asking would end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file, flush it to the disk, and rename it to `path`."""
    with replaced(path) as temporary, open(temporary, "wb") as file:
        write(file)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON; floats keep every digit."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_json_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object per line."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def append_json_line(path: Path, row: dict[str, Any]) -> None:
    """Add a JSON object as the last line, and flush it to the disk."""
    is_new = not path.exists()
    with faults_named(path), open(path, "ab") as file:
        file.write((json.dumps(row) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync_folder(path.parent)


def cut_lines(path: Path, count: int) -> None:
    """Leave the first lines of a file, at most `count`, all of them whole; none if it is not there.

    What a killed process left of its last line goes, too.
    """
    if path.exists():
        content = path.read_bytes()
        kept = b"".join(whole_lines(content)[:count])
        if kept != content:
            write_atomically(path, lambda file: file.write(kept))


def whole_lines(content: bytes) -> list[bytes]:
    r"""The lines that have an end, with it.

    Example:
        >>> whole_lines(b"one\ntwo\nthr")
        [b'one\n', b'two\n']
    """
    *lines, _ = content.split(b"\n")
    return [line + b"\n" for line in lines]


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write at least one row, under a head of the first one's keys; floats keep every digit."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DamagedFile: it is no JSON.
    """
    return _parsed(_text(path), path)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except ValueError as error:
        raise DamagedFile(f"{path} is damaged: {error}") from None


def _parsed(text: str | bytes, path: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is damaged: {error}") from None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; none if there is no file.

    A last line without an end is one that is being written, or was when its process was killed: it
    does not count.

    Raises:
        DamagedFile: a line is no object in JSON.
    """
    if not path.exists():
        return []
    rows = [_parsed(line, path) for line in whole_lines(path.read_bytes())]
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DamagedFile(f"{path} is damaged: line {number} holds no object")
    return rows


def load_tensors(path: Path) -> Any:
    """What torch.save wrote to a file, on the CPU; nothing in it is run.

    Raises:
        ValueError: it holds more than its own size: torch.save packs nothing.
    """
    import torch

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > path.stat().st_size:
            raise ValueError(f"its {unpacked} bytes do not fit into a file of their size")
    return torch.load(path, map_location="cpu", weights_only=True)


def write_png(path: Path, figure: "Figure") -> None:
    """Draw the figure, without a display, into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, lambda file: file.write(buffer.getvalue()))
