"""Second moments of the inputs of a layer, accumulated batch by batch and part by part."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from armor.errors import ArmorError


class Moments:
    """Running ``E[x x^T]`` and, given the dense model's inputs too, ``E[x_dense x^T]``.

    Sums are kept in float32 on the device of the inputs; each batch is reduced in float32.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._sums: dict[str, Tensor] = {}

    def add(
        self,
        inputs: Float[Tensor, "*batch in"],
        dense_inputs: Float[Tensor, "*batch in"] | None = None,
    ) -> None:
        """Add a batch: `inputs` (..., in) and, token for token, `dense_inputs` (..., in)."""
        flat = inputs.flatten(0, -2).float()
        lefts = {"second": flat}
        if dense_inputs is not None:
            lefts["cross"] = dense_inputs.flatten(0, -2).float()
        self.tokens += flat.shape[0]
        for name, left in lefts.items():
            if name in self._sums:
                self._sums[name].addmm_(left.T, flat)
            else:
                self._sums[name] = left.T @ flat

    def merge(self, tokens: int, sums: dict[str, Float[Tensor, "in in"]]) -> None:
        """Add the sums over other `tokens`, which are changed if they are the first."""
        self.tokens += tokens
        for name, part in sums.items():
            self._sums[name] = self._sums[name].add_(part) if name in self._sums else part

    def sums(self) -> dict[str, Float[Tensor, "in in"]]:
        """``second`` and, where asked for, ``cross``: not divided by the tokens."""
        return self._sums

    def means(self, what: str) -> dict[str, Float[Tensor, "in in"]]:
        """``second`` E[x x^T] and maybe ``cross`` E[x_dense x^T], (in, in) float32.

        Takes the sums along: nothing can be added afterwards.

        Raises:
            ArmorError: inf or NaN in them; the message names `what`, the layer.
        """
        if not torch.isfinite(self._sums["second"]).all():
            raise ArmorError(
                f"the inputs of {what} are not finite on the calibration text:"
                " the model overflows there; load it in another dtype or change the text"
            )
        means, self._sums = self._sums, {}
        for total in means.values():
            total.div_(self.tokens)
        return means
