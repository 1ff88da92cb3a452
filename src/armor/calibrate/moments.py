"""Moments of the inputs of a layer, accumulated batch by batch and part by part."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from armor.calibrate.sample import Sample
from armor.errors import ArmorError

#: Sums over tokens; all else that is kept are tokens themselves.
_SUMS = ("second", "cross", "missed")


class Moments:
    """Running ``E[x x^T]`` and, given the dense model's inputs too, ``E[x_dense x^T]``.

    Or, in place of the second, ``E[e x^T]`` with e what the dense weight misses on the inputs; and
    samples of tokens. Sums are kept in float32 on the device of the inputs; each batch is reduced
    in float32.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._kept: dict[str, Tensor] = {}

    def add(
        self,
        inputs: Float[Tensor, "*batch in"],
        dense: Float[Tensor, "*batch in"] | None = None,
        missed: Float[Tensor, "*batch out"] | None = None,
    ) -> None:
        """Add a batch: `inputs` (..., in) and, token for token, `dense` (..., in) or `missed`
        (..., out)."""
        flat = inputs.flatten(0, -2).float()
        if not len(flat):
            return
        lefts = {"second": flat}
        if dense is not None:
            lefts["cross"] = dense.flatten(0, -2).float()
        if missed is not None:
            lefts["missed"] = missed.flatten(0, -2).float()
        self.tokens += flat.shape[0]
        for name, left in lefts.items():
            if name in self._kept:
                self._kept[name].addmm_(left.T, flat)
            else:
                self._kept[name] = left.T @ flat

    def sample(self, name: str, tokens: Sample) -> None:
        """Keep some tokens of a batch, as ``NAME/KIND``."""
        for kind, tensor in tokens.tensors().items():
            if len(tensor):
                self._append(f"{name}/{kind}", tensor.float())

    def merge(self, tokens: int, kept: Mapping[str, Tensor]) -> None:
        """Add what was kept of other `tokens`, which is changed if it is the first."""
        self.tokens += tokens
        for name, part in kept.items():
            if name not in _SUMS:
                self._append(name, part)
            elif name in self._kept:
                known = self._kept[name]
                self._kept[name] = known.add_(part.to(known.device))
            else:
                self._kept[name] = part

    def sums(self) -> dict[str, Tensor]:
        """``second`` and, where asked for, ``cross`` or ``missed``, not divided by the tokens;
        samples."""
        return self._kept

    def means(self, what: str) -> dict[str, Tensor]:
        """``second`` E[x x^T] and maybe ``cross`` E[x_dense x^T], (in, in) float32, or ``missed``
        E[e x^T], (out, in); samples.

        Takes the sums along: nothing can be added afterwards.

        Raises:
            ArmorError: inf or NaN in them; the message names `what`, the layer.
        """
        if not torch.isfinite(self._kept["second"]).all():
            raise ArmorError(
                f"the inputs of {what} are not finite on the calibration text:"
                " the model overflows there; load it in another dtype or change the text"
            )
        means, self._kept = self._kept, {}
        # Divided by a tensor: a GPU multiplies by the reciprocal of a number, and the bytes would
        # depend on where the parts were added up.
        tokens = means["second"].new_tensor(self.tokens)
        for name in _SUMS:
            if name in means:
                means[name].div_(tokens)
        return means

    def _append(self, name: str, tensor: Tensor) -> None:
        known = self._kept.get(name)
        if known is None:
            self._kept[name] = tensor.clone()
        else:
            self._kept[name] = torch.cat((known, tensor.to(known.device)))
