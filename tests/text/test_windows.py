"""Token windows: cutting, drawing, and what is refused."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForCausalLM,
)

from armor.errors import ArmorError
from armor.text import windows as data
from armor.text.source import Source, TextLike
from armor.text.windows import (
    check_window,
    context_length,
    default_window,
    model_context,
    token_windows,
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One token a character, and a model limit that every text here exceeds."""
    vocabulary = {chr(code): code for code in range(128)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="?", model_max_length=5)


def text_of(windows: torch.Tensor) -> list[str]:
    return ["".join(map(chr, row)) for row in windows.tolist()]


def test_exactly_enough_comes_in_order(tokenizer: Any) -> None:
    windows = token_windows(("abcdefghijk",), tokenizer, samples=3, seq_len=3, seed=5)
    assert text_of(windows) == ["abc", "def", "ghi"]
    assert windows.dtype == torch.int64


def test_documents_are_joined_by_a_blank_line(tokenizer: Any) -> None:
    assert text_of(token_windows(["abc", "def"], tokenizer, 1, 8)) == ["abc\n\ndef"]


def test_draws_without_replacement_and_nested(tokenizer: Any) -> None:
    text = [bytes(range(32, 112)).decode()]
    draw = text_of(token_windows(text, tokenizer, 12, 4, seed=1))
    assert len(set(draw)) == 12
    assert all((ord(window[0]) - 32) % 4 == 0 and window in text[0] for window in draw)
    assert draw != sorted(draw)
    assert text_of(token_windows(text, tokenizer, 12, 4, seed=1)) == draw
    assert text_of(token_windows(text, tokenizer, 5, 4, seed=1)) == draw[:5]
    assert text_of(token_windows(text, tokenizer, 12, 4, seed=2)) != draw


@given(st.lists(st.text("ab \n", max_size=30), min_size=1).filter(any), st.integers(1, 20))
def test_pieces_lose_nothing_and_are_short(texts: list[str], chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "_CHUNK", chunk)
        pieces = list(data._pieces(texts, "\n\n"))
    assert "".join(pieces) == "\n\n".join(texts)
    assert max(map(len, pieces)) <= chunk


def test_pieces_end_at_line_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_CHUNK", 8)
    pieces = list(data._pieces(["one two\nthree four\nfive"], "\n\n"))
    assert pieces == ["one two\n", "three ", "four\n", "five"]


def test_no_warning_about_the_length(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer.deprecation_warnings.clear()  # it warns once only
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        data.tokenize(tokenizer, "a text longer than the model's five tokens")
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert caplog.messages == []


def test_too_short_says_how_much_is_needed(tokenizer: Any) -> None:
    with pytest.raises(ArmorError, match=r"has 1,500 tokens.*200 windows of 10 need 2,000.*--sam"):
        token_windows(("x" * 1500,), tokenizer, 200, 10)


@pytest.mark.parametrize("texts", [(), [], [""]])
def test_nothing_given(texts: Any, tokenizer: Any) -> None:
    with pytest.raises(ArmorError, match="no text given"):
        token_windows(texts, tokenizer, 1, 1)


class Endless(Source):
    """A stream of numbered documents that never ends."""

    name = "endless"
    is_stream = True

    def __init__(self) -> None:
        self.read = 0

    @classmethod
    def parse(cls, given: TextLike) -> Endless | None:
        return None

    def documents(self, split: str) -> Iterator[str]:
        assert split == "train"
        while True:
            self.read += 1
            yield f"document {self.read}"


def test_a_stream_is_read_no_further_than_needed(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Any
) -> None:
    monkeypatch.setattr(data, "_CHUNK", 50)
    source = Endless()
    assert token_windows(source, tokenizer, 2, 10).shape == (2, 10)
    assert source.read < 50


@pytest.mark.parametrize(
    ("own", "window", "context"),
    [
        ({}, 2048, None),  # a context without end, as Mamba's
        ({"max_position_embeddings": 64}, 64, 64),
        ({"max_seq_len": 64}, 64, 64),
        ({"max_target_positions": 64}, 64, 64),
    ],
)
def test_default_window(own: dict[str, int], window: int, context: int | None) -> None:
    config = PretrainedConfig(**own)
    assert (default_window(context_length(config)), context_length(config)) == (window, context)


def test_the_default_window_has_a_ceiling() -> None:
    assert default_window(10**6) == default_window(None) == 2048
    assert default_window(10**6, 8192) == default_window(None, 8192) == 8192
    assert default_window(64, 8192) == 64


def test_a_window_beyond_the_context() -> None:
    check_window(64, 64)
    check_window(10**6, None)
    with pytest.raises(ArmorError, match="--seq-len 65 is longer than the model's context 64"):
        check_window(65, 64)


def test_a_composite_config_is_asked_for_that_of_its_text_decoder() -> None:
    text = Gemma3TextConfig(
        max_position_embeddings=64,
        hidden_size=32,
        num_hidden_layers=1,
        layer_types=["full_attention"],
    )
    assert context_length(Gemma3Config(text_config=text.to_dict())) == 64


def test_rope_scaling_is_in_the_context_already() -> None:
    scaled = {"rope_type": "linear", "factor": 4.0}
    config = LlamaConfig(max_position_embeddings=256, rope_scaling=scaled)
    assert context_length(config) == 256


def test_positions_that_are_kept_for_padding() -> None:
    """RoBERTa's positions begin after that of padding: 40 of them are a context of 38."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 64}
    config = RobertaConfig(
        **sizes, num_attention_heads=2, max_position_embeddings=40, pad_token_id=1, is_decoder=True
    )
    model = RobertaForCausalLM(config).eval()
    context = model_context(model)
    assert context == 38
    model(torch.full((1, 38), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, 39), 5))
    other = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=40))
    assert model_context(other) == 40
