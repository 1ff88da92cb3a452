"""Finding the decoder, describing it, and refusing what is not understood."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from armor.calibrate.call import BlockCall
from armor.calibrate.state import State
from armor.calibrate.stream import observe
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.models.folder import ModelFolder
from armor.models.structure import find_structure
from armor.run.open import open_model

pytestmark = pytest.mark.transformers_compat
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def test_a_model_without_linears_lists_what_it_has() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64))
    with pytest.raises(ArmorError) as error:
        find_structure(model)
    says = str(error.value)
    assert "transformer.h: 2 GPT2Block with" in says
    assert "2 Conv1D 32x128" in says
    assert "docs/recipe.md" in says
    assert "\n" not in says


def test_a_description_says_where(make_llama: Callable[..., Any]) -> None:
    model = make_llama()
    described = {"blocks": "model.layers", "linears": ["mlp.*"]}
    structure = find_structure(model, described)
    assert list(structure.linears(1)) == [
        f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")
    ]
    for wrong in ({"blocks": "model.h"}, {"blocks": "model.layers", "linears": ["x"]}):
        with pytest.raises(ArmorError, match=r"found model\.layers: 2 LlamaDecoderLayer"):
            find_structure(model, wrong)


def test_a_block_used_twice_is_refused(make_llama: Callable[..., Any]) -> None:
    model = make_llama()
    model.model.layers[1] = model.model.layers[0]
    with pytest.raises(ArmorError, match="twice"):
        find_structure(model)


class Copying(nn.Module):
    """Two linears that are fed equal tensors, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.q(x.clone()) + self.k(x.clone()) + self.v(2 * x)


def test_described_stages() -> None:
    block, x = Copying(), State(torch.randn(1, 3, 4))
    call = BlockCall((), {})
    names = [stage for stage, _ in observe(block, call, x)[1]]
    assert names == [["q"], ["k"], ["v"]]
    names = [stage for stage, _ in observe(block, call, x, [["q", "k"]])[1]]
    assert names == [["q", "k"], ["v"]]
    with pytest.raises(ArmorError, match="q and v get different tensors"):
        observe(block, call, x, [["q", "v"]])


def test_unknown_experts_are_refused_unless_excluded(tmp_path: Path) -> None:
    from transformers import JetMoeConfig, JetMoeForCausalLM

    sizes = {**SIZES, "num_key_value_heads": 2, "kv_channels": 8, "num_local_experts": 4}
    JetMoeForCausalLM(JetMoeConfig(**sizes)).save_pretrained(tmp_path)
    folder = ModelFolder.open(tmp_path)
    with pytest.raises(ArmorError, match=r"not known: model\.layers\.0\..*\.input_linear"):
        open_model(folder, PruneConfig())
    excluded = ("*.input_linear.weight", "*.output_linear.weight")
    model = open_model(folder, PruneConfig(exclude=excluded))
    assert any("kv_proj" in path for path in model.structure.linears(0))
