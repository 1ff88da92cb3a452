"""The bundled model: loads offline on every transformers, is small, and has learnt its language."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from armor.demo.text import calibration_text, evaluation_text, model_dir

pytestmark = pytest.mark.transformers_compat


def test_fits_in_the_package() -> None:
    assert sum(path.stat().st_size for path in model_dir().iterdir()) < 4_000_000


def test_loads_whole_and_tied() -> None:
    model, info = AutoModelForCausalLM.from_pretrained(model_dir(), output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert model.dtype == torch.float32
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    rope = model.model.rotary_emb.inv_freq
    torch.testing.assert_close(rope, 10_000.0 ** (-torch.arange(len(rope)) / len(rope)))


@pytest.mark.parametrize("text", ["def f(x):\n\treturn  x", "naïve 漢字 🙂\r\n", "", " leading"])
def test_tokenizer_loses_nothing(text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_dir())
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert all(0 <= index < 1024 for index in ids)


def test_beats_token_frequencies_by_far_on_unseen_text() -> None:
    """On held-out topics the perplexity is below a tenth of the unigram model's."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir())
    model = AutoModelForCausalLM.from_pretrained(model_dir())

    def encode(text: str) -> torch.Tensor:
        return torch.tensor(tokenizer.encode(text, add_special_tokens=False, verbose=False))

    windows = encode(evaluation_text()[:16_000])
    windows = windows[: len(windows) // 256 * 256].view(-1, 256)
    with torch.no_grad():
        perplexity = math.exp(model(input_ids=windows, labels=windows).loss.item())

    counts = torch.bincount(encode(calibration_text()), minlength=model.config.vocab_size) + 1.0
    frequencies = (counts / counts.sum()).log()
    unigram = math.exp(-frequencies[windows[:, 1:]].mean().item())
    assert perplexity < unigram / 10
