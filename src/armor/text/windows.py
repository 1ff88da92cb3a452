"""Token windows: the calibration inputs, cut from text and drawn with a seed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from armor.errors import ArmorError
from armor.text.bos import bos_tokens
from armor.text.chats import ChatTemplate
from armor.text.documents import Documents
from armor.text.source import Source, TextLike
from armor.text.sources import parse_source

_CHUNK = 1_000_000  # characters tokenised at a time
_POOL = 16  # a stream is read no further than this many times the tokens that are drawn
_DEFAULT_WINDOW = 2048  # tokens
#: What configs call the context: most of them, MPT's, Whisper's decoder's.
_CONTEXT_NAMES = ("max_position_embeddings", "max_seq_len", "max_target_positions")


def context_length(config: Any) -> int | None:
    """The context of a model in tokens, by its transformers config; None where that names none.

    The config of a model with several parts is asked for that of its text decoder. What rope
    scaling extends, `max_position_embeddings` has already.
    """
    text = config.get_text_config()
    found = (getattr(text, name, None) for name in _CONTEXT_NAMES)
    return next((length for length in found if length), None)


def model_context(model: Any) -> int | None:
    """The context of a model in tokens, as `context_length` of its config; RoBERTa's is less.

    Its kin keep the first positions, up to that of padding, for padding.
    """
    context = context_length(model.config)
    for name, module in model.named_modules():
        if (
            name.endswith("position_embeddings")
            and isinstance(module, nn.Embedding)
            and module.padding_idx is not None
            and module.num_embeddings == context
        ):
            return context - module.padding_idx - 1
    return context


def default_window(context: int | None, most: int = _DEFAULT_WINDOW) -> int:
    """The default window in tokens, to calibrate and to evaluate: the context, at most `most`."""
    return min(most, context or most)


def check_window(seq_len: int, context: int | None) -> None:
    """Raise `ArmorError` where windows of `seq_len` tokens are longer than the context."""
    if context is not None and seq_len > context:
        raise ArmorError(
            f"--seq-len {seq_len} is longer than the model's context {context}; take at most that"
        )


def tokenize(tokenizer: Any, text: str) -> Tensor:
    """The ids of `text` without special tokens, int64 (tokens,); no warning about the length."""
    encoded = tokenizer(text, add_special_tokens=False, verbose=False, return_attention_mask=False)
    return torch.tensor(encoded["input_ids"], dtype=torch.int64, device="cpu")


def token_windows(
    source: TextLike | Source,
    tokenizer: Any,
    samples: int,
    seq_len: int,
    seed: int = 0,
    bos: str = "auto",
    fewer: bool = False,
) -> Tensor:
    """`samples` non-overlapping windows of `seq_len` tokens of the text.

    The documents of the train split, without empty ones, are joined (by blank lines, mostly),
    tokenised without special tokens in pieces of about a million characters that end at a line end,
    and cut into windows; the tail is dropped. With BOS, a window is that token and `seq_len` - 1
    tokens of text. If there are more windows than asked for, `samples` of them are drawn without
    replacement, in an order that depends on `seed` and the text alone, so that a smaller draw is
    the beginning of a larger one; if there are exactly enough they come in order. Of a stream only
    the beginning is read, 16 times the tokens asked for.

    Args:
        source: see `armor.text.sources.parse_source`.
        tokenizer: a Hugging Face tokenizer; its chat template writes chats as text.
        bos: "auto", "always" or "never"; see `armor.text.bos`.
        fewer: of a short text take what there is, in the order of a draw; at least one window.

    Returns:
        int64 (samples, seq_len).

    Raises:
        ArmorError: the source cannot be read, or its text is too short; BOS is asked for and the
            tokenizer has none, or a window has no room for more.
    """
    source = parse_source(source)
    first = torch.tensor(bos_tokens(bos, tokenizer), dtype=torch.int64, device="cpu")
    length = seq_len - len(first)  # tokens of text in a window
    if length < 1:
        raise ArmorError(f"a window of {seq_len} token holds nothing but BOS; take --seq-len 2")
    needed = samples * length
    limit = _POOL * needed if source.is_stream else None
    parts: list[Tensor] = []
    have = 0
    documents = Documents(source, "train", ChatTemplate(tokenizer))
    for piece in _pieces(documents, source.separator):
        # int32 halves what a long text holds in memory.
        parts.append(tokenize(tokenizer, piece).int())
        have += len(parts[-1])
        if limit is not None and have >= limit:
            break
    documents.note_skipped()
    if have < (length if fewer else needed):
        raise ArmorError(
            f"{source.name} has {have:,} tokens, but {samples} windows of {length} need "
            f"{needed:,}; give a longer text, or smaller --samples or --seq-len"
        )
    windows = torch.cat(parts)[: have // length * length].view(-1, length)
    if len(windows) > samples or fewer:
        generator = torch.Generator("cpu").manual_seed(seed)
        order = torch.randperm(len(windows), generator=generator, dtype=torch.int64, device="cpu")
        windows = windows[order[:samples]]
    return torch.cat([first.expand(len(windows), -1), windows.long()], dim=1)


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
