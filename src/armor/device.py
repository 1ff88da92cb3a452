"""Which device to compute on, from what the user asked for."""

from __future__ import annotations

from armor.errors import ArmorError

DEVICES = ("auto", "cpu", "cuda")


def resolve_device(name: str, remote: bool = False) -> str:
    """ "cpu" or "cuda" for one of `DEVICES`; "auto" takes a GPU of this machine if there is one.

    Args:
        remote: the work may run on other machines, so that "cuda" is believed.

    Raises:
        ArmorError: another name, or "cuda" without a GPU.
    """
    import torch

    if name not in DEVICES:
        raise ArmorError(f"unknown device {name!r}; valid: {', '.join(DEVICES)}")
    available = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if available else "cpu"
    if name == "cuda" and not available and not remote:
        raise ArmorError("no CUDA device is available; use --device cpu")
    return name
