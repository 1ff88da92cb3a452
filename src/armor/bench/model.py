"""A whole model: tokens a second of prefill and decode, packed against dense."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from armor.bench.timing import interleaved
from armor.linear import ArmorLinear, held_bytes
from armor.models.modules import put_module


@dataclass(frozen=True)
class Speed:
    """Tokens a second of a model; `bytes` are those of all its parameters."""

    contender: str
    prefill: float
    decode: float
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def measure_model(
    model: Any, prompt: int, tokens: int, repeats: int, batch: int = 1, static: bool | None = None
) -> list[Speed]:
    """The model with packed linears, and with the same linears multiplied out.

    Args:
        model: a causal language model of transformers with `ArmorLinear` layers.
        prompt: its length in tokens. tokens: how many to generate after it. batch: of sequences.
        static: whether to use a static cache, with which transformers records the decoding step as
            a CUDA graph; None does on CUDA.
    """
    device = model.device
    static = device.type == "cuda" if static is None else static
    ids = torch.randint(
        1, model.config.vocab_size, (batch, prompt), dtype=torch.int64, device=device
    )

    def generate(count: int) -> None:
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=count,
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
            cache_implementation="static" if static else None,
        )

    found = []
    for contender in ("ARMOR", "dense"):
        with dense_twin(model) if contender == "dense" else nullcontext():
            seconds = interleaved(
                {"short": lambda: generate(1), "long": lambda: generate(1 + tokens)},
                device,
                repeats,
                graphs=False,
            )
            size = held_bytes(model)
        decode = max(seconds["long"] - seconds["short"], 1e-9) / tokens
        found.append(Speed(contender, batch * prompt / seconds["short"], batch / decode, size))
    return found


@contextmanager
def dense_twin(model: nn.Module) -> Iterator[None]:
    """Inside, every `ArmorLinear` of `model` is an ordinary linear layer of the same weight."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, ArmorLinear)}
    try:
        for name, layer in layers.items():
            with torch.device("meta"):
                linear = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
            linear.weight = nn.Parameter(layer.dense_weight(), requires_grad=False)
            linear.register_parameter("bias", layer.bias)
            put_module(model, name, linear)
        torch.compiler.reset()
        yield
    finally:
        for name, layer in layers.items():
            put_module(model, name, layer)
        torch.compiler.reset()
