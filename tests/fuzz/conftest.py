"""The smallest checkpoint that has everything, and mutations of it."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from armor.checkpoint import ModelFiles, assemble
from armor.checkpoint.joined import Joined
from armor.factorize.problem import Problem
from armor.factorize.rounding import Storage, between_identities, round_core
from armor.sparse.factors import Factors
from armor.sparse.layer import PackedLayer
from armor.sparse.masks import nm_mask
from armor.sparse.pattern import Pattern

RECORD = {"loss": 0.02, "nowag_loss": 0.1, "certificate": True, "seconds": 1.5}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of six pruned layers: 2:4, unstructured without wrappers, 4:8 of a fused, an
    int4 core with int8 wrappers, an int8 core and an fp8 core without."""
    generator = torch.Generator().manual_seed(0)
    names = ("model.layers.0.up", "model.layers.0.down", "model.layers.0.fused.a")
    tensors = {"model.norm.weight": torch.ones(12), "model.layers.0.fused.weight": torch.ones(9, 8)}
    joined = {"model.layers.0.fused.weight": Joined((9, 8), {names[2]: 6, f"{names[2]}b": 3})}
    patterns = dict(zip(names, map(Pattern.parse, ("2:4", "50%", "4:8")), strict=True))
    layers = {}
    for name, shape, block in zip(names, ((8, 12), (12, 8), (6, 8)), (4, None, 4), strict=True):
        weight = torch.randn(shape, generator=generator)
        if name != names[2]:
            tensors[f"{name}.weight"] = weight
        pattern = patterns[name]
        mask = (
            weight.abs() > weight.abs().median()
            if pattern.is_unstructured
            else nm_mask(weight.abs(), pattern.kept, pattern.group)
        )
        wrappers = [
            None if block is None else torch.eye(block).repeat(-(-size // block), 1, 1)
            for size in shape
        ]
        layers[name] = PackedLayer.from_factors(Factors(weight * mask, mask, *wrappers, pattern))
    for name, core, block in (
        ("model.layers.0.int4", "int4", 4),
        ("model.layers.0.int8", "int8", 0),
        ("model.layers.0.fp8", "fp8", 0),
    ):
        weight = torch.randn((8, 12), generator=generator)
        tensors[f"{name}.weight"] = weight
        mask = nm_mask(weight.abs())
        problem, storage = Problem(weight, torch.ones(12)), Storage(core, "int8", weight.dtype)
        factors = round_core(problem, Factors(weight * mask, mask), storage)
        factors = between_identities(factors, block, storage) if block else factors
        layers[name] = PackedLayer.from_factors(factors)
    source = tmp_path / "source"
    source.mkdir()
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    (source / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 12}))
    run = {
        "config": {"method": "armor"},
        "layers": dict.fromkeys(layers, RECORD),
        "dense_layers": {"model.layers.0.gate": "excluded"},
    }
    assemble(ModelFiles.read(source), tmp_path / "packed", layers, run, joined=joined)
    return tmp_path / "packed"


@dataclass(frozen=True)
class Loadable:
    """The folders of a tiny model with a tokenizer, dense and pruned, and a text for it."""

    dense: Path
    pruned: Path
    text: Path


@pytest.fixture(scope="session")
def loadable(
    make_llama: Callable[..., Any], byte_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> Loadable:
    home = tmp_path_factory.mktemp("loadable")
    model = make_llama(intermediate_size=48, tie_word_embeddings=True)
    model.save_pretrained(home / "dense")
    byte_tokenizer.save_pretrained(home / "dense")
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            weight = module.weight.data
            mask = nm_mask(weight.abs())
            wrappers = [torch.eye(4).repeat(size // 4, 1, 1) for size in weight.shape]
            layers[name] = PackedLayer.from_factors(Factors(weight * mask, mask, *wrappers))
    assemble(ModelFiles.read(home / "dense"), home / "pruned", layers, {})
    (home / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    return Loadable(home / "dense", home / "pruned", home / "text.txt")


HOSTILE = (
    *(None, True, False, -1, 0, 1, 3, 2**31, 2**63, 2**64, 10**30, 10**400),
    *(-0.0, 0.5, 1e308, float("nan"), float("inf")),
    *("", "x" * 300, "..", "../../etc/passwd", "/dev/zero", "a\0b", "a\nb", "\x1b[2J", "[/bold]"),
    *(
        "core_values",
        "core_scales",
        "int8",
        "int4",
        "fp8",
        "I8",
        "F64",
        "U8",
        "F4",
        "XX",
        "2:4",
        "armor",
        "\u202e",
        "é",
    ),
    *([], {}, [[]], [1, 2, 3], [2**40, 2**40], [-4, 4], ["F32", [2], [0, 8]], {"a": {"b": []}}),
)
_SYNTAX = b'0123456789[]{}",:-\\eE.u \x00\xff'


class Mutator:
    """Mutations drawn with a seed: of bytes, and of JSON that stays JSON."""

    def __init__(self, seed: str) -> None:
        self.rng = random.Random(seed)

    def bytes(self, data: bytes, reach: int) -> bytes:
        """A few of the first `reach` bytes changed, inserted, removed, or the rest cut off."""
        spoiled = bytearray(data)
        for _ in range(self.rng.choice((1, 1, 2, 8))):
            at = self.rng.randrange(max(1, min(reach, len(spoiled))))
            kind = self.rng.randrange(10)
            if kind < 6:
                spoiled[at : at + 1] = bytes([self.rng.choice((self.rng.randrange(256), *_SYNTAX))])
            elif kind == 6:
                spoiled[at:at] = spoiled[at : at + self.rng.randrange(1, 40)]
            elif kind == 7:
                del spoiled[at : at + self.rng.randrange(1, 40)]
            elif kind == 8:
                spoiled[at : at + 1] = (
                    bytes([spoiled[at] ^ 1 << self.rng.randrange(8)]) if spoiled else b""
                )
            else:
                del spoiled[self.rng.randrange(len(spoiled) + 1) :]
        return bytes(spoiled)

    def json(self, data: Any) -> str:
        """`data` as JSON, with one to three parts replaced, removed, renamed or exchanged."""
        data = copy.deepcopy(data)
        for _ in range(self.rng.choice((1, 1, 2, 3))):
            places = _places(data)
            if not places:
                break
            holder, key = self.rng.choice(places)
            kind = self.rng.randrange(8)
            if kind < 4:
                holder[key] = copy.deepcopy(self.rng.choice(HOSTILE))
            elif kind == 4:
                del holder[key]
            elif kind == 5:
                other, its_key = self.rng.choice(places)
                holder[key] = copy.deepcopy(other[its_key])
            elif kind == 6 and isinstance(holder, dict):
                holder[self.rng.choice([text for text in HOSTILE if isinstance(text, str)])] = (
                    holder.pop(key)
                )
            elif isinstance(holder[key], int):
                holder[key] += self.rng.choice((-8, -4, -1, 1, 4, 8, 2**32))
        text = json.dumps(data)
        if self.rng.randrange(20) == 0:  # a key twice
            text = text.replace("{", '{"shape": [1, 1], ', 1) if self.rng.randrange(2) else text
        if self.rng.randrange(20) == 0:  # deep, or half a surrogate pair
            text = text.replace("null", self.rng.choice(("[" * 70 + "]" * 70, '"\\ud800"')), 1)
        return text


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in `value`."""
    if isinstance(value, dict):
        keys: list[Any] = list(value)
    elif isinstance(value, list):
        keys = list(range(len(value)))
    else:
        return []
    return [place for key in keys for place in ((value, key), *_places(value[key]))]


@pytest.fixture
def mutator(request: pytest.FixtureRequest) -> Mutator:
    """Each test has its own seed: its name."""
    return Mutator(request.node.name)
