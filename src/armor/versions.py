"""Versions of what a result depends on."""

from __future__ import annotations

import platform
import sys


def versions(*names: str) -> dict[str, str]:
    """The installed versions, in the order of `names`: "armor", "python", or a distribution.

    Of one that is there without being installed, such as armor run from its source, what its module
    says, else "unknown".
    """
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    if name == "python":
        return platform.python_version()
    # Slow to import, and the command line needs no version.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("armor-prune" if name == "armor" else name)
    except PackageNotFoundError:
        return str(getattr(sys.modules.get(name), "__version__", "unknown"))
