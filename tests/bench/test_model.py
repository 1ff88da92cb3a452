"""The whole-model benchmark."""

from __future__ import annotations

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from armor.bench.model import _dense, measure_model
from armor.linear import ArmorLinear
from armor.sparse.factors import Factors
from armor.sparse.masks import nm_mask


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config).eval()
    for name, linear in list(model.named_modules()):
        if isinstance(linear, nn.Linear) and name != "lm_head":
            mask = nm_mask(linear.weight.detach().abs())
            factors = Factors(linear.weight.detach() * mask, mask)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, ArmorLinear.from_factors(factors))
    return model


def test_the_dense_twin_computes_the_same_and_goes_away() -> None:
    model = tiny()
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        packed = model(ids).logits
        with _dense(model):
            assert not any(isinstance(module, ArmorLinear) for module in model.modules())
            torch.testing.assert_close(model(ids).logits, packed)
        assert torch.equal(model(ids).logits, packed)


def test_both_are_measured() -> None:
    model = tiny()
    packed, dense = measure_model(model, prompt=8, tokens=3, repeats=1)
    assert (packed.contender, dense.contender) == ("ARMOR", "dense")
    assert packed.bytes < dense.bytes
    assert min(packed.prefill, packed.decode, dense.prefill, dense.decode) > 0
