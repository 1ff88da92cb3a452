"""Versions by name, in the order asked for."""

from __future__ import annotations

import importlib.metadata
import platform
from importlib.metadata import version

import pytest
import torch

from armor.bench.doctor import about
from armor.config import PruneConfig
from armor.run.manifest import make_manifest
from armor.run.record import run_record
from armor.versions import versions


def test_versions() -> None:
    found = versions("torch", "armor", "python")
    assert list(found.items()) == [
        ("torch", version("torch")),
        ("armor", version("armor-prune")),
        ("python", platform.python_version()),
    ]


def test_what_is_not_installed_as_a_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when armor is run from its source, with torch from elsewhere."""

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert versions("armor", "torch") == {"armor": "unknown", "torch": torch.__version__}
    found = about()
    assert (found["armor"], found["torch"]) == ("unknown", torch.__version__)
    windows = torch.zeros(1, 4, dtype=torch.int64)
    used = make_manifest(PruneConfig(), {}, {}, windows, "cpu")["versions"]
    assert used["armor"] == "unknown"
    assert run_record("m", PruneConfig(), [], {})["versions"]["armor"] == "unknown"
