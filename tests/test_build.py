"""Compiling the native kernels, and life without them."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import dualprox
from dualprox.kernels import build, native

FOLDER = Path(build.__file__).parent
HOOK = Path(__file__).parent.parent / "hatch_build.py"
COMPILES = build.find_compiler() is not None


@pytest.fixture
def sources(tmp_path) -> Path:
    """A tree with the kernels' sources and no library."""
    folder = tmp_path / "src" / "dualprox" / "kernels"
    folder.mkdir(parents=True)
    for name in (*build.SOURCES, "build.py"):
        shutil.copy(FOLDER / name, folder)
    return folder


@pytest.fixture
def one_variant(monkeypatch) -> None:
    """Compile one library, without optimizing: it takes a fifth of the time."""
    monkeypatch.setattr(build, "variants", lambda: ("baseline",))
    monkeypatch.setattr(build, "_FLAGS", ("-std=c++17", "-O0", "-fPIC", "-shared"))


def no_compiler(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "/nonexistent/c++")


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_without_a_compiler_build_says_so(sources, monkeypatch):
    no_compiler(monkeypatch)
    with pytest.raises(FileNotFoundError, match=r"no C\+\+ compiler \(GCC or Clang\) was found"):
        build.build(sources)


def test_the_compiler_that_cxx_names_comes_first(tmp_path, monkeypatch):
    mine = script(tmp_path / "mine", "exit 0")
    monkeypatch.setenv("CXX", f"{mine} -flag")
    assert build.find_compiler() == f"{mine} -flag"


def test_a_failing_compiler_leaves_its_complaint_and_the_old_library(
    sources, tmp_path, monkeypatch, one_variant
):
    half = 'while [ "$1" != -o ]; do shift; done; echo half > "$2"; echo no room >&2; exit 3'
    monkeypatch.setenv("CXX", script(tmp_path / "failing", half))
    library = build.library_file(sources, "baseline")
    assert build.build(sources) == {"baseline": "no room"}
    assert not library.exists()
    library.write_text("old")
    build.build(sources)
    assert library.read_text() == "old"
    assert sorted(p.suffix for p in sources.iterdir()) == [".cpp", *[".h"] * 3, ".py", ".so"]
    monkeypatch.setenv("CXX", script(tmp_path / "silent", "exit 3"))
    assert build.build(sources) == {"baseline": f"{tmp_path}/silent ended with status 3"}


@pytest.mark.skipif(not COMPILES, reason="no compiler")
def test_a_library_carries_the_digest_of_its_sources(sources, one_variant):
    assert build.build(sources) == {"baseline": None}
    assert build.digest(sources).encode() in build.library_file(sources, "baseline").read_bytes()
    assert not [p for p in sources.iterdir() if p.is_dir()]
    before = build.digest(sources)
    (sources / "newton.h").write_text("// another")
    assert build.digest(sources) != before


@pytest.fixture
def hook(sources, tmp_path) -> Any:
    """The build hook on the copied tree, its warnings collected in `hook.warnings`."""
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("hatch_build", HOOK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    hook = module.CompileKernels.__new__(module.CompileKernels)
    warnings: list[str] = []
    vars(hook).update(
        _BuildHookInterface__root=str(tmp_path),
        _BuildHookInterface__app=SimpleNamespace(display_warning=warnings.append),
        warnings=warnings,
        library=build.library_file(sources, "baseline"),
    )
    return hook


def test_the_hook_refuses_a_wish_it_does_not_know(hook, monkeypatch):
    monkeypatch.setenv("DUALPROX_NATIVE", "yes")
    with pytest.raises(ValueError, match="must be 'skip' or 'require', got 'yes'"):
        hook.initialize("standard", {})


def test_the_hook_skips_and_removes_old_libraries(hook, monkeypatch):
    monkeypatch.setenv("DUALPROX_NATIVE", "skip")
    hook.library.write_text("old")
    data: dict[str, Any] = {}
    hook.initialize("standard", data)
    assert data == {} and not hook.library.exists() and not hook.warnings


def test_the_hook_only_warns_without_a_compiler_unless_told_to_require_one(hook, monkeypatch):
    no_compiler(monkeypatch)
    monkeypatch.delenv("DUALPROX_NATIVE", raising=False)
    data: dict[str, Any] = {}
    hook.initialize("standard", data)
    assert data == {} and "no C++ compiler" in hook.warnings[0]
    monkeypatch.setenv("DUALPROX_NATIVE", "require")
    with pytest.raises(RuntimeError, match="no native kernel could be compiled"):
        hook.initialize("standard", data)


def test_the_hook_marks_a_wheel_with_libraries_as_the_platforms_own(hook, tmp_path, monkeypatch):
    makes = 'while [ "$1" != -o ]; do shift; done; echo made > "$2"'
    monkeypatch.setenv("CXX", script(tmp_path / "making", makes))
    monkeypatch.setenv("DUALPROX_NATIVE", "require")
    data: dict[str, Any] = {}
    hook.initialize("standard", data)
    assert data["pure_python"] is False and data["tag"].startswith("py3-none-")
    assert hook.library.read_text() == "made\n" and not hook.warnings


@pytest.mark.skipif(native.why_unavailable() is not None, reason="no native kernels")
def test_a_library_of_other_sources_is_refused(monkeypatch):
    monkeypatch.setattr(native, "digest", lambda folder: "another")
    native._load.cache_clear()
    try:
        assert native.instruction_set() is None
        assert "was compiled from other sources; install" in str(native.why_unavailable())
    finally:
        monkeypatch.undo()
        native._load.cache_clear()


def test_without_a_library_everything_works_in_torch_and_native_says_why_not(tmp_path):
    package = Path(dualprox.__file__).parent
    shutil.copytree(
        package, tmp_path / "dualprox", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    program = (
        "import torch, dualprox as dp\n"
        "from dualprox.kernels import native\n"
        "assert native.instruction_set() is None\n"
        "w = torch.nn.Parameter(torch.ones(3, 2)); w.grad = torch.ones(3, 2)\n"
        "groups = [{'params': [w], 'penalty': dp.GroupLasso(0.1)}]\n"
        "dp.RAMDA(groups, impl='auto').step()\n"
        "assert (w < 1).all()\n"
        "print(native.why_unavailable())\n"
        "dp.RAMDA(groups, impl='native')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.stdout.startswith("not compiled: dualprox was installed without a C++ compiler")
    assert done.returncode == 1
    assert "ValueError: impl='native': the native kernels are not compiled" in done.stderr
