"""Sample: some calibration tokens at a layer, as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """Some calibration tokens at a layer.

    Attributes:
        inputs: x_p, (tokens, in), on the pruned stream. dense: x_d, on the dense model's.
        residual: r, (tokens, out), what the dense model's residual stream is ahead; None where the
            layer does not add to that.
    """

    inputs: Float[Tensor, "*tokens in"]
    dense: Float[Tensor, "*tokens in"]
    residual: Float[Tensor, "*tokens out"] | None = None

    @classmethod
    def named(cls, name: str, tensors: Mapping[str, Tensor]) -> Sample | None:
        """What `tensors` has as ``NAME/KIND``; None if that is nothing."""
        inputs = tensors.get(f"{name}/inputs")
        if inputs is None:
            return None
        return cls(inputs, tensors[f"{name}/dense"], tensors.get(f"{name}/residual"))

    def tensors(self) -> dict[str, Tensor]:
        """By kind."""
        own = {"inputs": self.inputs, "dense": self.dense}
        return own if self.residual is None else {**own, "residual": self.residual}

    def flat(self) -> Sample:
        """With all tokens in one row."""
        return Sample(**{kind: tensor.flatten(0, -2) for kind, tensor in self.tensors().items()})

    def at(self, tokens: slice) -> Sample:
        """Those `tokens` of a flat one."""
        return Sample(**{kind: tensor[tokens] for kind, tensor in self.tensors().items()})

    def wanted(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "tokens out"]:
        """``W x_d + r``: what the layer should put out, for the weight W of the dense model."""
        output = self.dense @ weight.T
        return output if self.residual is None else output + self.residual

    def missed(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "tokens out"]:
        """``W x_d + r - W x_p``: what W itself misses of that."""
        output = (self.dense.float() - self.inputs) @ weight.T
        return output if self.residual is None else output.add_(self.residual)

    def error(self, weight: Float[Tensor, "out in"], pruned: Float[Tensor, "out in"]) -> float:
        """What `pruned` misses of that: squares, relative to those of ``W x_d``."""
        missing = self.wanted(weight) - self.inputs @ pruned.T
        energy = float((self.dense @ weight.T).square().sum(dtype=torch.float64))
        return float(missing.square().sum(dtype=torch.float64)) / (energy or 1.0)
