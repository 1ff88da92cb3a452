"""The input of the output head, and the gradient of the loss, are those of the model in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from armor.calibrate.gradients import Draw
from armor.models.folder import ModelFolder
from armor.models.streamed import StreamedModel
from armor.run.head import head_input, loss_gradient
from armor.run.streams import open_streams

pytestmark = pytest.mark.transformers_compat


@pytest.fixture(params=["tied", "untied"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, StreamedModel]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=44,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=request.param == "tied",
    )
    model = LlamaForCausalLM(config).eval()
    torch.nn.init.uniform_(model.model.norm.weight)
    model.save_pretrained(tmp_path)
    return model, StreamedModel(ModelFolder.open(tmp_path))


def test_they_are_those_of_the_whole_model(pair: tuple[Any, StreamedModel]) -> None:
    model, streamed = pair
    hidden, tokens = torch.randn(2, 7, 32), torch.arange(14).view(2, 7)
    states = hidden.clone().requires_grad_()
    normed = model.model.norm(states)
    logits = model.lm_head(normed)[:, :-1].flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="sum").backward()
    call = open_streams(streamed, tokens).calls.any(1, "0")
    torch.testing.assert_close(head_input(streamed, hidden, call), normed.detach())
    linears = [] if streamed.tied else ["lm_head"]
    gradient, samples = loss_gradient(streamed, hidden, tokens, call, linears, Draw(1.0, 0))
    torch.testing.assert_close(gradient, states.grad)
    expected = () if streamed.tied else ("inputs/lm_head", "gradients/lm_head")
    assert set(samples) == set(expected)
    assert all(parameter.is_meta for parameter in streamed.model.parameters())
