"""Vectors of 16 floats for Numba kernels, as portable LLVM instructions.

Numba turns plain loops into vector instructions where it sees how; these leave nothing to chance.
Arithmetic is written with the usual operators; products that are added to may be fused with the sum
(an FMA instruction), nothing else is reordered.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils
from numba.extending import models, register_model

intrinsic: Any = extending.intrinsic  # its annotations are those of what it decorates
LANES = 16
_I16, _I32 = ir.IntType(16), ir.IntType(32)
_F32 = ir.FloatType()
FLOATS = ir.VectorType(_F32, LANES)
FUSED = ("contract",)


class _Vector(types.Type):
    """16 floats in registers; lives inside kernels only."""

    def __init__(self) -> None:
        super().__init__(name="armor_float32x16")


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, FLOATS)


vector = _Vector()


def address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Pointer to element `index` (intp) of a contiguous array."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [index])


def load_vector(builder: Any, pointer: Any, item: ir.Type, count: int) -> Any:
    """`count` items from any address."""
    kind = item if count == 1 else ir.VectorType(item, count)
    loaded = builder.load(builder.bitcast(pointer, kind.as_pointer()))
    loaded.align = 1
    return loaded


def to_float(builder: Any, stored: Any, dtype: Any) -> Any:
    """Numbers as float32: stored in float32, bfloat16 (as uint16) or float16 (as int16)."""

    def alike(item: ir.Type) -> ir.Type:
        kind = stored.type
        return ir.VectorType(item, kind.count) if isinstance(kind, ir.VectorType) else item

    if dtype == types.float32:
        return stored
    if dtype == types.uint16:
        bits = builder.zext(stored, alike(_I32))
        sixteen = 16 if bits.type == _I32 else [16] * bits.type.count
        return builder.bitcast(builder.shl(bits, ir.Constant(bits.type, sixteen)), alike(_F32))
    return builder.fpext(builder.bitcast(stored, alike(ir.HalfType())), alike(_F32))


def from_float(builder: Any, number: Any, dtype: Any) -> Any:
    """The inverse of `to_float`, to the nearest (of two the even one); NaN stays NaN."""

    def every(value: int) -> ir.Constant:
        kind = bits.type
        many = isinstance(kind, ir.VectorType)
        return ir.Constant(kind, [value] * kind.count if many else value)

    def alike(item: ir.Type) -> ir.Type:
        kind = number.type
        return ir.VectorType(item, kind.count) if isinstance(kind, ir.VectorType) else item

    if dtype == types.float32:
        return number
    if dtype == types.int16:
        return builder.bitcast(builder.fptrunc(number, alike(ir.HalfType())), alike(_I16))
    bits = builder.bitcast(number, alike(_I32))
    odd = builder.and_(builder.lshr(bits, every(16)), every(1))
    rounded = builder.add(bits, builder.add(odd, every(0x7FFF)))
    is_nan = builder.fcmp_unordered("uno", number, number)
    kept = builder.select(is_nan, builder.or_(bits, every(0x400000)), rounded)
    return builder.trunc(builder.lshr(kept, every(16)), alike(_I16))


def load_float(builder: Any, pointer: Any, dtype: Any, count: int) -> Any:
    item = _F32 if dtype == types.float32 else _I16
    return to_float(builder, load_vector(builder, pointer, item, count), dtype)


@intrinsic
def zero16(typing: Any):  # type: ignore[no-untyped-def]
    """16 zeros."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(FLOATS, [0.0] * LANES)

    return vector(), codegen


@intrinsic
def load16(typing: Any, array: Any, index: Any):  # type: ignore[no-untyped-def]
    """16 stored numbers from ``array[index]`` on (flat index of a contiguous array)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = address(context, builder, signature.args[0], args[0], args[1])
        return load_float(builder, pointer, signature.args[0].dtype, LANES)

    return vector(array, types.intp), codegen


@intrinsic
def prefetch(typing: Any, array: Any, index: Any):  # type: ignore[no-untyped-def]
    """Starts loading ``array[index]`` (a place that need not exist) and its neighbours."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        place = address(context, builder, signature.args[0], args[0], args[1])
        kind = ir.FunctionType(ir.VoidType(), (byte, _I32, _I32, _I32))
        start = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        numbers = (ir.Constant(_I32, number) for number in (0, 3, 1))  # to read, often, data
        builder.call(start, (builder.bitcast(place, byte), *numbers))
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@intrinsic
def load1(typing: Any, array: Any, index: Any):  # type: ignore[no-untyped-def]
    """One stored number as float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = address(context, builder, signature.args[0], args[0], args[1])
        return load_float(builder, pointer, signature.args[0].dtype, 1)

    return types.float32(array, types.intp), codegen


@intrinsic
def store16(typing: Any, array: Any, index: Any, value: Any):  # type: ignore[no-untyped-def]
    """``array[index .. index+15] = value`` (float32)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = address(context, builder, signature.args[0], args[0], args[1])
        builder.store(args[2], builder.bitcast(pointer, FLOATS.as_pointer())).align = 4
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), codegen


@intrinsic
def every16(typing: Any, value: Any):  # type: ignore[no-untyped-def]
    """One float32 in all 16 lanes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        undefined = ir.Constant(FLOATS, ir.Undefined)
        first = builder.insert_element(undefined, args[0], ir.Constant(_I32, 0))
        zeros = ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
        return builder.shuffle_vector(first, undefined, zeros)

    return vector(types.float32), codegen


@intrinsic
def multiply_add16(typing: Any, total: Any, left: Any, right: Any):  # type: ignore[no-untyped-def]
    """``total + left * right``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fadd(args[0], builder.fmul(args[1], args[2], flags=FUSED), flags=FUSED)

    return vector(vector, vector, vector), codegen


@intrinsic
def choose16(typing: Any, one: Any, two: Any, above: Any, otherwise: Any):  # type: ignore[no-untyped-def]
    """In each lane `above` where ``one > two``, else `otherwise`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", args[0], args[1]), args[2], args[3])

    return vector(vector, vector, vector, vector), codegen


@intrinsic
def sum16(typing: Any, vec: Any):  # type: ignore[no-untyped-def]
    """The sum of the 16, in a fixed order (halves first)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        parts, width = args[0], LANES
        while width > 1:
            width //= 2
            lower = ir.Constant(ir.VectorType(_I32, width), list(range(width)))
            upper = ir.Constant(ir.VectorType(_I32, width), list(range(width, 2 * width)))
            undefined = ir.Constant(parts.type, ir.Undefined)
            parts = builder.fadd(
                builder.shuffle_vector(parts, undefined, lower),
                builder.shuffle_vector(parts, undefined, upper),
            )
        return builder.extract_element(parts, ir.Constant(_I32, 0))

    return types.float32(vector), codegen


def _shuffled(builder: Any, left: Any, right: Any, lanes: list[int]) -> Any:
    chosen = ir.Constant(ir.VectorType(_I32, len(lanes)), lanes)
    return builder.shuffle_vector(left, right, chosen)


def _folded(builder: Any, left: Any, right: Any | None, width: int) -> Any:
    """Rows of `width` in one or two vectors, each added up to rows of half that width."""
    count = left.type.count * (1 if right is None else 2)
    other = ir.Constant(left.type, ir.Undefined) if right is None else right
    lower = [start + lane for start in range(0, count, width) for lane in range(width // 2)]
    upper = [lane + width // 2 for lane in lower]
    return builder.fadd(
        _shuffled(builder, left, other, lower), _shuffled(builder, left, other, upper)
    )


def _store_folded(width: int) -> Any:
    def typed(typing: Any, array: Any, index: Any, a: Any, b: Any, c: Any, d: Any):  # type: ignore[no-untyped-def]
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            one = _folded(builder, args[2], args[3], width)
            two = _folded(builder, args[4], args[5], width)
            sums, left = _folded(builder, one, two, width // 2), width // 4
            while left > 1:
                sums, left = _folded(builder, sums, None, left), left // 2
            pointer = address(context, builder, signature.args[0], args[0], args[1])
            stored = builder.store(sums, builder.bitcast(pointer, sums.type.as_pointer()))
            stored.align = 1
            return context.get_dummy_value()

        return types.none(array, types.intp, vector, vector, vector, vector), codegen

    return typed


@intrinsic
def store_sums(typing: Any, array: Any, index: Any, a: Any, b: Any, c: Any, d: Any):  # type: ignore[no-untyped-def]
    """``array[index .. index+3]`` = the sums of the 16 of each vector, in a fixed order."""
    return _store_folded(LANES)(typing, array, index, a, b, c, d)


@intrinsic
def store_half_sums(typing: Any, array: Any, index: Any, a: Any, b: Any, c: Any, d: Any):  # type: ignore[no-untyped-def]
    """``array[index .. index+7]`` = the sums of both halves of each vector, in a fixed order."""
    return _store_folded(LANES // 2)(typing, array, index, a, b, c, d)


@intrinsic
def store1(typing: Any, array: Any, index: Any, value: Any):  # type: ignore[no-untyped-def]
    """``array[index] = value`` (float32), rounded to the nearest number of its dtype."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = address(context, builder, signature.args[0], args[0], args[1])
        stored = from_float(builder, args[2], signature.args[0].dtype)
        builder.store(stored, builder.bitcast(pointer, stored.type.as_pointer()))
        return context.get_dummy_value()

    return types.void(array, types.intp, types.float32), codegen


def _operator(symbol: Any, instruction: str) -> None:
    """Let kernels write `symbol` between two vectors."""

    @extending.type_callable(symbol)
    def chosen(context: Any) -> Any:
        return lambda left, right: vector if left == vector == right else None

    @extending.lower_builtin(symbol, _Vector, _Vector)
    def lowered(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return getattr(builder, instruction)(*args, flags=FUSED)


_operator(operator.add, "fadd")
_operator(operator.sub, "fsub")
_operator(operator.mul, "fmul")
_operator(operator.truediv, "fdiv")
