"""Which device to compute on, from what the user asked for, and how exactly."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from armor.errors import ArmorError

DEVICES = ("auto", "cpu", "cuda", "cuda:N")


def resolve_device(name: str, remote: bool = False) -> str:
    """ "cpu", "cuda" or "cuda:N" for one of `DEVICES`; "auto" takes a GPU of this machine if there
    is one.

    Args:
        remote: the work may run on other machines, so that "cuda" is believed.

    Raises:
        ArmorError: another name, "cuda" without a GPU, or a GPU that this machine does not have.
    """
    import torch

    numbered = re.fullmatch(r"cuda:(\d+)", name)
    if name not in ("auto", "cpu", "cuda") and not numbered:
        raise ArmorError(f"unknown device {name!r}; valid: {', '.join(DEVICES)}")
    available = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if available else "cpu"
    if numbered and remote:
        raise ArmorError(f"a GPU of a cluster has no number: --device cuda in place of {name}")
    if name != "cpu" and not available and not remote:
        raise ArmorError("no CUDA device is available; use --device cpu")
    if numbered and int(numbered[1]) >= (count := torch.cuda.device_count()):
        raise ArmorError(f"there is no {name}: this machine has {count} GPU(s), from cuda:0 on")
    return name


def kind_of_device(name: str) -> str:
    """What of a device decides on the bytes of a result: "cpu", or "cuda" and the kind of GPU.

    Of a GPU that is not of this machine "cuda" alone.
    """
    import torch

    where = torch.device(name)
    if where.type != "cuda" or not torch.cuda.is_available():
        return where.type
    return f"cuda ({torch.cuda.get_device_name(where)})"


@contextmanager
def float32_products(precision: str = "ieee") -> Iterator[None]:
    """While active, products of float32 matrices are of float32, whatever the process has set.

    A program, or the image that it runs in, may have asked for TF32 or bfloat16 in their place:
    `torch.set_float32_matmul_precision`, ``TORCH_ALLOW_TF32_CUBLAS_OVERRIDE``. The solver would end
    elsewhere, and worse.

    Args:
        precision: "ieee", or "tf32" for TF32 on GPUs.
    """
    import torch

    name = "fp32_precision"
    if not hasattr(torch.backends.cuda.matmul, name):  # before torch 2.9
        known = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest" if precision == "ieee" else "high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(known)
        return
    # The older names are refused where the program has used the newer ones.
    places: list[Any] = [torch.backends.cuda.matmul]
    if precision == "ieee":
        places.append(getattr(torch.backends.mkldnn, "matmul"))  # noqa: B009 (set at run time)
    before = [getattr(place, name) for place in places]
    for place in places:
        setattr(place, name, precision)
    try:
        yield
    finally:
        for place, own in zip(places, before, strict=True):
            setattr(place, name, own)
