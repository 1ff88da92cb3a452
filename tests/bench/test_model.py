"""The whole-model benchmark."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from armor.bench.model import dense_twin, measure_model
from armor.linear import ArmorLinear
from armor.sparse.factors import Factors
from armor.sparse.masks import nm_mask


@pytest.fixture
def model(make_llama: Callable[..., Any]) -> Any:
    model = make_llama(num_hidden_layers=1)
    for name, linear in list(model.named_modules()):
        if isinstance(linear, nn.Linear) and name != "lm_head":
            mask = nm_mask(linear.weight.detach().abs())
            factors = Factors(linear.weight.detach() * mask, mask)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, ArmorLinear.from_factors(factors))
    return model


def test_the_dense_twin_computes_the_same_and_goes_away(model: Any) -> None:
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        packed = model(ids).logits
        with dense_twin(model):
            assert not any(isinstance(module, ArmorLinear) for module in model.modules())
            torch.testing.assert_close(model(ids).logits, packed)
        assert torch.equal(model(ids).logits, packed)


def test_both_are_measured(model: Any) -> None:
    packed, dense = measure_model(model, prompt=8, tokens=3, repeats=1)
    assert (packed.contender, dense.contender) == ("ARMOR", "dense")
    assert packed.bytes < dense.bytes
    assert min(packed.prefill, packed.decode, dense.prefill, dense.decode) > 0
