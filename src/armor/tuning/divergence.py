"""The loss of tuning: KL from the dense model's predictions, with little memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: Logits at a time: what a CPU's caches hold; on a GPU, few launches.
_CHUNK = {"cpu": 2**20, "cuda": 2**24}


class _Divergence(torch.autograd.Function):
    """The gradient by the logits is made with the loss, and is all that is kept."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, reference: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        grad = torch.empty_like(logits)
        rows = max(1, _CHUNK.get(logits.device.type, 2**24) // logits.shape[-1])
        for own, other, out in zip(
            logits.split(rows), reference.split(rows), grad.split(rows), strict=True
        ):
            log_q, log_p = own.float().log_softmax(-1), other.float().log_softmax(-1)
            p = log_p.exp()
            total += (p * (log_p - log_q)).masked_fill(p == 0, 0).sum()
            out.copy_(log_q.exp_().sub_(p))
        ctx.save_for_backward(grad)
        return total.float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (found,) = ctx.saved_tensors
        return found * grad.to(found.dtype), None


def divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """The sum over tokens of KL(reference || logits), in nats, differentiable by `logits`.

    Args:
        logits, reference: (tokens, vocabulary).
    """
    found: Tensor = _Divergence.apply(logits, reference)
    return found
