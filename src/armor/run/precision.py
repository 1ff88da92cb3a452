"""In which precision the calibration text runs through the blocks."""

from __future__ import annotations

import torch

from armor.models.streamed import StreamedModel
from armor.simd.processor import has_bfloat16


def bfloat16_devices(model: StreamedModel) -> tuple[str, ...]:
    """The types of device where a pass through a block has products in bfloat16, sums in float32.

    Where the weights are stored in bfloat16, and so is what the model is used in, and there are
    instructions for it, several times as fast: on GPUs, and on this machine's processor or not.
    Moments stay in float32.
    """
    prefix = f"{model.structure.prefix}.0."
    names = [name for name in model.stored if name.startswith(prefix)]
    if {model.dtype(name) for name in names} != {torch.bfloat16}:
        return ()
    return ("cpu", "cuda") if has_bfloat16() else ("cuda",)
