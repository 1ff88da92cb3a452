"""Which GPU a launch goes to."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Inside, kernels and libraries work on `device`: they go to the current GPU of the thread,
    wherever the tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
