"""Mistakes of the caller of the command."""

import importlib.util

# Modules of the extra "lab", and the packages they come in.
EXTRAS = {
    "sklearn": "scikit-learn",
    "matplotlib": "matplotlib",
    "PIL": "pillow",
    "rich": "rich",
    "safetensors": "safetensors",
}


class UsageError(Exception):
    """A mistake of the caller: one line on stderr, exit code 2."""


def require_extras() -> None:
    """Raise UsageError, saying what to install, unless the extra "lab" is there."""
    missing = [name for module, name in EXTRAS.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UsageError(f'{", ".join(missing)} missing: pip install "dualprox[lab]"')
