"""Every family tuned, end to end and block by block: closer to the dense model, its form kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import armor
from armor.checkpoint.reader import Checkpoint
from armor.config import PruneConfig
from armor.tuning.config import TuneConfig

pytestmark = pytest.mark.transformers_compat


@pytest.mark.parametrize("mode", ["full", "block"])
def test_tuning_helps(family: Any, mode: str, tokenizer: Any, text: Path, tmp_path: Path) -> None:
    source, pruned, out = (tmp_path / folder for folder in ("source", "pruned", "out"))
    family.model().save_pretrained(source)
    tokenizer.save_pretrained(source)
    settings = {"calibration": str(text), "samples": 16, "seq_len": 32, "iterations": 2}
    armor.prune(source, PruneConfig(**settings, block_size=4), pruned)
    config = TuneConfig(mode, samples=48, steps=12, step_size=1e-2)
    result = armor.tune(pruned, source, config, out)
    assert result.curve.after < result.curve.before
    before, after = Checkpoint.open(pruned), Checkpoint.open(out)
    assert before.layers == after.layers
    assert {name: (one.shape, one.dtype) for name, one in before.tensors.items()} == {
        name: (one.shape, one.dtype) for name, one in after.tensors.items()
    }
    assert armor.load(out) is not None
