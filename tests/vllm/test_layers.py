"""Every kind of layer gives in vLLM what it gives in transformers with armor, token by token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from armor.checkpoint.inspect import Inspection

#: Every kind of part inside one fused projection, and every kind of layer beside it.
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
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96}


@dataclass(frozen=True)
class Case:
    """A model: family of transformers, settings of its layers, sizes."""

    family: str
    overrides: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=dict)


MODELS = {
    "mixed": Case("Qwen2", MIXED, {"lm_head": True}),  # and biases
    "tied": Case("Llama", {}, {"tie_word_embeddings": True}),
    "one head of keys": Case("Qwen2", {}, {"num_key_value_heads": 1}),
    "fused on the disk": Case("Phi3", FUSED),
    "GPT-NeoX": Case(  # by the Transformers backend, as the next two
        "GPTNeoX", {"*.dense": {"pattern": "1:4"}}, {"num_key_value_heads": 4}
    ),
    "OLMo-2": Case("Olmo2"),
    "SmolLM3": Case("SmolLM3", {}, {"tie_word_embeddings": True}),
    "Mixtral": Case("Mixtral", {}, {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "Qwen3-MoE": Case(
        "Qwen3Moe",
        {"*.up_proj": {"pattern": "4:8"}, "*.experts.1.*": {"skip": True}},
        {**MOE, "head_dim": 32},
    ),
    "OLMoE": Case("Olmoe", {}, MOE),
}
COMPILED = {"enforce_eager": False}
#: Blocks are cut inside: 112 of 224 is no multiple of 32, half of q is one block of 64.
TWO = {"tensor_parallel_size": 2}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in MODELS},
    "mixed, compiled": ("mixed", COMPILED),
    "Mixtral, compiled": ("Mixtral", COMPILED),
    "GPT-NeoX, compiled": ("GPT-NeoX", COMPILED),
    "mixed, 2 processes": ("mixed", TWO),
    "one head of keys, 2 processes": ("one head of keys", TWO),
    "fused on the disk, 2 processes": ("fused on the disk", TWO),
    "GPT-NeoX, 2 processes": ("GPT-NeoX", TWO),
    "Mixtral, 2 processes": ("Mixtral", TWO),
}
Folders = dict[str, Path]
Results = dict[str, Any]


def chosen(request: pytest.FixtureRequest) -> list[str]:
    """The runs that the selected tests ask for."""
    items = request.session.items
    wanted = {item.callspec.params.get("run") for item in items if hasattr(item, "callspec")}
    return [run for run in RUNS if run in wanted]


@pytest.fixture(scope="session")
def folders(request: pytest.FixtureRequest, pruned: Callable[..., Path]) -> Folders:
    """The checkpoint of each model."""
    names = {RUNS[run][0] for run in chosen(request)}
    cases = {name: case for name, case in MODELS.items() if name in names}
    return {name: pruned(c.family, c.overrides, **c.sizes) for name, c in cases.items()}


@pytest.fixture(scope="session")
def wanted(folders: Folders, engines: Any, prompts: list[list[int]]) -> Results:
    """What transformers gives for each model."""
    jobs = [{"folder": folder, "prompts": prompts} for folder in folders.values()]
    return dict(zip(folders, engines.transformers(jobs), strict=True))


@pytest.fixture(scope="session")
def found(
    request: pytest.FixtureRequest, folders: Folders, engines: Any, prompts: list[list[int]]
) -> Results:
    """What vLLM gives for each run."""
    runs = chosen(request)
    jobs = [
        {"folder": folders[model], "prompts": prompts, "options": options}
        for model, options in map(RUNS.__getitem__, runs)
    ]
    return dict(zip(runs, engines.vllm(jobs), strict=True))


@pytest.mark.parametrize("run", RUNS)
def test_same_tokens(run: str, folders: Folders, found: Results, wanted: Results) -> None:
    model, options = RUNS[run]
    assert "error" not in found[run], found[run]["error"]
    for ours, theirs in zip(found[run]["outputs"], wanted[model]["outputs"], strict=True):
        assert ours["tokens"] == theirs["tokens"]
        assert ours["logprobs"] == pytest.approx(theirs["logprobs"], abs=1e-4)
    if options != TWO:
        stored = Inspection.of(folders[model]).model_bytes
        # Tables of positions and the padding of the vocabulary: little in a model of some size.
        assert found[run]["bytes"] == [pytest.approx(stored, rel=0.15)]
