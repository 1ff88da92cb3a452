"""In which precision the calibration text runs through the blocks."""

from __future__ import annotations

import torch

from armor.models.streamed import StreamedModel
from armor.simd.processor import has_bfloat16


def runs_in_bfloat16(model: StreamedModel) -> bool:
    """Whether the products of a pass through a block are in bfloat16, sums in float32.

    So they are where the weights are stored in bfloat16, and so is what the model is used in, and
    the processor has instructions for it, several times as fast. Moments stay in float32.
    """
    prefix = f"{model.structure.prefix}.0."
    names = [name for name in model.stored if name.startswith(prefix)]
    dtypes = {model.dtype(name) for name in names}
    return has_bfloat16() and dtypes == {torch.bfloat16}
