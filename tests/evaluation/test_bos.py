"""Perplexity with and without BOS, against a loop in plain torch that knows nothing of armor."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from armor.evaluation.perplexity import evaluate

TEXT = "".join(f"line {i}: the square of {i} is {i * i}.\n" for i in range(40))
WINDOW = 24


def by_hand(model: Any, ids: list[int], bos: int | None) -> tuple[float, int]:
    """Perplexity and the number of predicted tokens, one token at a time.

    A window has `WINDOW` tokens. With BOS the first of them is BOS, and `WINDOW` - 1 are text.
    """
    of_text = WINDOW if bos is None else WINDOW - 1
    total, count = 0.0, 0
    for start in range(0, len(ids) - of_text + 1, of_text):
        window = ids[start : start + of_text]
        if bos is not None:
            window = [bos, *window]
        with torch.no_grad():
            logits = model(torch.tensor([window])).logits[0].double()
        for place in range(len(window) - 1):
            scores = logits[place]
            total += float(scores.exp().sum().log() - scores[window[place + 1]])
            count += 1
    return math.exp(total / count), count


@pytest.mark.transformers_compat
def test_equals_a_loop_by_hand(tiny_bos_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_bos_model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_bos_model)
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    found = {}
    for bos, token in (("always", 256), ("auto", 256), ("never", None)):
        result = evaluate(model, tokenizer, [TEXT], seq_len=WINDOW, bos=bos)
        expected, count = by_hand(model, ids, token)
        assert result.perplexity == pytest.approx(expected, rel=1e-6)
        assert (result.tokens, result.bos) == (count, token is not None)
        found[bos] = result
    assert evaluate(model, tokenizer, [TEXT], seq_len=WINDOW) == found["auto"] == found["always"]
    assert abs(found["always"].perplexity / found["never"].perplexity - 1) > 1e-3
