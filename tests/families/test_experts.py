"""Mixtures of experts: their own tokens' moments, every method, what few tokens do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import armor
from armor.checkpoint.reader import Checkpoint
from armor.checkpoint.weights import read_weights
from armor.config import PruneConfig
from armor.models.experts import split_experts
from armor.models.load import load_model
from armor.models.routed import find_routed
from armor.run.forward import Forward
from armor.text.windows import token_windows

pytestmark = pytest.mark.transformers_compat
MOE = pytest.mark.parametrize(
    "family", ["Mixtral", "Qwen3-MoE", "gpt-oss", "Llama 4 (text)"], indirect=True
)
#: Each token goes to two experts, so that all see enough.
TWO_EACH = pytest.mark.parametrize("family", ["Mixtral", "Qwen3-MoE", "gpt-oss"], indirect=True)


@pytest.fixture
def source(family: Any, tokenizer: Any, tmp_path: Path) -> Path:
    family.model().save_pretrained(tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def settings(text: Path, **changes: Any) -> PruneConfig:
    values = {"calibration": str(text), "samples": 8, "seq_len": 64, "iterations": 2}
    return PruneConfig(**{**values, "block_size": 4, **changes})


@pytest.fixture
def moments(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, torch.Tensor]]:
    """Of linears in experts of block 0, once a run has measured them: tokens, E[x x^T]."""
    measured: dict[str, tuple[int, torch.Tensor]] = {}
    sum_up = Forward.expert_moments

    def watched(self: Any, index: int, *rest: Any) -> dict[str, Any]:
        totals = sum_up(self, index, *rest)
        for name, total in totals.items():
            if index == 0:
                measured[name] = total.tokens, total.sums()["second"] / total.tokens
        return totals

    monkeypatch.setattr(Forward, "expert_moments", watched)
    return measured


@MOE
@pytest.mark.parametrize("changes", [{"method": "wanda"}, {"target": "dense"}, {"method": "nowag"}])
def test_other_methods_and_targets(
    source: Path, family: Any, text: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    result = armor.prune(source, settings(text, **changes), tmp_path / "out")
    assert len(result.records) == family.linears
    model = armor.load(tmp_path / "out")
    assert torch.isfinite(model(torch.arange(20)[None]).logits).all()


@MOE
@pytest.mark.parametrize("pattern", ["4:8", "50%"])
def test_other_patterns_the_whole_way(
    source: Path, family: Any, text: Path, tmp_path: Path, pattern: str
) -> None:
    # (The attention's small matrices would not shrink with blocks of 8.)
    others = {"*self_attn*": {"pattern": "2:4", "block": 4}}
    config = settings(text, pattern=pattern, block_size=8, overrides=others)
    result = armor.prune(source, config, tmp_path / "out")
    assert len(result.records) == family.linears
    assert all(record.certificate for record in result.records.values())
    found = armor.inspect(tmp_path / "out")["layers"]
    assert {layer["pattern"] for name, layer in found.items() if "experts" in name} == {pattern}

    armor.export_dense(tmp_path / "out", tmp_path / "twin")
    ids = torch.arange(10, 58).view(2, 24)
    with torch.no_grad():
        ours, theirs = (
            model(ids, use_cache=False).logits
            for model in (armor.load(tmp_path / "out"), load_model(str(tmp_path / "twin")))
        )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    joined = Checkpoint.open(tmp_path / "out").joined
    wholes = {tensor for tensor, whole in joined.items() if not whole.bias}
    before, packed, after = map(read_weights, (source, tmp_path / "out", tmp_path / "twin"))
    assert before.keys() == after.keys()
    pruned = {f"{name}.weight" for name in result.records} | wholes
    for name, stored in before.items():
        written = b"".join(stored.chunks())
        assert (b"".join(after[name].chunks()) == written) == (name not in pruned)
        in_parts = name in pruned or name in joined
        assert in_parts or b"".join(packed[name].chunks()) == written


@MOE
def test_moments_are_those_of_the_tokens_routed_to_the_expert(
    source: Path, tokenizer: Any, text: Path, tmp_path: Path, moments: Any
) -> None:
    """Block 0 of the dense stream, compared with hooks in the whole model."""
    armor.prune(source, settings(text, method="nowag"), tmp_path / "out")
    model = load_model(str(source))
    split_experts(model, armor.inspect(tmp_path / "out")["layers"])
    block = model.model.layers[0]
    seen: dict[str, list[torch.Tensor]] = {}
    for name in moments:
        block.get_submodule(name).register_forward_pre_hook(
            lambda _module, args, name=name: seen.setdefault(name, []).append(args[0])
        )
    with torch.no_grad():
        model(token_windows(str(text), tokenizer, 8, 64))
    assert moments.keys() == seen.keys()
    assert any(len(torch.cat(inputs)) > 32 for inputs in seen.values())
    for name, (tokens, second) in moments.items():
        inputs = torch.cat(seen[name])
        if len(inputs) < inputs.shape[1]:  # others stand in
            assert tokens >= inputs.shape[1]
            continue
        assert tokens == len(inputs)
        torch.testing.assert_close(second, inputs.T @ inputs / tokens, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["Llama 4 (text)"], indirect=True)
@pytest.mark.parametrize("samples", [8, 1], ids=["enough", "few"])
def test_rows_that_are_not_sent_to_an_expert_do_not_count(
    source: Path, tokenizer: Any, text: Path, tmp_path: Path, samples: int, moments: Any
) -> None:
    """The model as it is: hidden states times scores, worked out from its router."""
    armor.prune(source, settings(text, method="nowag", samples=samples), tmp_path / "out")
    model = load_model(str(source))
    moe = model.model.layers[0].feed_forward
    seen: list[torch.Tensor] = []
    moe.register_forward_pre_hook(lambda _module, args: seen.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        model(token_windows(str(text), tokenizer, samples, 64))
        hidden = torch.cat(seen)
        logits = hidden @ moe.router.weight.T
    best = logits.argmax(-1)
    scaled = hidden * logits.amax(-1).sigmoid()[:, None]
    for number in range(4):
        tokens, second = moments[f"feed_forward.experts.{number}.gate_proj"]
        own, others = scaled[best == number], scaled[best != number]
        if len(own) < 32:  # others make up the number, as their experts see them
            step = torch.arange(32 - len(own)) * len(others) // (32 - len(own))
            order = others[torch.argsort(best[best != number], stable=True)]
            own = torch.cat([own, order[step]])
        assert tokens == len(own)
        torch.testing.assert_close(second, own.T @ own / tokens, rtol=1e-4, atol=1e-5)


@MOE
def test_experts_that_saw_few_tokens_are_named(source: Path, text: Path, tmp_path: Path) -> None:
    config = settings(text, samples=2, seq_len=24)
    result = armor.prune(source, config, tmp_path / "out")
    notes = {
        name: record.note for name, record in result.records.items() if "others" in record.note
    }
    assert notes
    assert all(".experts." in name for name in notes)
    assert all(record.certificate for record in result.records.values())
    stored = json.loads((tmp_path / "out" / "armor_run.json").read_text())["layers"]
    assert all(stored[name]["note"] == note for name, note in notes.items())


@MOE
def test_routers_stay_as_they_are(source: Path, text: Path, tmp_path: Path) -> None:
    armor.prune(source, settings(text), tmp_path / "out")
    before, after = load_model(str(source)), armor.load(tmp_path / "out")
    for old, new in zip(before.model.layers, after.model.layers, strict=True):
        (routed,) = find_routed(new)
        router = new.get_submodule(routed.router)
        assert not isinstance(router, armor.ArmorLinear)
        weight = old.get_parameter(f"{routed.router}.weight")
        assert isinstance(weight, nn.Parameter)
        assert torch.equal(weight, router.weight)


@pytest.mark.parametrize("family", ["Mixtral", "gpt-oss", "Llama 4 (text)"], indirect=True)
def test_two_workers_give_the_same_bytes(source: Path, text: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        armor.prune(source, settings(text), tmp_path / str(workers), workers=workers)
    one, two = ((tmp_path / str(n) / "model.safetensors").read_bytes() for n in (1, 2))
    assert one == two


@TWO_EACH
def test_a_size_chooses_for_experts_and_the_head(
    family: Any, tokenizer: Any, text: Path, tmp_path: Path
) -> None:
    family.model(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "source")
    config = settings(text, block_size=None, size=0.9, lm_head=True)
    result = armor.prune(tmp_path / "source", config, tmp_path / "out")
    harms = json.loads((tmp_path / "out" / "armor_run.json").read_text())["budget"]["harms"]
    experts = {plan.name for plan in result.plans if "experts" in plan.name}
    assert len(experts) == 24
    assert experts | {"lm_head"} <= harms.keys()
    for own in harms.values():
        assert all(harm > 0 for harm in own.values())
        assert sorted(own, key=int) == sorted(own, key=lambda block: -own[block])
