"""Linears that hold several in one (qkv, gate_up): found by their sizes, split into parts.

Each part then has wrappers of its own. With wrappers of the same size that is a lower loss than one
factorisation of the whole (benchmarks/fused.py), for more parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from armor.models.modules import put_module


class JoinedLinear(nn.ModuleList):
    """Linears on the same input, their outputs side by side: replaces a fused linear."""

    bias: nn.Parameter | None

    def __init__(self, parts: Sequence[nn.Module], bias: nn.Parameter | None = None) -> None:
        super().__init__(parts)
        self.register_parameter("bias", bias)

    @property
    def weight(self) -> Tensor:
        """The weights of all parts, (out, in), a copy; on the meta device if one of them is."""
        weights: list[Tensor] = [getattr(part, "weight") for part in self]  # noqa: B009
        if any(weight.is_meta for weight in weights):
            weights = [weight.to("meta") for weight in weights]
        return torch.cat(weights)

    def whole(self) -> nn.Linear:
        """One linear with a copy of all weights."""
        weight = self.weight
        rows, cols = weight.shape
        linear = nn.Linear(cols, rows, self.bias is not None, "meta", weight.dtype)
        linear.weight = nn.Parameter(weight, requires_grad=False)
        linear.register_parameter("bias", self.bias)
        return linear.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out of all parts)."""
        joined = torch.cat([part(x) for part in self], dim=-1)
        return joined if self.bias is None else joined + self.bias


def fused_linears(block: nn.Module, config: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The fused linears of a decoder block: name in the block, rows of each part.

    Of two linears in one module, a linear with as many outputs as all heads of q, k and v is these
    three, and one with twice the outputs that the other takes is gate and up.

    Args:
        config: the block's, for the number and size of its heads.
    """
    qkv = _qkv_rows(config)
    for name, module in block.named_modules():
        linears = [(n, m) for n, m in module.named_children() if isinstance(m, nn.Linear)]
        if len(linears) != 2:  # the fused one, and the one that takes its result
            continue
        for (child, linear), (_, other) in (linears, linears[::-1]):
            path = f"{name}.{child}" if name else child
            if linear.out_features == sum(qkv) and other.in_features == qkv[0]:
                yield path, qkv
            elif linear.out_features == 2 * other.in_features:
                yield path, (other.in_features, other.in_features)


def split_linear(model: nn.Module, path: str, rows: Sequence[int]) -> None:
    """Put a `JoinedLinear` in the place of the linear at `path`, sharing its memory."""
    whole = model.get_submodule(path)
    assert isinstance(whole, nn.Linear)
    parts = []
    ends = list(accumulate(rows))
    for begin, end in zip([0, *ends], ends, strict=False):
        part = nn.Linear(whole.in_features, end - begin, False, "meta", whole.weight.dtype)
        part.weight = nn.Parameter(whole.weight.data[begin:end], requires_grad=False)
        parts.append(part)
    put_module(model, path, JoinedLinear(parts, whole.bias).train(whole.training))


def _qkv_rows(config: Any) -> tuple[int, ...]:
    heads = getattr(config, "num_attention_heads", None)
    hidden = getattr(config, "hidden_size", None)
    if not heads or not hidden:
        return (0,)
    size = getattr(config, "head_dim", None) or hidden // heads
    kv = (getattr(config, "num_key_value_heads", None) or heads) * size
    return heads * size, kv, kv
