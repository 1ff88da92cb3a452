"""Runs that share tokens and moments: less work, the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import armor
from armor.config import PruneConfig
from armor.run import jobs
from armor.run import prune as module
from armor.run.shared import Shared

SETTINGS: dict[str, dict[str, Any]] = {
    "nowag": {"method": "nowag", "exclude": ("*.gate_proj",)},  # the first of its stage
    "paper": {"objective": "diag", "target": "dense"},
    "full": {"objective": "full", "target": "dense"},
    "magnitude": {"method": "magnitude"},
    "other": {"method": "nowag", "seed": 1},
    "wanda": {"method": "wanda"},
    "default": {},
}
#: Those that run the dense model: the second needs a layer that the first had left out.
FORWARD = ["nowag", "paper", "other", "wanda", "default"]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """What was done since the last call: "draw" for token windows, "forward" for a dense block."""
    log: list[str] = []

    def noting(name: str, original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            log.append(name)
            return original(*args, **kwargs)

        return call

    monkeypatch.setattr(module, "draw_windows", noting("draw", module.draw_windows))
    monkeypatch.setattr(jobs, "advance_dense", noting("forward", jobs.advance_dense))

    def take() -> list[str]:
        taken = log.copy()
        log.clear()
        return taken

    return take


def test_the_same_bytes_with_less_work(
    tiny_model: Path, text: Path, tmp_path: Path, counted: Callable[[], list[str]]
) -> None:
    common = {"calibration": str(text), "samples": 8, "seq_len": 32, "iterations": 2}
    configs = {
        name: PruneConfig(**{**common, "block_size": 4, **changes})
        for name, changes in SETTINGS.items()
    }
    folder = tmp_path / "shared"
    with Shared(folder) as shared:
        for name, config in configs.items():
            counted()
            armor.prune(tiny_model, config, tmp_path / name, workers=1, shared=shared)
            work = counted()
            assert ("draw" in work) == (name in ("nowag", "other")), name
            assert ("forward" in work) == (name in FORWARD), name
        assert any(folder.iterdir())
    assert not folder.exists()
    for name, config in configs.items():
        armor.prune(tiny_model, config, tmp_path / f"{name}-alone", workers=1)
        files = [tmp_path / kind / "model.safetensors" for kind in (name, f"{name}-alone")]
        assert files[0].read_bytes() == files[1].read_bytes(), name


def test_leftovers_are_dropped_at_the_start(tmp_path: Path) -> None:
    left = tmp_path / "shared" / "deadbeef"
    left.mkdir(parents=True)
    with Shared(tmp_path / "shared"):
        assert not left.exists()
    with Shared() as nothing:
        assert nothing.moments("x") is None
        assert [nothing.once("key", lambda: 1), nothing.once("key", lambda: 2)] == [1, 1]
