"""Spreading kept values over the columns that a bit mask names, for Numba kernels.

A mask says which of 16 neighbouring columns are kept. AVX-512 moves the next values there with one
instruction; any other processor loads each column's value alone, without a branch.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from armor.runtime.simd import features, has_avx512
from armor.vectors import FLOATS, LANES, address, intrinsic, load_vector, to_float, vector

_BIT, _I16, _I32, _I64 = ir.IntType(1), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_BITS = ir.VectorType(_BIT, LANES)
_HALVES = ir.VectorType(_I16, LANES)
_WORDS = ir.VectorType(_I32, LANES)


@intrinsic
def load_bits(typing: Any, array: Any, index: Any):  # type: ignore[no-untyped-def]
    """The 2 bytes from ``array[index]`` on, uint16."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = address(context, builder, signature.args[0], args[0], args[1])
        return load_vector(builder, pointer, _I16, 1)

    return types.uint16(array, types.intp), codegen


@intrinsic
def load_more_bits(typing: Any, array: Any, index: Any):  # type: ignore[no-untyped-def]
    """The 4 bytes from ``array[index]`` on, uint32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = address(context, builder, signature.args[0], args[0], args[1])
        return load_vector(builder, pointer, _I32, 1)

    return types.uint32(array, types.intp), codegen


@intrinsic
def ones(typing: Any, mask: Any):  # type: ignore[no-untyped-def]
    """How many bits of an unsigned number are set, intp."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        count = builder.ctpop(args[0])
        return count if count.type == _I64 else builder.zext(count, _I64)

    return types.intp(mask), codegen


@intrinsic
def expand16(typing: Any, array: Any, index: Any, mask: Any):  # type: ignore[no-untyped-def]
    """In the lanes that `mask` (uint16) names the stored numbers from ``array[index]`` on, else 0.

    As float32. 16 numbers are read, however few are taken.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        dtype = signature.args[0].dtype
        pointer = address(context, builder, signature.args[0], args[0], args[1])
        return to_float(builder, _expanded(builder, pointer, dtype, args[2]), dtype)

    return vector(array, types.intp, types.uint16), codegen


@intrinsic
def unpack16(typing: Any, array: Any, index: Any, mask: Any, target: Any, place: Any):  # type: ignore[no-untyped-def]
    """``target[place .. place+15]`` = those of `expand16`, in the dtype of both arrays."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = address(context, builder, signature.args[0], args[0], args[1])
        found = _expanded(builder, pointer, signature.args[0].dtype, args[2])
        there = address(context, builder, signature.args[3], args[3], args[4])
        stored = builder.store(found, builder.bitcast(there, found.type.as_pointer()))
        stored.align = 1
        return context.get_dummy_value()

    return types.none(array, types.intp, types.uint16, target, types.intp), codegen


def _expanded(builder: Any, pointer: Any, dtype: Any, mask: Any) -> Any:
    """16 floats, or 16-bit numbers as integers."""
    item = ir.FloatType() if dtype == types.float32 else _I16
    bits = builder.bitcast(mask, _BITS)
    if not has_avx512():
        return _expanded_anywhere(builder, pointer, item, mask, bits)
    loaded = load_vector(builder, pointer, item, LANES)
    if item == _I16 and {"avx512vbmi2", "avx512vl"} <= features():
        return _instruction(builder, "v16i16", loaded, bits)
    if item == _I16:
        wide = builder.bitcast(builder.zext(loaded, _WORDS), FLOATS)
        moved = builder.bitcast(_instruction(builder, "v16f32", wide, bits), _WORDS)
        return builder.trunc(moved, _HALVES)
    # Without this fence LLVM makes load and expansion one instruction, on AMD at half the speed.
    fence = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(FLOATS, (FLOATS,)), "llvm.arithmetic.fence.v16f32"
    )
    return _instruction(builder, "v16f32", builder.call(fence, (loaded,)), bits)


def _instruction(builder: Any, suffix: str, loaded: Any, bits: Any) -> Any:
    expand = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(loaded.type, (loaded.type, loaded.type, _BITS)),
        f"llvm.x86.avx512.mask.expand.{suffix}",
    )
    return builder.call(expand, (loaded, ir.Constant(loaded.type, None), bits))


def _expanded_anywhere(builder: Any, pointer: Any, item: ir.Type, mask: Any, bits: Any) -> Any:
    kind = ir.VectorType(item, LANES)
    found = ir.Constant(kind, ir.Undefined)
    wide = builder.zext(mask, _I64)
    for lane in range(LANES):
        value = load_vector(builder, pointer, item, 1)
        found = builder.insert_element(found, value, ir.Constant(_I32, lane))
        bit = builder.and_(builder.lshr(wide, ir.Constant(_I64, lane)), ir.Constant(_I64, 1))
        pointer = builder.gep(pointer, [bit])
    return builder.select(bits, found, ir.Constant(kind, None))
