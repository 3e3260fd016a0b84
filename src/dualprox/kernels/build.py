"""What the native library is compiled from and into; needs neither torch nor dualprox.

The build hook runs this file when the package is installed, `native` when it is imported.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = ("steps.cpp", "newton.h", "passes.h", "room.h")
_FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden"),
    # Licence to vectorize square roots and choices; sums keep their order.
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
)
_VARIANTS = {
    "avx512": (
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"),
        "-mprefer-vector-width=512",
    ),
    "avx2": ("-mavx2", "-mfma"),
    "baseline": (),
}


def digest(folder: Path) -> str:
    """A fingerprint of the sources in `folder`."""
    content = hashlib.sha256()
    for name in SOURCES:
        content.update((folder / name).read_bytes())
    return content.hexdigest()[:16]


def library_file(folder: Path, variant: str) -> Path:
    """Where the library for an instruction set lies."""
    return folder / f"steps_{variant}.so"


def variants() -> tuple[str, ...]:
    """The instruction sets worth compiling for on this kind of machine, the best first."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return tuple(_VARIANTS) if is_x86 else ("baseline",)


def find_compiler() -> str | None:
    """A C++ compiler with the flags of GCC and Clang: $CXX, or the first on the path."""
    if sys.platform == "win32":
        return None
    for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        if name and shutil.which(name.split()[0]):
            return name
    return None


def compile_library(compiler: str, folder: Path, variant: str) -> str | None:
    """Compile one variant next to its sources; the compiler's complaint, or None."""
    target = library_file(folder, variant)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch) / target.name
        command = [
            *(*compiler.split(), *_FLAGS, *_VARIANTS[variant]),
            f'-DDUALPROX_DIGEST="{digest(folder)}"',
            *(str(folder / "steps.cpp"), "-o", str(made)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return done.stderr.strip() or f"{compiler} ended with status {done.returncode}"
        made.replace(target)
    return None


def build(folder: Path) -> dict[str, str | None]:
    """Compile every variant, side by side; each one's complaint, or None.

    Raises:
        FileNotFoundError: there is no compiler.
    """
    compiler = find_compiler()
    if compiler is None:
        raise FileNotFoundError("no C++ compiler (GCC or Clang) was found")
    names = variants()
    with ThreadPoolExecutor() as pool:
        complaints = pool.map(lambda name: compile_library(compiler, folder, name), names)
        return dict(zip(names, complaints, strict=True))
