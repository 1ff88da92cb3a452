"""Perplexity over non-overlapping token windows, the protocol of the pruning papers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from armor.errors import ArmorError
from armor.evaluation.divergence import Divergence, interval, summarise, window_divergence
from armor.text.bos import bos_tokens
from armor.text.source import Source, TextLike
from armor.text.sources import parse_source, read_text
from armor.text.windows import check_window, default_window, model_context, tokenize

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
        bos: whether the first token of each window is BOS, so that all of its text is predicted.
        windows, tokens: windows read and tokens predicted.
        text_tokens, text_bytes: size of the whole text, the dropped tail included.
        divergence: from the reference; None without one.
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
    divergence: Divergence | None = None
    bos: bool = False

    def to_dict(self) -> dict[str, Any]:
        """A plain dict, with the entries of `divergence` if there is one.

        A perplexity too large for a float is infinite.
        """
        found = dataclasses.asdict(self)
        return found | (found.pop("divergence") or {})


def evaluate(
    model: Any,
    tokenizer: Any,
    source: TextLike | Source,
    *,
    seq_len: int | None = None,
    max_chars: int | None = None,
    batch_size: int | None = None,
    reference: Any = None,
    bos: str = "auto",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PerplexityResult:
    """Perplexity of `model` on a text, and how far its predictions are from a reference's.

    The text is taken as it is (documents joined by blank lines, the test split of a dataset), cut
    after `max_chars` characters, tokenised without special tokens and cut into non-overlapping
    windows; the tail is dropped. With BOS, a window is that token, which is given and never
    predicted, and `seq_len` - 1 tokens of text, which all are. Losses are computed in
    float32 and summed in float64.

    Args:
        model: a causal language model; used on its device, in its dtype.
        tokenizer: its tokenizer; the chat template of it writes chats as text.
        source: see `armor.text.sources.parse_source`; ``[text]`` for a text at hand.
        seq_len: tokens a window; None takes 2048, or the model's context where that is shorter.
        max_chars: read no more than this many characters.
        batch_size: windows a forward pass; None bounds the logits to 256 MiB.
        reference: another causal language model over the same vocabulary, usually the dense one;
            it reads the same batches.
        bos: "auto", "always" or "never"; see `armor.text.bos`.
        progress: called with the windows done and their number.

    Raises:
        ArmorError: an unreadable source, a text shorter than one window, a window longer than the
            context, ids the model does not know, a reference with another vocabulary, logits that
            are not finite, or BOS where the tokenizer has none.
    """
    source = parse_source(source)
    seq_len = seq_len or default_window(model_context(model))
    if seq_len < 2:
        raise ArmorError(f"a window of {seq_len} token predicts nothing; take --seq-len 2 or more")
    for network in (model,) if reference is None else (model, reference):
        check_window(seq_len, model_context(network))
    first = torch.tensor(bos_tokens(bos, tokenizer), dtype=torch.int64, device="cpu")
    length = seq_len - len(first)  # tokens of text in a window
    text = read_text(source, max_chars, tokenizer)
    tokens = tokenize(tokenizer, text)
    name = source.name
    if len(tokens) < length:
        raise ArmorError(
            f"{name} has {len(tokens):,} tokens, fewer than one window of {seq_len:,}; "
            "give a longer text or a smaller --seq-len"
        )
    vocabulary = _vocabulary(model)
    _check_ids(torch.cat([first, tokens]), vocabulary)
    if reference is not None:
        _check_reference(vocabulary, _vocabulary(reference))
    windows = tokens[: len(tokens) // length * length].view(-1, length)[: source.windows]
    windows = torch.cat([first.expand(len(windows), -1), windows], dim=1)
    size = batch_size or max(1, min(_MAX_BATCH, _MAX_LOGITS // (seq_len * vocabulary)))
    sums = _window_sums(model, reference, windows, size, progress)
    _check_sums(sums, name)
    means = sums[:, 0] / (seq_len - 1)
    mean = float(means.mean())
    return PerplexityResult(
        source=name,
        perplexity=_exp(mean),
        ci95=None if (ends := interval(means)) is None else (_exp(ends[0]), _exp(ends[1])),
        bits_per_byte=mean / math.log(2) * len(tokens) / len(text.encode()),
        seq_len=seq_len,
        windows=len(windows),
        tokens=windows.numel() - len(windows),
        text_tokens=len(tokens),
        text_bytes=len(text.encode()),
        divergence=None if reference is None else summarise(sums[:, 1:], seq_len - 1),
        bos=bool(len(first)),
    )


def _check_ids(tokens: Tensor, vocabulary: int) -> None:
    if (largest := int(tokens.max())) >= vocabulary:
        raise ArmorError(
            f"the tokenizer gives id {largest}, but the model knows {vocabulary}; "
            "use the tokenizer of this model"
        )


def _check_sums(sums: Tensor, name: str) -> None:
    for whose, bad in (
        ("model", not sums[:, 0].isfinite().all()),
        ("reference", sums[:, 1:].isnan().any()),  # infinite where the model excludes a token
    ):
        if bad:
            raise ArmorError(
                f"the {whose}'s logits on {name} are not finite; load it in float32 or bfloat16"
            )


def _vocabulary(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _check_reference(own: int, other: int) -> None:
    if own != other:
        raise ArmorError(
            f"the model knows {own} tokens and the reference {other}; predictions compare over one"
            " vocabulary only: give the model it was made from as the reference"
        )


def _window_sums(
    model: Any,
    reference: Any,
    windows: Tensor,
    batch_size: int,
    progress: Callable[[int, int], None],
) -> Tensor:
    """Sums over each window's tokens but the first, float64 (windows, 1 or 3).

    Negative log-likelihood; with a reference `window_divergence` after it.
    """
    sums: list[Tensor] = []
    with _inference(model), nullcontext() if reference is None else _inference(reference):
        for batch in windows.split(batch_size):
            ids = batch.to(model.device)
            logits = model(input_ids=ids, use_cache=False).logits
            own = [_loss(row[:-1], target[1:]) for row, target in zip(logits, ids, strict=True)]
            if reference is not None:
                theirs = reference(input_ids=batch.to(reference.device), use_cache=False).logits
                for index, other in enumerate(theirs.to(logits.device)):
                    further = window_divergence(logits[index, :-1], other[:-1])
                    own[index] = torch.cat((own[index], further))
            sums += own
            progress(len(sums), len(windows))
    return torch.stack(sums)


def _loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Float32 losses of one window, summed in float64 (1,); one at a time bounds the memory."""
    losses = torch.nn.functional.cross_entropy(logits.float(), ids, reduction="none")
    return losses.sum(0, keepdim=True, dtype=torch.float64).cpu()


@contextmanager
def _inference(model: Any) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
