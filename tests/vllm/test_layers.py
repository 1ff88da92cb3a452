"""Every kind of layer gives in vLLM what it gives in transformers with armor, token by token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from armor.checkpoint.inspect import Inspection

MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
MIXED = {
    "*": {"block": 16},
    "*.q_proj": {"block": 64},
    "*.k_proj": {"skip": True},
    "*.v_proj": {"pattern": "4:8"},
    "*.o_proj": {"method": "wanda"},
    "*.gate_proj": {"pattern": "50%"},
    "*.down_proj": {"pattern": "1:4", "block": 32},
}
#: One of the parts of a projection that is fused on the disk stays dense, one has another block.
FUSED = {"*": {"block": 16}, "*.qkv_proj.1": {"skip": True}, "*.gate_up_proj.0": {"block": 32}}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "mixed, biases, pruned head": ("Qwen2", MIXED, {"lm_head": True}),
    "tied": ("Llama", {}, {"tie_word_embeddings": True}),
    "fused on the disk": ("Phi3", FUSED, {}),
    "Transformers backend, biases": ("GPTNeoX", {"*.dense": {"pattern": "1:4"}}, {}),
    "Transformers backend, untied": ("Olmo2", {}, {}),
    "Transformers backend, tied": ("SmolLM3", {}, {"tie_word_embeddings": True}),
    "Mixtral": ("Mixtral", {}, {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "Qwen3-MoE": (
        "Qwen3Moe",
        {"*.up_proj": {"pattern": "4:8"}, "*.experts.1.*": {"skip": True}},
        {**MOE, "head_dim": 32},
    ),
    "OLMoE": ("Olmoe", {}, MOE),
}


def equal(found: Any, wanted: Any, tolerance: float = 1e-4) -> None:
    """The same tokens, and log-probabilities within `tolerance`."""
    for ours, theirs in zip(found["outputs"], wanted["outputs"], strict=True):
        assert ours["tokens"] == theirs["tokens"]
        assert ours["logprobs"] == pytest.approx(theirs["logprobs"], abs=tolerance)


@pytest.fixture(params=CASES)
def folder(request: pytest.FixtureRequest, pruned: Callable[..., Path]) -> Path:
    family, overrides, sizes = CASES[request.param]
    return pruned(family, overrides, **sizes)


def test_same_tokens(folder: Path, engines: Any, prompts: list[list[int]]) -> None:
    found = engines.vllm(folder, prompts)
    equal(found, engines.transformers(folder, prompts))
    stored = Inspection.of(folder).model_bytes
    (held,) = found["bytes"]
    assert held < 1.1 * stored  # tables of positions, padding of the vocabulary: little in a model


@pytest.mark.parametrize("case", ["mixed, biases, pruned head", "Mixtral"])
def test_compiled(
    case: str, pruned: Callable[..., Path], engines: Any, prompts: list[list[int]]
) -> None:
    family, overrides, sizes = CASES[case]
    folder = pruned(family, overrides, **sizes)
    found = engines.vllm(folder, prompts, options={"enforce_eager": False})
    equal(found, engines.transformers(folder, prompts))


@pytest.mark.parametrize(
    "case",
    ["mixed, biases, pruned head", "fused on the disk", "Transformers backend, biases", "Mixtral"],
)
def test_two_processes(
    case: str, pruned: Callable[..., Path], engines: Any, prompts: list[list[int]]
) -> None:
    """Blocks are cut inside: 112 of 224 is no multiple of 32, half of q is one block of 64."""
    family, overrides, sizes = CASES[case]
    folder = pruned(family, overrides, **sizes)
    found = engines.vllm(folder, prompts, options={"tensor_parallel_size": 2})
    equal(found, engines.transformers(folder, prompts))


def test_replicated_keys(
    pruned: Callable[..., Path], engines: Any, prompts: list[list[int]]
) -> None:
    """One head of keys and values for two processes."""
    folder = pruned("Qwen2", {}, num_key_value_heads=1)
    found = engines.vllm(folder, prompts, options={"tensor_parallel_size": 2})
    equal(found, engines.transformers(folder, prompts))
