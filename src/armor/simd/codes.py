"""Loading codes of few bits as floats, for Numba kernels: int8, two of int4 in a uint8, and 8-bit
floats (E4M3), which Numba has no type for: an array of bool stands for them.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from armor.simd.processor import has_avx512, has_float16
from armor.simd.vectors import FLOATS, LANES, address, intrinsic, load_vector, to_float, vector

_I8, _I16, _I32, _F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()
_INTS = ir.VectorType(_I32, LANES)
_BITS = 4  # of an int4
_MANTISSA, _BIAS = 3, 7  # bits of an 8-bit float, and what its exponent is stored with
#: What an int4 stands for, by how it is stored: as many levels above 0 as below.
LEVELS = [place - 7.5 for place in range(1 << _BITS)]


@intrinsic
def load_codes16(typing: Any, array: Any, index: Any):  # type: ignore[no-untyped-def]
    """What the 16 codes from number `index` (a multiple of 2) on stand for, in units of a scale.

    Of an array of int8, of uint8 two a byte, of bool 8-bit floats; of wider floats (`load16`) the
    numbers themselves.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        dtype, place = signature.args[0].dtype, args[1]
        if dtype == types.uint8:
            place = builder.lshr(place, ir.Constant(place.type, 1))
        pointer = address(context, builder, signature.args[0], args[0], place)
        if dtype == types.uint8:
            return _nibbles(builder, load_vector(builder, pointer, _I8, LANES // 2))
        if dtype == types.int8:
            codes = load_vector(builder, pointer, _I8, LANES)
            return builder.sitofp(builder.sext(codes, _INTS), FLOATS)
        if dtype == types.boolean:
            return _from_float8(builder, load_vector(builder, pointer, _I8, LANES))
        item = _F32 if dtype == types.float32 else ir.IntType(16)
        return to_float(builder, load_vector(builder, pointer, item, LANES), dtype)

    return vector(array, types.intp), codegen


def _nibbles(builder: Any, stored: Any) -> Any:
    """8 bytes -> the levels of their 16 nibbles, low bits first."""
    twice = ir.Constant(_INTS, [lane // 2 for lane in range(LANES)])
    each = builder.shuffle_vector(stored, ir.Constant(stored.type, ir.Undefined), twice)
    shifts = ir.Constant(_INTS, [_BITS * (lane % 2) for lane in range(LANES)])
    places = builder.lshr(builder.zext(each, _INTS), shifts)
    if has_avx512():  # a table; of a place only the low 4 bits count
        permute = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(FLOATS, (FLOATS, _INTS)),
            "llvm.x86.avx512.permvar.sf.512",
        )
        return builder.call(permute, (ir.Constant(FLOATS, LEVELS), places))
    places = builder.and_(places, ir.Constant(_INTS, [(1 << _BITS) - 1] * LANES))
    return builder.fadd(builder.sitofp(places, FLOATS), ir.Constant(FLOATS, [LEVELS[0]] * LANES))


def _from_float8(builder: Any, stored: Any) -> Any:
    """8-bit floats as float32: as the upper bits of a wider float, which is too small by a power of
    two; denormal ones, too.
    """

    def alike(item: ir.Type) -> ir.Type:
        kind = stored.type
        return ir.VectorType(item, kind.count) if isinstance(kind, ir.VectorType) else item

    def every(item: ir.Type, value: float) -> ir.Constant:
        kind = alike(item)
        return ir.Constant(kind, [value] * kind.count if kind != item else value)

    # The sign is extended over the bits that the exponent gets; of these it stays in the first.
    item, mantissa, bias = (_I16, 10, 15) if has_float16() else (_I32, 23, 127)
    own, width = mantissa - _MANTISSA, item.width
    bits = builder.shl(builder.sext(stored, alike(item)), every(item, own))
    clear = sum(1 << bit for bit in range(own + 7, width - 1))
    bits = builder.and_(bits, every(item, (1 << width) - 1 - clear))
    if item == _I16:
        wide = builder.fpext(builder.bitcast(bits, alike(ir.HalfType())), alike(_F32))
    else:
        wide = builder.bitcast(bits, alike(_F32))
    return builder.fmul(wide, every(_F32, 2.0 ** (bias - _BIAS)))


@intrinsic
def load_code1(typing: Any, array: Any, index: Any):  # type: ignore[no-untyped-def]
    """`load_codes16` of one code, any `index`: float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        dtype, place = signature.args[0].dtype, args[1]
        one = ir.Constant(place.type, 1)
        if dtype == types.uint8:
            place = builder.lshr(place, one)
        pointer = address(context, builder, signature.args[0], args[0], place)
        if dtype == types.boolean:
            return _from_float8(builder, load_vector(builder, pointer, _I8, 1))
        if dtype not in (types.uint8, types.int8):
            item = _F32 if dtype == types.float32 else ir.IntType(16)
            return to_float(builder, load_vector(builder, pointer, item, 1), dtype)
        code = load_vector(builder, pointer, _I8, 1)
        if dtype == types.int8:
            return builder.sitofp(code, _F32)
        odd = builder.trunc(builder.and_(args[1], one), _I8)
        shifted = builder.lshr(code, builder.mul(odd, ir.Constant(_I8, _BITS)))
        level = builder.and_(shifted, ir.Constant(_I8, (1 << _BITS) - 1))
        return builder.fadd(builder.uitofp(level, _F32), ir.Constant(_F32, LEVELS[0]))

    return types.float32(array, types.intp), codegen
