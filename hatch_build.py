"""Compiles the native kernels when the package is built or installed, where there is a compiler.

Without one the package works all the same, in torch alone. DUALPROX_NATIVE=skip compiles nothing,
DUALPROX_NATIVE=require makes it an error when nothing can be compiled.
"""

import importlib.util
import os
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompileKernels(BuildHookInterface):
    """The build hook that pyproject.toml names."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile into the source tree, from where wheels take the libraries."""
        del version
        folder = Path(self.root) / "src" / "dualprox" / "kernels"
        spec = importlib.util.spec_from_file_location("build_kernels", folder / "build.py")
        assert spec is not None and spec.loader is not None
        kernels = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(kernels)
        wish = os.environ.get("DUALPROX_NATIVE", "")
        if wish not in ("", "skip", "require"):
            raise ValueError(f"DUALPROX_NATIVE must be 'skip' or 'require', got {wish!r}")
        for name in kernels.variants():
            kernels.library_file(folder, name).unlink(missing_ok=True)
        if wish == "skip":
            return
        try:
            complaints = kernels.build(folder)
        except FileNotFoundError as error:
            complaints = {"": str(error)}
        for name, complaint in complaints.items():
            if complaint:
                self.app.display_warning(f"dualprox: native kernels {name}: {complaint}")
        if any(complaint is None for complaint in complaints.values()):
            tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{tag}"
        elif wish == "require":
            raise RuntimeError("DUALPROX_NATIVE=require, but no native kernel could be compiled")
