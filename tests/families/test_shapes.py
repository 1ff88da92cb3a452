"""Shapes, dtypes and files: awkward sizes, 16 bits, shards, tied and pruned heads, recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import armor
from armor.checkpoint.weights import read_weights
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.linear import ArmorLinear
from armor.recipe import read_recipe

pytestmark = pytest.mark.transformers_compat
LLAMA = pytest.mark.parametrize("family", ["Llama 1 and 2"], indirect=True)
#: None of them is a multiple of 4, no block divides them.
AWKWARD = {
    "hidden_size": 36,
    "intermediate_size": 43,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 131,
}


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(torch.arange(48).view(2, 24) + 10, use_cache=False).logits.float()


def settings(text: Path, **changes: Any) -> PruneConfig:
    values = {"calibration": str(text), "samples": 4, "seq_len": 32, "iterations": 2}
    return PruneConfig(**{**values, "block_size": 4, **changes})


def saved(family: Any, tokenizer: Any, folder: Path, **changes: Any) -> Path:
    dtype, shard = changes.pop("dtype", torch.float32), changes.pop("shard", "5GB")
    family.model(dtype, **changes).save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)
    return folder


def check(source: Path, out: Path, tmp: Path, changed: set[str], atol: float) -> None:
    """The checkpoint equals its export, which differs from the source in `changed` alone."""
    armor.export_dense(out, tmp / "twin")
    twin = AutoModelForCausalLM.from_pretrained(tmp / "twin", dtype="auto")
    expected = logits(twin)
    torch.testing.assert_close(logits(armor.load(out, dtype="auto")), expected, rtol=0, atol=atol)
    before, after = read_weights(source), read_weights(tmp / "twin")
    assert before.keys() == after.keys()
    same = {k for k in before if b"".join(before[k].chunks()) == b"".join(after[k].chunks())}
    assert before.keys() - same == {f"{name}.weight" for name in changed}


@LLAMA
@pytest.mark.parametrize(
    ("dtype", "atol"), [(torch.float32, 1e-4), (torch.bfloat16, 0.15), (torch.float16, 0.02)]
)
def test_awkward_sizes_in_every_dtype_and_in_shards(
    family: Any, tokenizer: Any, text: Path, tmp_path: Path, dtype: torch.dtype, atol: float
) -> None:
    source = saved(family, tokenizer, tmp_path / "source", dtype=dtype, shard="20KB", **AWKWARD)
    assert len(list(source.glob("*.safetensors"))) > 1
    result = armor.prune(source, settings(text), tmp_path / "out")
    assert {plan.shape for plan in result.plans} == {(36, 36), (18, 36), (43, 36), (36, 43)}
    assert all(record.certificate for record in result.records.values())
    check(source, tmp_path / "out", tmp_path, set(result.records), atol)


@LLAMA
def test_what_would_not_shrink_is_left_dense_and_named(
    family: Any, tokenizer: Any, text: Path, tmp_path: Path
) -> None:
    """k and v of one head of 8: with block 8 they would be larger than dense."""
    changes = {"num_key_value_heads": 1, "intermediate_size": 352}
    source = saved(family, tokenizer, tmp_path / "source", **changes)
    result = armor.prune(source, settings(text, block_size=8), tmp_path / "out")
    dense = {plan.name: plan.note for plan in result.plans if plan.dense}
    assert {name.rpartition(".")[2] for name in dense} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert all("x dense" in note for note in dense.values())
    check(source, tmp_path / "out", tmp_path, set(result.records), 1e-4)


@pytest.mark.parametrize("family", ["Llama 1 and 2", "GPT-NeoX", "Mixtral"], indirect=True)
@pytest.mark.parametrize("target", ["compensated", "dense"])
def test_the_output_head_on_request(
    family: Any, tokenizer: Any, text: Path, tmp_path: Path, target: str
) -> None:
    source = saved(family, tokenizer, tmp_path / "source")
    config = settings(text, lm_head=True, target=target, exclude=("*experts*",))
    result = armor.prune(source, config, tmp_path / "out")
    head = armor.load(tmp_path / "out").get_output_embeddings()
    assert isinstance(head, ArmorLinear)
    name = list(result.records)[-1]
    assert name in ("lm_head", "embed_out")
    assert result.records[name].loss < result.records[name].nowag_loss
    layers = {n.removesuffix(f".{n[-1]}") if n[-1].isdigit() else n for n in result.records}
    check(source, tmp_path / "out", tmp_path, layers, 1e-4)


@pytest.mark.parametrize("family", ["Llama 3"], indirect=True)
def test_a_tied_head_is_not_pruned(family: Any, tokenizer: Any, text: Path, tmp_path: Path) -> None:
    source = saved(family, tokenizer, tmp_path / "source")
    with pytest.raises(ArmorError, match="shares its weight with the embeddings"):
        armor.prune(source, settings(text, lm_head=True), tmp_path / "out")


@LLAMA
def test_a_recipe(family: Any, tokenizer: Any, text: Path, tmp_path: Path) -> None:
    source = saved(family, tokenizer, tmp_path / "source")
    (tmp_path / "recipe.yml").write_text(
        """
        layers:
          "*.down_proj": {block: 8}
          "*.o_proj": {skip: true}
          "*.layers.0.*.v_proj": {method: sparsegpt}
        model:
          blocks: model.layers
          linears: ["self_attn.*", "mlp.*"]
          stages: [[self_attn.q_proj, self_attn.k_proj, self_attn.v_proj]]
        """
    )
    config = settings(text, **read_recipe(tmp_path / "recipe.yml"))
    result = armor.prune(source, config, tmp_path / "out")
    blocks = {name: record.block for name, record in result.records.items()}
    assert blocks["model.layers.0.mlp.down_proj"] == 8
    assert blocks["model.layers.0.self_attn.v_proj"] is None
    assert blocks["model.layers.1.self_attn.v_proj"] == 4
    assert not any("o_proj" in name for name in blocks)
    check(source, tmp_path / "out", tmp_path, set(blocks), 1e-4)
