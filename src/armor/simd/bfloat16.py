"""Vectors of 32 bfloat16 for Numba kernels, on processors with AVX-512's instructions for them."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import models, register_model

from armor.simd.processor import features
from armor.simd.vectors import address, intrinsic, load_vector, vector

LANES = 32
_I16, _I32, _F32 = ir.IntType(16), ir.IntType(32), ir.FloatType()
_WORDS = ir.VectorType(_I16, LANES)
_PAIRS = ir.VectorType(_I32, LANES // 2)
_SUMS = ir.VectorType(_F32, LANES // 2)


class _Vector(types.Type):
    """The bits of 32 bfloat16, or 32 places, in a register; lives inside kernels only."""

    def __init__(self) -> None:
        super().__init__(name="armor_uint16x32")


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _WORDS)


words = _Vector()


def has_dot() -> bool:
    """Whether the processor has these instructions, and BLAS nothing faster (AMX)."""
    return {"avx512bf16", "avx512bw"} <= features() and "amx-bf16" not in features()


def _constant(values: list[int]) -> ir.Constant:
    return ir.Constant(_WORDS, values)


@intrinsic
def load32(typing: Any, array: Any, index: Any):  # type: ignore[no-untyped-def]
    """32 numbers of 16 bits from ``array[index]`` on (flat index of a contiguous array)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = address(context, builder, signature.args[0], args[0], args[1])
        return load_vector(builder, pointer, _I16, LANES)

    return words(array, types.intp), codegen


@intrinsic
def store32(typing: Any, array: Any, index: Any, value: Any):  # type: ignore[no-untyped-def]
    """``array[index .. index+31] = value``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = address(context, builder, signature.args[0], args[0], args[1])
        stored = builder.store(args[2], builder.bitcast(pointer, _WORDS.as_pointer()))
        stored.align = 1
        return context.get_dummy_value()

    return types.none(array, types.intp, words), codegen


@intrinsic
def load_places(typing: Any, array: Any, index: Any):  # type: ignore[no-untyped-def]
    """Where among 64 inputs the 32 kept ones are: from the 8 bytes at ``array[index]``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = address(context, builder, signature.args[0], args[0], args[1])
        four = load_vector(builder, pointer, _I16, 4)
        spread = ir.Constant(ir.VectorType(_I32, LANES), [lane // 8 for lane in range(LANES)])
        fields = builder.shuffle_vector(four, ir.Constant(four.type, ir.Undefined), spread)
        fields = builder.lshr(fields, _constant([2 * (lane % 8) for lane in range(LANES)]))
        fields = builder.and_(fields, _constant([3] * LANES))
        return builder.or_(fields, _constant([lane // 2 * 4 for lane in range(LANES)]))

    return words(array, types.intp), codegen


@intrinsic
def pick32(typing: Any, low: Any, high: Any, places: Any):  # type: ignore[no-untyped-def]
    """Of the 64 in (low, high) the 32 at `places`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        permute = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(_WORDS, (_WORDS, _WORDS, _WORDS)),
            "llvm.x86.avx512.vpermi2var.hi.512",
        )
        return builder.call(permute, (args[0], args[2], args[1]))

    return words(words, words, words), codegen


@intrinsic
def dot32(typing: Any, total: Any, left: Any, right: Any):  # type: ignore[no-untyped-def]
    """total[i] + left[2i] * right[2i] + left[2i+1] * right[2i+1], 16 sums in float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        dot = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(_SUMS, (_SUMS, _PAIRS, _PAIRS)),
            "llvm.x86.avx512bf16.dpbf16ps.512",
        )
        left, right = (builder.bitcast(arg, _PAIRS) for arg in args[1:])
        return builder.call(dot, (args[0], left, right))

    return vector(vector, words, words), codegen
