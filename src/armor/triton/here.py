"""Triton as it is installed; imports it only where that is asked for."""

from __future__ import annotations

import importlib.util
import os
from functools import cache

import torch

#: Kernels have tuples as arguments, and gather.
OLDEST = (3, 3)


def why_no_triton() -> str:
    """Why kernels in Triton cannot run here, in words; "" if they can.

    Where a GPU is in use that is tried once: the first kernel takes a C compiler, and the headers
    of Python.
    """
    if reason := _why_not_this():
        return reason
    # Not before the GPU is in use: a process that has touched it cannot be forked.
    if is_interpreted() or not torch.cuda.is_initialized():
        return ""
    if torch.cuda.is_current_stream_capturing():
        return ""
    return _why_no_kernel()


def is_interpreted() -> bool:
    """Whether kernels run on the CPU, one operation at a time, as tests want it."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def is_older_than(major: int, minor: int) -> bool:
    """Whether the Triton that is installed is."""
    import triton

    return tuple(map(int, triton.__version__.split(".")[:2])) < (major, minor)


@cache  # products ask at each call
def _why_not_this() -> str:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    if is_older_than(*OLDEST):
        import triton

        return f"triton {triton.__version__} is older than {'.'.join(map(str, OLDEST))}"
    return ""


@cache
def _why_no_kernel() -> str:
    from armor.triton.probe import fill

    try:
        found = fill(torch.zeros(1, dtype=torch.int32, device="cuda"))
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        said = f": {lines[-1].strip()}" if lines else ""
        return (
            f"triton cannot start a kernel ({type(error).__name__}{said});"
            " it needs a C compiler and the headers of Python"
        )
    return "" if int(found) == 1 else "a kernel of triton gave a wrong number"
