"""A real model, SmolLM2-135M: 64 greedy tokens of eight prompts, and its bytes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import armor
from armor.checkpoint.inspect import Inspection
from armor.config import PruneConfig
from armor.demo.text import calibration_text

pytestmark = pytest.mark.slow

PROMPTS = [
    "The capital of France is",
    "Once upon a time, there was a",
    "def fibonacci(n):",
    "The three laws of thermodynamics are",
    "Water boils at",
    "My favourite recipe for bread begins with",
    "In 1969, the first",
    "Dear Sir or Madam,",
]


@pytest.fixture(scope="module")
def folder(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pruned as fast as it can be, or what ``$ARMOR_SMOLLM2_PRUNED`` holds."""
    if given := os.environ.get("ARMOR_SMOLLM2_PRUNED"):
        return Path(given)
    out = tmp_path_factory.mktemp("smollm2") / "pruned"
    text = (calibration_text()[:100_000],)
    config = PruneConfig(calibration=text, samples=8, seq_len=128, iterations=2)
    armor.prune(smollm2, config, out)
    return out


def test_same_tokens_and_bytes(folder: Path, engines: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    job = {"folder": folder, "prompts": ids, "tokens": 64, "options": {"max_model_len": 256}}
    stored = {**job, "tokens": 1, "options": {"max_model_len": 256, "dtype": "auto"}}
    found, as_stored = engines.vllm([job, stored])
    (wanted,) = engines.transformers([job])
    assert "error" not in found, found["error"]
    for ours, theirs in zip(found["outputs"], wanted["outputs"], strict=True):
        assert ours["tokens"] == theirs["tokens"]
        assert ours["logprobs"] == pytest.approx(theirs["logprobs"], abs=1e-4)
    (held,) = as_stored["bytes"]
    assert held <= 1.02 * Inspection.of(folder).model_bytes
