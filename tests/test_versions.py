"""Versions by name, in the order asked for."""

from __future__ import annotations

import platform
from importlib.metadata import version

from armor.versions import versions


def test_versions() -> None:
    found = versions("torch", "armor", "python")
    assert list(found.items()) == [
        ("torch", version("torch")),
        ("armor", version("armor-prune")),
        ("python", platform.python_version()),
    ]
