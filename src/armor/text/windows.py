"""Token windows: the calibration inputs, cut from text and drawn with a seed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from armor.errors import ArmorError
from armor.text.source import Source, TextLike
from armor.text.sources import parse_source

_CHUNK = 1_000_000  # characters tokenised at a time
_POOL = 16  # a stream is read no further than this many times the tokens that are drawn
_DEFAULT_WINDOW = 2048  # tokens


def context_length(config: Any) -> int:
    """The context of a model in tokens, by its transformers config; 2048 where that is silent."""
    text = config.get_text_config()
    return getattr(text, "max_position_embeddings", None) or _DEFAULT_WINDOW


def default_window(config: Any) -> int:
    """The default window in tokens, to calibrate and to evaluate: the context, at most 2048."""
    return min(_DEFAULT_WINDOW, context_length(config))


def tokenize(tokenizer: Any, text: str) -> Tensor:
    """The ids of `text` without special tokens, int64 (tokens,); no warning about the length."""
    encoded = tokenizer(text, add_special_tokens=False, verbose=False, return_attention_mask=False)
    return torch.tensor(encoded["input_ids"], dtype=torch.int64, device="cpu")


def token_windows(
    source: TextLike | Source, tokenizer: Any, samples: int, seq_len: int, seed: int = 0
) -> Tensor:
    """`samples` non-overlapping windows of `seq_len` tokens of the text.

    The documents of the train split are joined (by blank lines, mostly), tokenised without special
    tokens in pieces of about a million characters that end at a line end, and cut into windows; the
    tail is dropped. If there are more windows than asked for, `samples` of them are drawn without
    replacement, in an order that depends on `seed` and the text alone, so that a smaller draw is
    the beginning of a larger one; if there are exactly enough they come in order. Of a stream only
    the beginning is read, 16 times the tokens asked for.

    Args:
        source: see `armor.text.sources.parse_source`.
        tokenizer: a Hugging Face tokenizer.

    Returns:
        int64 (samples, seq_len).

    Raises:
        ArmorError: the source cannot be read, or its text is too short.
    """
    source = parse_source(source)
    needed = samples * seq_len
    limit = _POOL * needed if source.is_stream else None
    parts: list[Tensor] = []
    have = 0
    for piece in _pieces(source.documents("train"), source.separator):
        # int32 halves what a long text holds in memory.
        parts.append(tokenize(tokenizer, piece).int())
        have += len(parts[-1])
        if limit is not None and have >= limit:
            break
    if have < needed:
        raise ArmorError(
            f"{source.name} has {have:,} tokens, but {samples} windows of {seq_len} need "
            f"{needed:,}; give a longer text, or smaller --samples or --seq-len"
        )
    windows = torch.cat(parts)[: have // seq_len * seq_len].view(-1, seq_len)
    if len(windows) > samples:
        generator = torch.Generator("cpu").manual_seed(seed)
        order = torch.randperm(len(windows), generator=generator, dtype=torch.int64, device="cpu")
        windows = windows[order[:samples]]
    return windows.long()


def _pieces(texts: Iterable[str], separator: str) -> Iterator[str]:
    """The joined `texts` in pieces of about `_CHUNK` characters, cut after a line end or space."""
    buffer: list[str] = []
    size = 0
    for text in texts:
        if buffer:
            buffer.append(separator)
        buffer.append(text)
        size += len(buffer[-1]) + len(separator)
        if size >= _CHUNK:
            joined = "".join(buffer)
            start = 0
            while len(joined) - start > _CHUNK:
                end = _cut(joined, start, start + _CHUNK)
                yield joined[start:end]
                start = end
            buffer, size = [joined[start:]], len(joined) - start
    yield "".join(buffer)


def _cut(text: str, start: int, end: int) -> int:
    for mark in ("\n", " "):
        if (at := text.rfind(mark, start, end)) >= start:
            return at + 1
    return end
