"""How far a model's predictions are from another's: KL divergence and agreement of the top token.

Perplexity may stay, or fall, while a model's answers change; these two show it (the measures of
"Accuracy is Not All You Need", arXiv 2407.09141, and of llama.cpp's ``--kl-divergence``).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_CHUNK = 2**22  # entries of float64 logits at a time: 32 MiB


@dataclass(frozen=True)
class Divergence:
    """A model against a reference, over the predicted tokens.

    Attributes:
        kl: mean KL(reference || model) a predicted token, in nats.
        kl_ci95: its 95 % confidence interval (normal approximation over windows); None for one
            window, or an infinite mean.
        same_top1: share of tokens where both hold the same token most likely, 0 to 1.
    """

    kl: float
    kl_ci95: tuple[float, float] | None
    same_top1: float

    def to_dict(self) -> dict[str, Any]:
        """A plain dict; the divergence of a model that excludes a token is infinite."""
        return dataclasses.asdict(self)


def window_divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """Sums over a window: KL(reference || logits) in nats, and how many top tokens are the same.

    Args:
        logits, reference: (tokens, vocabulary), of any floating dtype.

    Returns:
        float64 (2,) on the CPU.
    """
    sums = torch.zeros(2, dtype=torch.float64, device=logits.device)
    rows = max(1, _CHUNK // logits.shape[-1])
    for ours, theirs in zip(logits.split(rows), reference.split(rows), strict=True):
        log_q, log_p = (some.double().log_softmax(-1) for some in (ours, theirs))
        p = log_p.exp()
        # A token that the reference excludes adds nothing, though its logarithm is infinite.
        sums[0] += (p * (log_p - log_q)).masked_fill(p == 0, 0).sum()
        sums[1] += (ours.argmax(-1) == theirs.argmax(-1)).sum()
    return sums.cpu()


def summarise(sums: Tensor, tokens: int) -> Divergence:
    """Of `window_divergence`, float64 (windows, 2), with `tokens` predicted tokens a window."""
    means = sums / tokens
    kl, same = means.mean(0).tolist()
    return Divergence(kl, interval(means[:, 0]) if math.isfinite(kl) else None, same)


def interval(means: Tensor) -> tuple[float, float] | None:
    """95 % confidence interval of the mean of windows' `means`; None for one window."""
    if len(means) < 2:
        return None
    mean = float(means.mean())
    half = 1.96 * float(means.std()) / math.sqrt(len(means))
    return mean - half, mean + half
