"""A tiny pruned model beside its dense one, and a quick tuning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import armor
from armor.config import PruneConfig
from armor.tuning.config import TuneConfig


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 9,000 bytes of text."""
    file = tmp_path_factory.mktemp("texts") / "calibration.txt"
    file.write_text("\n".join(f"line {i}: the square of {i} is {i * i}." for i in range(300)))
    return file


@pytest.fixture(scope="session")
def settings(text: Path) -> Callable[..., PruneConfig]:
    """A quick pruning; with changes on top."""

    def make(**changes: Any) -> PruneConfig:
        quick = {"samples": 24, "seq_len": 32, "iterations": 2, "block_size": 8}
        return PruneConfig(**{"calibration": str(text), **quick, **changes})

    return make


@pytest.fixture(scope="session")
def pruned(
    tiny_model: Path, settings: Callable[..., PruneConfig], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """`tiny_model` pruned."""
    folder = tmp_path_factory.mktemp("pruned") / "tiny"
    armor.prune(tiny_model, settings(), folder)
    return folder


@pytest.fixture
def tuning() -> Callable[..., TuneConfig]:
    """Twenty steps; with changes on top."""

    def make(**changes: Any) -> TuneConfig:
        return TuneConfig(**{"samples": 64, "steps": 20, "step_size": 1e-2, **changes})

    return make
