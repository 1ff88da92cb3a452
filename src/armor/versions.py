"""Versions of what a result depends on."""

from __future__ import annotations

import platform


def versions(*names: str) -> dict[str, str]:
    """The installed versions, in the order of `names`: "armor", "python", or a distribution."""
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    if name == "python":
        return platform.python_version()
    from importlib.metadata import version  # slow to import, and the command line needs no version

    return version("armor-prune" if name == "armor" else name)
