"""Tuning block by block: certified, resumable, its blocks what the model's own forward makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import armor
from armor.checkpoint.folder import unfinished_folder
from armor.checkpoint.reader import Checkpoint
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.models.folder import ModelFolder
from armor.models.load import load_model
from armor.run.own_text import draw_windows
from armor.tuning import block
from armor.tuning import plan as module
from armor.tuning.config import TuneConfig
from armor.tuning.tune import TuneProgress, tune


@pytest.fixture
def tuning() -> Callable[..., TuneConfig]:
    """Twelve steps each time; with changes on top."""

    def make(**changes: Any) -> TuneConfig:
        quick = {"mode": "block", "samples": 64, "steps": 12, "step_size": 1e-2}
        return TuneConfig(**{**quick, **changes})

    return make


def divergence(folder: Path, dense: Path, windows: torch.Tensor) -> float:
    """The mean KL over tokens, by the models' own forward, in float64."""
    with torch.no_grad():
        own, other = (
            load_model(one, torch.float32)(windows).logits.double() for one in (folder, dense)
        )
    p = other.softmax(-1)
    return float((p * (p.log() - own.log_softmax(-1))).sum(-1).mean())


@pytest.mark.parametrize("together", [1, 2])
def test_the_divergence_falls_and_is_that_of_the_models(
    tiny_model: Path,
    pruned: Path,
    tuning: Callable[..., TuneConfig],
    text: Path,
    together: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(block, "BLOCKS", together)
    out = tmp_path / "tuned"
    seen: list[tuple[int, int]] = []
    progress = TuneProgress(stepped=lambda done, total, *_: seen.append((done, total)))
    result = tune(pruned, tiny_model, tuning(), out, progress=progress)
    total = 12 * 2 // together
    assert seen == [(step, total) for step in range(1, total + 1)]
    assert result.curve.after < result.curve.before
    windows = draw_windows(str(text), ModelFolder.open(tiny_model), 64, 32, 0, "never")[-8:]
    assert result.curve.before == pytest.approx(divergence(pruned, tiny_model, windows), rel=1e-3)
    assert result.curve.after == pytest.approx(divergence(out, tiny_model, windows), rel=1e-3)
    before, after = load_file(pruned / "model.safetensors"), load_file(out / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert Checkpoint.open(out).layers == Checkpoint.open(pruned).layers
    assert not any(name.endswith(".core_indices") for name in changed)
    assert any(name.endswith("input_layernorm.weight") for name in changed)
    assert "model.norm.weight" not in changed


def test_an_interrupted_run_goes_on_to_the_same_bytes(
    tiny_model: Path,
    pruned: Path,
    tuning: Callable[..., TuneConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(block, "BLOCKS", 1)
    whole = tune(pruned, tiny_model, tuning(), tmp_path / "whole")

    def stop(done: int, *_: Any) -> None:
        if done == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(pruned, tiny_model, tuning(), tmp_path / "out", progress=TuneProgress(stepped=stop))
    result = tune(pruned, tiny_model, tuning(), tmp_path / "out")
    assert result.resumed == 12
    assert result.curve == whole.curve
    name = "model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not unfinished_folder(tmp_path / "out").exists()


def test_what_makes_it_worse_is_not_kept(
    tiny_model: Path, pruned: Path, tuning: Callable[..., TuneConfig], tmp_path: Path
) -> None:
    result = tune(pruned, tiny_model, tuning(step_size=10.0), tmp_path / "tuned")
    assert result.curve.best == 0
    name = "model.safetensors"
    assert (tmp_path / "tuned" / name).read_bytes() == (pruned / name).read_bytes()


@pytest.mark.parametrize("pattern", ["4:8", "50%"])
def test_other_patterns_and_end_to_end_afterwards(
    tiny_model: Path,
    settings: Callable[..., PruneConfig],
    tuning: Callable[..., TuneConfig],
    pattern: str,
    tmp_path: Path,
) -> None:
    armor.prune(tiny_model, settings(pattern=pattern), tmp_path / "pruned")
    first = tune(tmp_path / "pruned", tiny_model, tuning(), tmp_path / "blocks")
    second = tune(tmp_path / "blocks", tiny_model, tuning(mode="full"), tmp_path / "both")
    assert second.curve.before == pytest.approx(first.curve.after, rel=1e-3)
    assert second.curve.after < second.curve.before


def test_too_little_memory_is_one_line(
    tiny_model: Path,
    pruned: Path,
    tuning: Callable[..., TuneConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "available_memory", lambda: 1000)
    with pytest.raises(ArmorError, match="fewer windows"):
        tune(pruned, tiny_model, tuning(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
