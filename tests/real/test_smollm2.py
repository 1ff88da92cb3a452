"""A real trained model, SmolLM2-135M: it loads, and its perplexity is known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from armor.demo.text import evaluation_text
from armor.evaluation.perplexity import evaluate
from armor.models.load import load_model, load_tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Any:
    return load_model(str(smollm2), torch.float32)


def test_digits_are_single_tokens(smollm2: Path) -> None:
    """A GGUF file does not say so; `scripts/fetch_smollm2.py` does."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert tokenizer.tokenize("in 1984") == ["in", "Ġ", "1", "9", "8", "4"]
    assert tokenizer.decode(tokenizer("in 1984")["input_ids"]) == "in 1984"


def test_a_given_text(smollm2: Path, model: Any) -> None:
    """Against transformers' own loss of each window."""
    tokenizer = load_tokenizer(str(smollm2))
    text = evaluation_text()[:5_000]
    result = evaluate(model, tokenizer, [text], seq_len=128, bos="never")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    losses = []
    for start in range(0, len(ids) - 127, 128):
        window = torch.tensor([ids[start : start + 128]])
        with torch.no_grad():
            losses.append(float(model(input_ids=window, labels=window).loss))
    assert result.windows == len(losses) > 5
    assert result.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    assert evaluate(model, tokenizer, [text], seq_len=128) == result  # its tokenizer adds no BOS


def test_perplexity_of_wikitext2(smollm2: Path, model: Any, shared: Path) -> None:
    """As measured with another program: 29.986."""
    file = shared / "data" / "wikitext2" / "wikitext2-raw-test.txt"
    tokenizer = load_tokenizer(str(smollm2))
    result = evaluate(model, tokenizer, file, seq_len=512, max_chars=200_000, bos="never")
    assert (result.bos, result.seq_len) == (False, 512)
    assert result.perplexity == pytest.approx(29.986, abs=0.02)
