"""The loss of tuning against the plain formula."""

from __future__ import annotations

import pytest
import torch

from armor.tuning import divergence as module
from armor.tuning.divergence import divergence


def test_it_is_the_sum_of_kl_and_its_gradient() -> None:
    torch.manual_seed(0)
    logits = (3 * torch.randn(9, 31, dtype=torch.float64)).requires_grad_()
    reference = 3 * torch.randn(9, 31, dtype=torch.float64)
    log_q, p = logits.log_softmax(-1), reference.softmax(-1)
    expected = (p * (p.log() - log_q)).sum()
    (wanted,) = torch.autograd.grad(expected, logits)
    single = logits.detach().float().requires_grad_()
    found = divergence(single, reference.float())
    torch.autograd.backward(2 * found)
    torch.testing.assert_close(found.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    assert single.grad is not None
    torch.testing.assert_close(single.grad.double(), 2 * wanted, rtol=1e-4, atol=1e-6)


def test_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    logits, reference = torch.randn(9, 31), torch.randn(9, 31)
    whole = divergence(logits, reference)
    monkeypatch.setattr(module, "_CHUNK", {"cpu": 62})
    torch.testing.assert_close(divergence(logits, reference), whole)


def test_a_token_that_the_dense_model_excludes_adds_nothing() -> None:
    logits = torch.zeros(1, 4, requires_grad=True)
    reference = torch.tensor([[0.0, 0.0, 0.0, -torch.inf]])
    found = divergence(logits, reference)
    torch.autograd.backward(found)
    torch.testing.assert_close(found.detach(), torch.tensor(4 / 3).log())
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())
