"""Perplexity against an independent computation, its protocol, and what is refused."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from armor.errors import ArmorError
from armor.evaluation.perplexity import evaluate
from armor.models.load import load_model, load_tokenizer


class Letters:
    """A tokenizer with one id a character: its code."""

    def __call__(self, text: str, add_special_tokens: bool, **_: Any) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [ord(letter) for letter in text]}


class Table(nn.Module):
    """A model whose next-token logits depend on the present token only."""

    def __init__(self, table: torch.Tensor, context: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(table)
        text = SimpleNamespace(max_position_embeddings=context)
        self.config = SimpleNamespace(get_text_config=lambda: text)
        self.device = table.device
        self.batches: list[int] = []

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        assert not use_cache
        assert not self.training
        self.batches.append(len(input_ids))
        return SimpleNamespace(logits=self.embedding(input_ids))


@pytest.fixture
def table() -> Table:
    return Table(torch.randn(128, 128, generator=torch.Generator().manual_seed(0)))


def by_hand(table: Table, text: str, seq_len: int) -> list[list[float]]:
    """Losses of each window, one token at a time."""
    windows = [text[i : i + seq_len] for i in range(0, len(text) - seq_len + 1, seq_len)]
    log_p = table.embedding.weight.double().log_softmax(-1)
    return [[-float(log_p[ord(a), ord(b)]) for a, b in pairwise(w)] for w in windows]


TEXT = "The quick brown fox jumps over the lazy dog and is gone."


def test_windows_tail_and_numbers(table: Table) -> None:
    result = evaluate(table, Letters(), [TEXT], seq_len=10)
    losses = by_hand(table, TEXT, 10)
    flat = [loss for window in losses for loss in window]
    mean = sum(flat) / len(flat)
    assert (result.windows, result.tokens, result.seq_len) == (5, 45, 10)
    assert (result.text_tokens, result.text_bytes) == (56, 56)
    assert result.perplexity == pytest.approx(math.exp(mean), rel=1e-6)
    assert result.bits_per_byte == pytest.approx(mean / math.log(2), rel=1e-6)
    means = torch.tensor([sum(w) / 9 for w in losses], dtype=torch.float64)
    half = 1.96 * float(means.std()) / 5**0.5
    expected = math.exp(mean - half), math.exp(mean + half)
    assert result.ci95 == pytest.approx(expected, rel=1e-6)
    assert result.to_dict()["source"] == "1 given text"


def test_bits_per_byte_counts_utf8_bytes(table: Table) -> None:
    class Ascii(Letters):
        def __call__(self, text: str, **kwargs: Any) -> dict[str, list[int]]:
            return super().__call__(text.replace("\u00e9", "e"), **kwargs)

    plain = evaluate(table, Letters(), ["meet me there"], seq_len=13)
    accents = evaluate(table, Ascii(), ["m\u00e9\u00e9t me there"], seq_len=13)
    assert accents.perplexity == plain.perplexity
    assert accents.bits_per_byte == pytest.approx(plain.bits_per_byte * 13 / 15)


def test_one_window_has_no_interval(table: Table) -> None:
    assert evaluate(table, Letters(), [TEXT], seq_len=40).ci95 is None


def test_batches_and_progress_do_not_change_the_result(table: Table) -> None:
    calls: list[tuple[int, int]] = []
    one = evaluate(table, Letters(), [TEXT], seq_len=10, batch_size=1)
    table.batches.clear()
    table.train()
    two = evaluate(
        table, Letters(), [TEXT], seq_len=10, batch_size=2, progress=lambda *c: calls.append(c)
    )
    assert table.batches == [2, 2, 1]
    assert calls == [(2, 5), (4, 5), (5, 5)]
    assert two == one
    assert table.training


def test_max_chars_and_default_window(table: Table) -> None:
    short = Table(table.embedding.weight, context=8)
    result = evaluate(short, Letters(), [TEXT], max_chars=20)
    assert (result.text_tokens, result.seq_len, result.windows) == (20, 8, 2)


def test_a_hopeless_model_has_infinite_perplexity() -> None:
    surest = torch.full((128, 128), -2000.0)
    surest[:, 0] = 0
    assert evaluate(Table(surest), Letters(), [TEXT], seq_len=8).perplexity == math.inf


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("short", {"seq_len": 6}, "has 5 tokens, fewer than one window of 6"),
        (TEXT, {"seq_len": 1}, "predicts nothing"),
        ("caf\u00e9 " * 5, {"seq_len": 8}, "gives id 233, but the model knows 128"),
    ],
)
def test_refusals(table: Table, text: str, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ArmorError, match=message):
        evaluate(table, Letters(), [text], **arguments)


def test_a_window_beyond_the_context(table: Table) -> None:
    short = Table(table.embedding.weight, context=32)
    message = "--seq-len 33 is longer than the model's context 32"
    with pytest.raises(ArmorError, match=message):
        evaluate(short, Letters(), [TEXT], seq_len=33)
    with pytest.raises(ArmorError, match=message):
        evaluate(table, Letters(), [TEXT], seq_len=33, reference=short)
    assert evaluate(short, Letters(), [TEXT], seq_len=32).windows == 1


class Beginning(Letters):
    """Its BOS has id 1; the tokenizer puts it before a text, if asked for special tokens."""

    bos_token_id = 1

    def __call__(
        self, text: str, add_special_tokens: bool = True, **_: Any
    ) -> dict[str, list[int]]:
        ids = super().__call__(text, add_special_tokens=False)["input_ids"]
        return {"input_ids": [1, *ids] if add_special_tokens else ids}


@pytest.mark.parametrize("bos", ["always", "auto"])
def test_windows_that_begin_with_bos(table: Table, bos: str) -> None:
    """Each is BOS and 9 tokens of text, and all 9 are predicted."""
    result = evaluate(table, Beginning(), [TEXT], seq_len=10, bos=bos)
    log_p = table.embedding.weight.double().log_softmax(-1)
    losses = []
    for start in range(0, 54, 9):
        window = "\1" + TEXT[start : start + 9]
        losses += [-float(log_p[ord(a), ord(b)]) for a, b in pairwise(window)]
    mean = sum(losses) / len(losses)
    assert (result.windows, result.tokens, result.seq_len, result.bos) == (6, 54, 10, True)
    assert (result.text_tokens, result.text_bytes) == (56, 56)
    assert result.perplexity == pytest.approx(math.exp(mean), rel=1e-6)
    assert result.bits_per_byte == pytest.approx(mean / math.log(2), rel=1e-6)
    assert result.to_dict()["bos"] is True


def test_bos_only_where_it_is_asked_for(table: Table) -> None:
    plain = evaluate(table, Letters(), [TEXT], seq_len=10)
    for tokenizer, bos in ((Letters(), "auto"), (Beginning(), "never")):
        assert evaluate(table, tokenizer, [TEXT], seq_len=10, bos=bos) == plain
    assert not plain.bos
    with pytest.raises(ArmorError, match="has no BOS token"):
        evaluate(table, Letters(), [TEXT], seq_len=10, bos="always")


def test_a_bos_that_the_model_does_not_know(table: Table) -> None:
    class Beyond(Beginning):
        bos_token_id = 128

    with pytest.raises(ArmorError, match="gives id 128, but the model knows 128"):
        evaluate(table, Beyond(), [TEXT], seq_len=10, bos="always")


def test_logits_that_are_not_finite() -> None:
    with pytest.raises(ArmorError, match="logits on 1 given text are not finite"):
        evaluate(Table(torch.full((128, 128), float("nan"))), Letters(), [TEXT], seq_len=8)


@pytest.mark.transformers_compat
@pytest.mark.parametrize("name", ["stories-260k", "qwen3-1m", "wide-llama"])
def test_equals_a_plain_transformers_loop(shared: Path, name: str) -> None:
    folder = shared / "models" / name
    file = shared / "data/tinystories/tinystories_valid_sample.txt"
    result = evaluate(
        load_model(str(folder), torch.float32),
        load_tokenizer(str(folder)),
        file,
        seq_len=256,
        max_chars=6_000,
        bos="never",
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    ids = tokenizer(file.read_text(encoding="utf-8")[:6_000], add_special_tokens=False)["input_ids"]
    losses = []
    for start in range(0, len(ids) - 255, 256):
        window = torch.tensor([ids[start : start + 256]])
        with torch.no_grad():
            losses.append(float(model(input_ids=window, labels=window).loss))
    assert result.windows == len(losses) > 1
    assert result.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)


#: Dense perplexities stated with the models: TinyStories validation, WikiText-2 raw test.
STATED = {
    "stories-260k": (5.1210, 113.8325),
    "babyllama-1m": (2.2941, 23.2775),
    "qwen3-1m": (19.0199, 67.8000),
    "wide-llama": (20.3686, 77.6851),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STATED)
def test_stated_figures_of_the_small_models(shared: Path, name: str) -> None:
    """To the last digit: the first 1,000,000 characters in windows of 256 tokens, float32."""
    folder = str(shared / "models" / name)
    model, tokenizer = load_model(folder, torch.float32), load_tokenizer(folder)
    texts = ("tinystories/tinystories_valid_sample.txt", "wikitext2/wikitext2-raw-test.txt")
    for text, stated in zip(texts, STATED[name], strict=True):
        file = shared / "data" / text
        result = evaluate(model, tokenizer, file, seq_len=256, max_chars=1_000_000, bos="never")
        assert f"{result.perplexity:.4f}" == f"{stated:.4f}"
