"""Second moments of the inputs of a layer, accumulated batch by batch."""

from __future__ import annotations

import torch
from torch import Tensor

from armor.errors import ArmorError


class Moments:
    """Running ``E[x x^T]`` and, given the dense model's inputs too, ``E[x_dense x^T]``.

    Sums are kept in float32 on the device of the inputs; each batch is reduced in float32.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._second: Tensor | None = None
        self._cross: Tensor | None = None

    def add(self, inputs: Tensor, dense_inputs: Tensor | None = None) -> None:
        """Add a batch: `inputs` (..., in) and, token for token, `dense_inputs` (..., in)."""
        flat = inputs.flatten(0, -2).float()
        self.tokens += flat.shape[0]
        second = flat.T @ flat
        self._second = second if self._second is None else self._second.add_(second)
        if dense_inputs is not None:
            cross = dense_inputs.flatten(0, -2).float().T @ flat
            self._cross = cross if self._cross is None else self._cross.add_(cross)

    def second(self, what: str) -> Tensor:
        """``E[x x^T]``, (in, in) float32; inf or NaN in it raises `ArmorError` naming `what`."""
        assert self._second is not None
        if not torch.isfinite(self._second).all():
            raise ArmorError(
                f"the inputs of {what} are not finite on the calibration text:"
                " the model overflows there; load it in another dtype or change the text"
            )
        return self._second / self.tokens

    def cross(self) -> Tensor:
        """``E[x_dense x^T]``, (in, in) float32."""
        assert self._cross is not None
        return self._cross / self.tokens
