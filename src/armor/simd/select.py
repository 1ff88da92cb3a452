"""Picking the inputs that 2:4 positions name, for Numba kernels.

Positions name 16 of 32 neighbouring inputs, which AVX-512 picks with one instruction and any other
processor with shuffles and selects; plain loops would load each input alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from armor.simd.processor import has_avx2, has_avx512, has_neon
from armor.simd.vectors import FLOATS, LANES, address, intrinsic, load_vector, vector

_I32 = ir.IntType(32)
_INTS = ir.VectorType(_I32, LANES)
_BYTE = ir.Constant(_I32, 255)


def _constant(values: list[int]) -> ir.Constant:
    return ir.Constant(_INTS, values)


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
        return _select()(builder, *args)

    return vector(vector, vector, types.int32), codegen


def _select() -> Callable[..., Any]:
    if has_avx512():
        return _select_avx512
    return _select_avx2 if has_avx2() else _select_neon if has_neon() else _select_anywhere


def _select_avx512(builder: Any, low: Any, high: Any, positions: Any) -> Any:
    fields = builder.and_(_spread(builder, positions), _constant([3] * LANES))
    index = builder.or_(fields, _constant([lane // 2 * 4 for lane in range(LANES)]))
    permute = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(FLOATS, (FLOATS, _INTS, FLOATS)),
        "llvm.x86.avx512.vpermi2var.ps.512",
    )
    return builder.call(permute, (low, index, high))


def _select_avx2(builder: Any, low: Any, high: Any, positions: Any) -> Any:
    """One instruction picks four times out of each group of a pair; every second pick is used.

    Pairs are of groups that stand two apart, so that the picks come out in the order of the values.
    """
    eight, floats = ir.VectorType(_I32, 8), ir.VectorType(FLOATS.element, 8)
    permute = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(floats, (floats, eight)), "llvm.x86.avx.vpermilvar.ps.256"
    )
    fields = _spread(builder, positions)
    halves = []
    for half, inputs in enumerate((low, high)):
        lanes = ir.Constant(eight, list(range(8 * half, 8 * half + 8)))
        index = builder.shuffle_vector(fields, fields, lanes)
        even, odd = (
            builder.call(permute, (builder.shuffle_vector(inputs, inputs, pair), index))
            for pair in (
                ir.Constant(eight, [0, 1, 2, 3, 8, 9, 10, 11]),
                ir.Constant(eight, [4, 5, 6, 7, 12, 13, 14, 15]),
            )
        )
        merged = ir.Constant(eight, [0, 1, 10, 11, 4, 5, 14, 15])
        halves.append(builder.shuffle_vector(even, odd, merged))
    return builder.shuffle_vector(*halves, _constant(list(range(LANES))))


def _select_neon(builder: Any, low: Any, high: Any, positions: Any) -> Any:
    """The bytes of four inputs out of those of eight: one instruction, by a table of places."""
    eight, four = ir.VectorType(_I32, 8), ir.VectorType(FLOATS.element, 4)
    sixteen = ir.VectorType(ir.IntType(8), 16)
    look_up = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(sixteen, (sixteen,) * 3), "llvm.aarch64.neon.tbl2.v16i8"
    )
    parts = []
    for number, inputs in enumerate((low, low, high, high)):
        pair = [
            builder.bitcast(builder.shuffle_vector(inputs, inputs, _lanes(first, 4)), sixteen)
            for first in (8 * (number % 2), 8 * (number % 2) + 4)
        ]
        byte = builder.and_(builder.lshr(positions, ir.Constant(_I32, 8 * number)), _BYTE)
        place = builder.gep(_places(builder.module), [ir.Constant(_I32, 0), byte])
        found = builder.call(look_up, (*pair, load_vector(builder, place, ir.IntType(8), 16)))
        parts.append(builder.bitcast(found, four))
    halves = [builder.shuffle_vector(*parts[at : at + 2], _lanes(0, 8)) for at in (0, 2)]
    assert halves[0].type.count == eight.count
    return builder.shuffle_vector(*halves, _constant(list(range(LANES))))


def _lanes(first: int, count: int) -> ir.Constant:
    return ir.Constant(ir.VectorType(_I32, count), list(range(first, first + count)))


def _places(module: Any) -> Any:
    """Of each byte of four positions, where the bytes of its floats are among those of 8 inputs."""
    kind = ir.ArrayType(ir.ArrayType(ir.IntType(8), 16), 256)
    found = module.globals.get("armor_two_of_four_places")
    if found is None:
        rows = [
            bytearray(
                4 * ((byte >> 2 * value & 3) + 4 * (value // 2)) + part
                for value in range(4)
                for part in range(4)
            )
            for byte in range(256)
        ]
        found = ir.GlobalVariable(module, kind, "armor_two_of_four_places")
        found.global_constant, found.linkage = True, "internal"
        found.initializer = ir.Constant(kind, [ir.Constant(kind.element, row) for row in rows])
    return found


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
