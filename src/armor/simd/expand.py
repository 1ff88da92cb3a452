"""Spreading kept values over the columns that a bit mask names, for Numba kernels.

A mask says which of 64 neighbouring columns are kept. AVX-512 moves the next values to 16 or 32 of
them with one instruction; any other processor loads each column's value alone, without a branch.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from armor.simd.processor import features, has_avx512
from armor.simd.vectors import FLOATS, LANES, address, intrinsic, load_vector, to_float, vector

_BIT, _I8, _I16, _I32, _I64 = (ir.IntType(width) for width in (1, 8, 16, 32, 64))
_COLUMNS = 64


@intrinsic
def load_word(typing: Any, array: Any, index: Any):  # type: ignore[no-untyped-def]
    """The 8 bytes from ``array[index]`` on, uint64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = address(context, builder, signature.args[0], args[0], args[1])
        return load_vector(builder, pointer, _I64, 1)

    return types.uint64(array, types.intp), codegen


@intrinsic
def look_up8(typing: Any, table: Any, word: Any, width: Any):  # type: ignore[no-untyped-def]
    """Eight entries of a table of 128 bytes as one uint64, the first in the low bits.

    Entry k is the one at the number of 7 bits from bit ``k * width`` of `word` (uint64) on.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = address(context, builder, signature.args[0], args[0], ir.Constant(_I64, 0))
        pick = _look_up_avx512 if "avx512vbmi" in features() else _look_up_anywhere
        return pick(builder, pointer, args[1], args[2])

    return types.uint64(table, types.uint64, types.uint64), codegen


def _look_up_avx512(builder: Any, pointer: Any, word: Any, width: Any) -> Any:
    lanes, bytes64 = ir.VectorType(_I64, 8), ir.VectorType(_I8, 64)

    def every(scalar: Any) -> Any:
        nothing = ir.Constant(lanes, ir.Undefined)
        first = builder.insert_element(nothing, scalar, ir.Constant(_I32, 0))
        return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_I32, 8), [0] * 8))

    shifts = builder.mul(every(width), ir.Constant(lanes, list(range(8))))
    fields = builder.bitcast(builder.lshr(every(word), shifts), bytes64)
    low = load_vector(builder, pointer, _I8, 64)
    high = load_vector(builder, builder.gep(pointer, [ir.Constant(_I64, 64)]), _I8, 64)
    permute = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(bytes64, (bytes64,) * 3),
        "llvm.x86.avx512.vpermi2var.qi.512",
    )
    found = builder.bitcast(builder.call(permute, (low, fields, high)), lanes)
    return builder.bitcast(builder.trunc(found, ir.VectorType(_I8, 8)), _I64)


def _look_up_anywhere(builder: Any, pointer: Any, word: Any, width: Any) -> Any:
    found = ir.Constant(_I64, 0)
    for number in range(8):
        field = builder.and_(word, ir.Constant(_I64, 127))
        entry = builder.zext(builder.load(builder.gep(pointer, [field])), _I64)
        found = builder.or_(found, builder.shl(entry, ir.Constant(_I64, 8 * number)))
        word = builder.lshr(word, width)
    return found


@intrinsic
def count_ones(typing: Any, mask: Any):  # type: ignore[no-untyped-def]
    """How many bits of an unsigned number are set, intp."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        count = builder.ctpop(args[0])
        return count if count.type == _I64 else builder.zext(count, _I64)

    return types.intp(mask), codegen


@intrinsic
def lowest_bit(typing: Any, mask: Any):  # type: ignore[no-untyped-def]
    """The number of the lowest bit that is set of a uint64 that is not 0, intp."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(_BIT, 1))

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
def unpack64(typing: Any, array: Any, index: Any, mask: Any, target: Any, place: Any):  # type: ignore[no-untyped-def]
    """``target[place .. place+63]`` = the next stored numbers where `mask` (uint64) says, else 0.

    Up to 64 numbers from ``array[index]`` on are read, however few are taken.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        dtype = signature.args[0].dtype
        source = address(context, builder, signature.args[0], args[0], args[1])
        there = address(context, builder, signature.args[3], args[3], args[4])
        count = LANES
        if dtype != types.float32 and _has_word_expand():
            count = 2 * LANES
        for start in range(0, _COLUMNS, count):
            part = builder.lshr(args[2], ir.Constant(_I64, start))
            part = builder.trunc(part, ir.IntType(count))
            found = _expanded(builder, source, dtype, part)
            stored = builder.store(found, builder.bitcast(there, found.type.as_pointer()))
            stored.align = 1
            there = builder.gep(there, [ir.Constant(_I64, count)])
            source = builder.gep(source, [builder.zext(builder.ctpop(part), _I64)])
        return context.get_dummy_value()

    return types.none(array, types.intp, types.uint64, target, types.intp), codegen


def _has_word_expand() -> bool:
    return {"avx512vbmi2", "avx512vl", "avx512bw"} <= features()


def _expanded(builder: Any, pointer: Any, dtype: Any, mask: Any) -> Any:
    """As many floats (or 16-bit numbers as integers) as `mask` has bits."""
    item = ir.FloatType() if dtype == types.float32 else _I16
    count = mask.type.width
    bits = builder.bitcast(mask, ir.VectorType(_BIT, count))
    if not has_avx512():
        return _expanded_anywhere(builder, pointer, item, mask, bits)
    loaded = _fenced(builder, load_vector(builder, pointer, item, count))
    if item != _I16:
        return _instruction(builder, "v16f32", loaded, bits)
    if _has_word_expand():
        return _instruction(builder, f"v{count}i16", loaded, bits)
    words = ir.VectorType(_I32, LANES)
    wide = builder.bitcast(builder.zext(loaded, words), FLOATS)
    moved = builder.bitcast(_instruction(builder, "v16f32", wide, bits), words)
    return builder.trunc(moved, loaded.type)


def _fenced(builder: Any, loaded: Any) -> Any:
    """Keeps LLVM from expanding right from memory: on AMD that takes twice as long or more."""
    kind = loaded.type
    floats = kind.count if kind.element == ir.FloatType() else kind.count // 2
    same = ir.VectorType(ir.FloatType(), floats)
    fence = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(same, (same,)), f"llvm.arithmetic.fence.v{floats}f32"
    )
    return builder.bitcast(builder.call(fence, (builder.bitcast(loaded, same),)), kind)


def _instruction(builder: Any, suffix: str, loaded: Any, bits: Any) -> Any:
    expand = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(loaded.type, (loaded.type, loaded.type, bits.type)),
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
