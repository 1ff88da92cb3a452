"""Output heads: whether they are tied is asked of what is stored, and a copy is written once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from armor.checkpoint import assemble, inspect
from armor.checkpoint.weights import read_weights
from armor.config import PruneConfig
from armor.hf.load import load
from armor.models.folder import ModelFolder
from armor.models.load import load_model
from armor.models.streamed import StreamedModel
from armor.run.open import linear_shapes, open_model
from armor.sparse.factors import Factors
from armor.sparse.layer import PackedLayer
from armor.sparse.masks import nm_mask

pytestmark = pytest.mark.transformers_compat
HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"
KEEPS_OWN_HEADS = transformers.__version__ >= "5"


@pytest.fixture
def folder(make_llama: Callable[..., Any], tmp_path: Path) -> Path:
    """A model whose config ties the head."""
    make_llama(vocab_size=32, tie_word_embeddings=True).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def store_head(folder: Path, scale: float) -> torch.Tensor:
    file = folder / "model.safetensors"
    state = load_file(file)
    state[HEAD] = state[EMBEDDINGS] * scale
    save_file(state, file, metadata={"format": "pt"})
    return state[HEAD]


def pruned(streamed: StreamedModel, out: Path, lm_head: bool = False) -> Path:
    layers = {}
    for name in linear_shapes(streamed, lm_head):
        weight = streamed.load(f"{name}.weight")
        mask = nm_mask(weight.abs())
        layers[name] = PackedLayer.from_factors(Factors(weight * mask, mask))
    assemble(streamed.files, out, layers, {})
    return out


@pytest.mark.skipif(not KEEPS_OWN_HEADS, reason="transformers 4 ties whatever is stored")
def test_a_head_of_its_own_is_kept_and_can_be_pruned(folder: Path, tmp_path: Path) -> None:
    head = store_head(folder, 2.0)
    opened = ModelFolder.open(folder)
    streamed = open_model(opened, PruneConfig(calibration="x", lm_head=True))
    assert not streamed.tied
    assert torch.equal(streamed.load(HEAD), head)
    assert torch.equal(load_model(opened).lm_head.weight, head)
    for lm_head in (False, True):
        out = pruned(streamed, tmp_path / f"out-{lm_head}", lm_head)
        assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
        model = load(out)
        weight = head * nm_mask(head.abs()) if lm_head else head
        states = torch.randn(3, head.shape[1])
        torch.testing.assert_close(model.lm_head(states), states @ weight.T)
        assert not torch.equal(model.model.embed_tokens.weight, weight)


@pytest.mark.skipif(KEEPS_OWN_HEADS, reason="transformers 5 keeps such a head")
def test_transformers_4_ties_whatever_is_stored(folder: Path, tmp_path: Path) -> None:
    head = store_head(folder, 2.0)
    streamed = StreamedModel(ModelFolder.open(folder))
    assert streamed.tied
    assert torch.equal(load_model(str(folder)).lm_head.weight, head / 2)
    assert torch.equal(read_weights(pruned(streamed, tmp_path / "out"))[HEAD].load(), head)


def test_a_second_copy_of_the_embeddings_is_left_out(folder: Path, tmp_path: Path) -> None:
    once = sum(stored.nbytes for stored in read_weights(folder).values())
    store_head(folder, 1.0)
    streamed = StreamedModel(ModelFolder.open(folder))
    assert streamed.tied
    with streamed.first_block_loaded():  # weights that come and go are no longer tied
        pass
    out = pruned(streamed, tmp_path / "out")
    assert HEAD not in read_weights(out)
    assert inspect(out)["totals"]["dense_model_bytes"] == once
    model = load(out)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is True
