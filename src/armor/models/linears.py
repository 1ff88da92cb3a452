"""Which subclasses of `torch.nn.Linear` compute what it computes."""

from __future__ import annotations

import torch
from torch import nn


def computes_linear(kind: type[nn.Linear]) -> bool:
    """Whether ``x W^T + bias`` is what a linear of this class gives: its forward is tried.

    Some models write it out themselves (Falcon); others scale it or choose from it (routers).
    """
    if kind.forward is nn.Linear.forward:
        return True
    for bias in (False, True):
        plain = nn.Linear(3, 2, bias, device="cpu", dtype=torch.float64)
        with torch.no_grad():
            for number, parameter in enumerate(plain.parameters()):
                steps = torch.arange(parameter.numel(), dtype=torch.float64, device="cpu")
                parameter.copy_(((steps + number).cos() + 2).view_as(parameter))
            x = torch.linspace(-1.0, 2.0, 12, dtype=torch.float64, device="cpu").view(2, 2, 3)
            expected = plain(x)
            plain.__class__ = kind
            try:
                found = plain(x)
            except Exception:  # it needs what a plain linear does not have
                return False
        if not isinstance(found, torch.Tensor) or found.shape != expected.shape:
            return False
        if not torch.allclose(found, expected):
            return False
    return True
