"""Picking the inputs that 2:4 positions name, for Numba kernels.

Positions name 16 of 32 neighbouring inputs, which AVX-512 picks with one instruction and any other
processor with shuffles and selects; plain loops would load each input alone.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from armor.simd.processor import has_avx512
from armor.simd.vectors import FLOATS, LANES, address, intrinsic, load_vector, vector

_I32 = ir.IntType(32)
_INTS = ir.VectorType(_I32, LANES)


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
        pick = _select_avx512 if has_avx512() else _select_anywhere
        return pick(builder, *args)

    return vector(vector, vector, types.int32), codegen


def _select_avx512(builder: Any, low: Any, high: Any, positions: Any) -> Any:
    fields = builder.and_(_spread(builder, positions), _constant([3] * LANES))
    index = builder.or_(fields, _constant([lane // 2 * 4 for lane in range(LANES)]))
    permute = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(FLOATS, (FLOATS, _INTS, FLOATS)),
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
