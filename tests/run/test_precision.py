"""Passes in bfloat16: for models that are stored so, on processors that can; engines agree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import armor
from armor.config import PruneConfig
from armor.models.folder import ModelFolder
from armor.models.streamed import StreamedModel
from armor.run import precision
from armor.run.plain import prune_plainly
from armor.run.precision import bfloat16_devices

Settings = Callable[..., PruneConfig]
Weights = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def half_model(tiny_model: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def test_which_models(tiny_model: Path, half_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, half = (StreamedModel(ModelFolder.open(folder)) for folder in (tiny_model, half_model))
    monkeypatch.setattr(precision, "has_bfloat16", lambda: True)
    assert bfloat16_devices(half) == ("cpu", "cuda")
    assert bfloat16_devices(whole) == ()
    monkeypatch.setattr(precision, "has_bfloat16", lambda: False)
    assert bfloat16_devices(half) == ("cuda",)  # a GPU multiplies them in any case


def test_every_engine_has_the_same(
    half_model: Path,
    settings: Settings,
    weights: Weights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each run compares its passes with the model's own forward, too."""
    found = {}
    for can in (True, False):
        monkeypatch.setattr(precision, "has_bfloat16", lambda can=can: can)
        records = prune_plainly(half_model, settings(), tmp_path / f"plain-{can}")
        found[can] = weights(tmp_path / f"plain-{can}")
        armor.prune(half_model, settings(), tmp_path / f"two-{can}", workers=2)
        assert weights(tmp_path / f"two-{can}") == found[can]
        assert all(record.certificate for record in records.values())
    assert found[True] != found[False]
