"""A tiny random Llama with awkward sizes, and checkpoints made of it with random factors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from armor.checkpoint import ModelFiles, assemble
from armor.sparse.factors import Factors
from armor.sparse.layer import PackedLayer
from armor.sparse.masks import nm_mask
from armor.sparse.pattern import TWO_OF_FOUR, Pattern


@dataclass(frozen=True)
class Made:
    """A dense model folder, the checkpoint made of it, and the layers that went in."""

    source: Path
    folder: Path
    layers: dict[str, PackedLayer]


Make = Callable[..., Made]


def random_mask(scores: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    if pattern.group:
        return nm_mask(scores, pattern.kept, pattern.group)
    rows, cols = scores.shape
    least = scores.flatten().sort(descending=True).values[pattern.count((rows, cols)) - 1]
    return scores >= least


def random_layer(
    weight: torch.Tensor, block: int | None, seed: int, pattern: Pattern = TWO_OF_FOUR
) -> PackedLayer:
    """Factors of about the size of `weight`, wrappers near the identity, in its dtype."""
    generator = torch.Generator().manual_seed(seed)
    rows, cols = weight.shape
    mask = random_mask(torch.rand(rows, cols, generator=generator), pattern)
    core = weight.float() * mask * 1.4
    if block is None:
        return PackedLayer.from_factors(Factors(core, mask, pattern=pattern).cast(weight.dtype))

    def wrapper(size: int) -> torch.Tensor:
        blocks = torch.randn(-(-size // block), block, block, generator=generator)
        return torch.eye(block) + 0.2 * blocks

    factors = Factors(core, mask, wrapper(rows), wrapper(cols), pattern)
    return PackedLayer.from_factors(factors.cast(weight.dtype))


@pytest.fixture(scope="session")
def make(make_llama: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes checkpoints; the same arguments give the same folders, so leave them unchanged."""
    cache: dict[tuple[object, ...], Made] = {}

    def build(
        dtype: torch.dtype = torch.float32,
        block: int | None = 16,
        tie: bool = True,
        bias: bool = False,
        mlp: int = 172,
        patterns: tuple[str, ...] = ("2:4",),
    ) -> Made:
        """The layers take turns with `patterns`."""
        key = (dtype, block, tie, bias, mlp, patterns)
        if key not in cache:
            home = tmp_path_factory.mktemp("model")
            model = make_llama(
                vocab_size=320,
                hidden_size=64,
                intermediate_size=mlp,
                max_position_embeddings=256,
                tie_word_embeddings=tie,
                attention_bias=bias,
                initializer_range=0.15,  # logits far apart: greedy generation has no ties
                bos_token_id=1,
                eos_token_id=None,
                pad_token_id=None,
            ).to(dtype)
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    torch.nn.init.normal_(parameter, std=0.2)
            model.save_pretrained(home / "source")
            turns = [Pattern.parse(text) for text in patterns]
            layers = {
                name: random_layer(module.weight.data, block, seed, turns[seed % len(turns)])
                for seed, (name, module) in enumerate(model.named_modules())
                if isinstance(module, torch.nn.Linear) and name != "lm_head"
            }
            run = {"config": {"method": "armor"}, "layers": dict.fromkeys(layers, RECORD)}
            assemble(ModelFiles.read(home / "source"), home / "packed", layers, run)
            cache[key] = Made(home / "source", home / "packed", layers)
        return cache[key]

    return build


RECORD = {
    "loss": 0.02,
    "nowag_loss": 0.1,
    "sparsegpt_loss": None,
    "certificate": True,
    "block": 16,
    "seconds": 1.5,
}
