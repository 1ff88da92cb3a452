"""Vectors of 16 floats for Numba kernels, as LLVM instructions.

`select16` is why this exists: 2:4 positions name 16 of 32 neighbouring inputs, which AVX-512 picks
with one instruction and any other processor with shuffles and selects; plain loops would load each
input alone. All other operations are portable LLVM.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import binding, ir
from numba import config, extending, types
from numba.core import cgutils
from numba.extending import models, register_model

intrinsic: Any = extending.intrinsic  # its annotations are those of what it decorates
LANES = 16
_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_F32 = ir.FloatType()
_FLOATS = ir.VectorType(_F32, LANES)
_INTS = ir.VectorType(_I32, LANES)


class _Vector(types.Type):
    """16 floats in registers; lives inside kernels only."""

    def __init__(self) -> None:
        super().__init__(name="armor_float32x16")


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _FLOATS)


vector = _Vector()


def has_avx512() -> bool:
    """Whether Numba compiles for a processor with AVX-512."""
    return "avx512f" in features()


def has_float16() -> bool:
    """Whether Numba compiles for a processor that converts float16."""
    return bool(features() & {"f16c", "neon", "fp-armv8"})


def has_amx() -> bool:
    """Whether BLAS has matrix instructions for bfloat16."""
    return "amx-bf16" in features()


@cache
def features() -> set[str]:
    """What Numba compiles for, in LLVM's names; nothing if not for this processor."""
    settings: Any = config  # its attributes are made on import
    if settings.CPU_NAME is not None or settings.CPU_FEATURES is not None:
        return set()  # another processor than this one was asked for
    return {name for name, present in binding.get_host_cpu_features().items() if present}


def _constant(values: list[int]) -> ir.Constant:
    return ir.Constant(_INTS, values)


def address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Pointer to element `index` (intp) of a contiguous array."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [index])


def load_vector(builder: Any, pointer: Any, item: ir.Type, count: int) -> Any:
    kind = item if count == 1 else ir.VectorType(item, count)
    loaded = builder.load(builder.bitcast(pointer, kind.as_pointer()))
    loaded.align = 1
    return loaded


def _to_float(builder: Any, pointer: Any, dtype: Any, count: int) -> Any:
    """`count` stored numbers as float32: float32, bfloat16 (as uint16) or float16 (as int16)."""

    def wide(item: ir.Type) -> ir.Type:
        return item if count == 1 else ir.VectorType(item, count)

    if dtype == types.float32:
        return load_vector(builder, pointer, _F32, count)
    if dtype == types.uint16:
        bits = builder.zext(load_vector(builder, pointer, _I16, count), wide(_I32))
        sixteen = ir.Constant(wide(_I32), 16 if count == 1 else [16] * count)
        return builder.bitcast(builder.shl(bits, sixteen), wide(_F32))
    half = builder.bitcast(load_vector(builder, pointer, _I16, count), wide(ir.HalfType()))
    return builder.fpext(half, wide(_F32))


@intrinsic
def zero16(typing: Any):  # type: ignore[no-untyped-def]
    """16 zeros."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(_FLOATS, [0.0] * LANES)

    return vector(), codegen


@intrinsic
def load16(typing: Any, array: Any, index: Any):  # type: ignore[no-untyped-def]
    """16 stored numbers from ``array[index]`` on (flat index of a contiguous array)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = address(context, builder, signature.args[0], args[0], args[1])
        return _to_float(builder, pointer, signature.args[0].dtype, LANES)

    return vector(array, types.intp), codegen


@intrinsic
def load1(typing: Any, array: Any, index: Any):  # type: ignore[no-untyped-def]
    """One stored number as float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = address(context, builder, signature.args[0], args[0], args[1])
        return _to_float(builder, pointer, signature.args[0].dtype, 1)

    return types.float32(array, types.intp), codegen


@intrinsic
def load_positions(typing: Any, array: Any, index: Any):  # type: ignore[no-untyped-def]
    """Sixteen 2-bit positions, low bits first: the 4 bytes from ``array[index]`` on, int32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = address(context, builder, signature.args[0], args[0], args[1])
        return load_vector(builder, pointer, _I32, 1)

    return types.int32(array, types.intp), codegen


def _spread(builder: Any, positions: Any) -> Any:
    """int32 with sixteen 2-bit fields -> 16 lanes whose low 2 bits are the fields."""
    undefined = ir.Constant(_INTS, ir.Undefined)
    first = builder.insert_element(undefined, positions, ir.Constant(_I32, 0))
    every = builder.shuffle_vector(first, undefined, _constant([0] * LANES))
    return builder.lshr(every, _constant([2 * lane for lane in range(LANES)]))


@intrinsic
def select16(typing: Any, low: Any, high: Any, positions: Any):  # type: ignore[no-untyped-def]
    """Of the 8 groups of 4 in (low, high) the 16 members at `positions`, two a group."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pick = _select_avx512 if has_avx512() else _select_anywhere
        return pick(builder, *args)

    return vector(vector, vector, types.int32), codegen


def _select_avx512(builder: Any, low: Any, high: Any, positions: Any) -> Any:
    fields = builder.and_(_spread(builder, positions), _constant([3] * LANES))
    index = builder.or_(fields, _constant([lane // 2 * 4 for lane in range(LANES)]))
    permute = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(_FLOATS, (_FLOATS, _INTS, _FLOATS)),
        "llvm.x86.avx512.vpermi2var.ps.512",
    )
    return builder.call(permute, (low, index, high))


def _select_anywhere(builder: Any, low: Any, high: Any, positions: Any) -> Any:
    fields = _spread(builder, positions)
    first, second, third, fourth = (
        builder.shuffle_vector(
            low, high, _constant([lane // 2 * 4 + member for lane in range(LANES)])
        )
        for member in range(4)
    )

    def bit(value: int) -> Any:
        masked = builder.and_(fields, _constant([value] * LANES))
        return builder.icmp_unsigned("!=", masked, _constant([0] * LANES))

    odd, upper = bit(1), bit(2)
    return builder.select(
        upper, builder.select(odd, fourth, third), builder.select(odd, second, first)
    )


@intrinsic
def multiply_add16(typing: Any, total: Any, left: Any, right: Any):  # type: ignore[no-untyped-def]
    """``total + left * right``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        product = builder.fmul(args[1], args[2], flags=("contract",))
        return builder.fadd(args[0], product, flags=("contract",))

    return vector(vector, vector, vector), codegen


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
