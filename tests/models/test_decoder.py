"""The text decoder among other lists of modules, and what counts as experts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from armor.errors import ArmorError
from armor.models.experts import fused_experts
from armor.models.structure import find_structure


class Tower(nn.Module):
    main_input_name = "pixel_values"

    def __init__(self, width: int) -> None:
        super().__init__()
        self.config = object()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(2))


def test_a_larger_tower_beside_the_blocks_is_not_the_decoder() -> None:
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    model: Any = transformers.LlamaForCausalLM(config)
    model.model.vision = Tower(256)  # inside the text model itself, as Phi-4 has it
    assert find_structure(model).prefix == "model.layers"
    del model.model.layers
    with pytest.raises(ArmorError, match="no list of decoder blocks"):
        find_structure(model)


def test_blocks_that_share_weights_are_refused() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(2))
    model.layers[1][0].weight = model.layers[0][0].weight
    with pytest.raises(ArmorError, match="share weights"):
        find_structure(model)


class Layer(nn.Module):
    """A 3-D weight, and a matrix with a number of rows."""

    def __init__(self, shape: tuple[int, ...], rows: int) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.weight = nn.Parameter(torch.zeros(shape))
        self.other = nn.Linear(8, rows)


@pytest.mark.parametrize(
    ("shape", "rows", "experts"),
    [
        ((4, 16, 8), 4, True),
        ((4, 16, 8), 5, True),  # a router with a place for doing nothing
        ((4, 16, 8), 16, False),  # nothing chooses: a gate for each head
        ((1, 1, 8), 1, False),
        ((32, 4, 8), 32, False),  # XLNet's attention
    ],
)
def test_experts_are_what_something_chooses_among(
    shape: tuple[int, ...], rows: int, experts: bool
) -> None:
    model = nn.Module()
    model.layer = Layer(shape, rows)
    assert [name for name, _ in fused_experts(model)] == ["layer.inner"] * experts
