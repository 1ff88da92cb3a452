"""Perplexity over non-overlapping token windows, the protocol of the pruning papers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from armor.calibrate.data import tokenize
from armor.calibrate.sources import Source, describe
from armor.errors import ArmorError
from armor.evaluate.protocols import evaluation_text, protocol_of

_MAX_SEQ_LEN = 2048  # the default window, where the model's context is not shorter
_MAX_LOGITS = 2**26  # entries of a batch of logits: 256 MiB in float32
_MAX_BATCH = 32


@dataclass(frozen=True)
class PerplexityResult:
    """What was read and how well it was predicted.

    Attributes:
        source: the text, as the user named it.
        perplexity: exp of the mean negative log-likelihood of the predicted tokens.
        ci95: its 95 % confidence interval (normal approximation over windows); None for one window.
        bits_per_byte: bits a predicted token times the text's tokens per UTF-8 byte; unlike
            perplexity it compares across vocabularies.
        seq_len: tokens a window; each window predicts all but its first.
        windows, tokens: windows read and tokens predicted.
        text_tokens, text_bytes: size of the whole text, the dropped tail included.
    """

    source: str
    perplexity: float
    ci95: tuple[float, float] | None
    bits_per_byte: float
    seq_len: int
    windows: int
    tokens: int
    text_tokens: int
    text_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """A plain dict; a perplexity too large for a float is infinite."""
        return dataclasses.asdict(self)


def evaluate(
    model: Any,
    tokenizer: Any,
    source: Source,
    *,
    seq_len: int | None = None,
    max_chars: int | None = None,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PerplexityResult:
    """Perplexity of `model` on a text.

    The text is taken as it is (documents joined by blank lines, the test split of a dataset), cut
    after `max_chars` characters, tokenised without special tokens and cut into non-overlapping
    windows; the tail is dropped. Losses are computed in float32 and summed in float64.

    Args:
        model: a causal language model; used on its device, in its dtype.
        tokenizer: its tokenizer.
        source: see `armor.calibrate.sources.documents`; ``[text]`` for a text at hand; "wikitext2"
            or "c4" for the papers' texts (see `armor.evaluate.protocols`).
        seq_len: tokens a window; None takes 2048, or the model's context where that is shorter.
        max_chars: read no more than this many characters.
        batch_size: windows a forward pass; None bounds the logits to 256 MiB.
        progress: called with the windows done and their number.

    Raises:
        ArmorError: an unreadable source, a text shorter than one window, ids the model does not
            know, or logits that are not finite.
    """
    seq_len = seq_len or default_seq_len(model)
    if seq_len < 2:
        raise ArmorError(f"a window of {seq_len} token predicts nothing; take --seq-len 2 or more")
    text = evaluation_text(source, max_chars)
    tokens = tokenize(tokenizer, text)
    name = describe(source)
    if len(tokens) < seq_len:
        raise ArmorError(
            f"{name} has {len(tokens):,} tokens, fewer than one window of {seq_len:,}; "
            "give a longer text or a smaller --seq-len"
        )
    vocabulary = model.get_input_embeddings().weight.shape[0]
    _check_ids(tokens, vocabulary)
    windows = tokens[: len(tokens) // seq_len * seq_len].view(-1, seq_len)
    if (protocol := protocol_of(source)) is not None:
        windows = windows[: protocol.windows]
    size = batch_size or max(1, min(_MAX_BATCH, _MAX_LOGITS // (seq_len * vocabulary)))
    sums = _window_losses(model, windows, size, progress)
    if not bool(torch.isfinite(sums).all()):
        raise ArmorError(
            f"the model's logits on {name} are not finite; load it in float32 or bfloat16"
        )
    means = sums / (seq_len - 1)
    mean = float(means.mean())
    return PerplexityResult(
        source=name,
        perplexity=_exp(mean),
        ci95=_interval(means),
        bits_per_byte=mean / math.log(2) * len(tokens) / len(text.encode()),
        seq_len=seq_len,
        windows=len(windows),
        tokens=windows.numel() - len(windows),
        text_tokens=len(tokens),
        text_bytes=len(text.encode()),
    )


def default_seq_len(model: Any) -> int:
    """The model's context length, at most 2048."""
    config = model.config.get_text_config()
    return min(_MAX_SEQ_LEN, getattr(config, "max_position_embeddings", None) or _MAX_SEQ_LEN)


def _check_ids(tokens: Tensor, vocabulary: int) -> None:
    if (largest := int(tokens.max())) >= vocabulary:
        raise ArmorError(
            f"the tokenizer gives id {largest}, but the model knows {vocabulary}; "
            "use the tokenizer of this model"
        )


def _window_losses(
    model: Any, windows: Tensor, batch_size: int, progress: Callable[[int, int], None]
) -> Tensor:
    """Summed negative log-likelihood of each window's tokens but the first, float64 (windows,)."""
    sums: list[Tensor] = []
    with _inference(model):
        for batch in windows.split(batch_size):
            ids = batch.to(model.device)
            logits = model(input_ids=ids, use_cache=False).logits
            sums += [_loss(row[:-1], target[1:]) for row, target in zip(logits, ids, strict=True)]
            progress(len(sums), len(windows))
    return torch.stack(sums)


def _loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Float32 losses of one window, summed in float64; one window at a time bounds the memory."""
    losses = torch.nn.functional.cross_entropy(logits.float(), ids, reduction="none")
    return losses.sum(dtype=torch.float64).cpu()


@contextmanager
def _inference(model: Any) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def _interval(means: Tensor) -> tuple[float, float] | None:
    if len(means) < 2:
        return None
    mean = float(means.mean())
    half = 1.96 * float(means.std()) / math.sqrt(len(means))
    return _exp(mean - half), _exp(mean + half)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
