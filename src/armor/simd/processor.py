"""What the processor can do, as far as Numba compiles for it."""

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import binding
from numba import config


def has_avx512() -> bool:
    """Whether Numba compiles for a processor with AVX-512."""
    return "avx512f" in features()


def has_float16() -> bool:
    """Whether Numba compiles for a processor that converts float16."""
    return bool(features() & {"f16c", "neon", "fp-armv8"})


def has_amx() -> bool:
    """Whether BLAS has matrix instructions for bfloat16."""
    return "amx-bf16" in features()


def has_bfloat16() -> bool:
    """Whether the processor multiplies matrices of bfloat16 by itself."""
    return bool(features() & {"avx512bf16", "amx-bf16"})


@cache
def features() -> set[str]:
    """What Numba compiles for, in LLVM's names; nothing if not for this processor."""
    settings: Any = config  # its attributes are made on import
    if settings.CPU_NAME is not None or settings.CPU_FEATURES is not None:
        return set()  # another processor than this one was asked for
    return {name for name, present in binding.get_host_cpu_features().items() if present}
