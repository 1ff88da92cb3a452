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


def has_avx2() -> bool:
    """Whether Numba compiles for a processor with AVX2 and FMA."""
    return {"avx2", "fma"} <= features()


def has_neon() -> bool:
    """Whether Numba compiles for a 64-bit ARM processor."""
    return bool(features() & {"neon", "fp-armv8"})


def instruction_set() -> str:
    """What the kernels are made of, in one word or two."""
    if has_avx512():
        return "AVX-512 with bfloat16" if "avx512bf16" in features() else "AVX-512"
    return "AVX2" if has_avx2() else "NEON" if has_neon() else "plain"


@cache
def features() -> set[str]:
    """What Numba compiles for, in LLVM's names.

    NUMBA_CPU_NAME and NUMBA_CPU_FEATURES name another processor than this one, or less of it than
    there is; then only what NUMBA_CPU_FEATURES lists as present (``+avx2,+fma``) is relied on.
    """
    settings: Any = config  # its attributes are made on import
    if settings.CPU_NAME is not None or settings.CPU_FEATURES is not None:
        listed = (settings.CPU_FEATURES or "").split(",")
        return {name[1:] for name in listed if name.startswith("+")}
    return {name for name, present in binding.get_host_cpu_features().items() if present}
