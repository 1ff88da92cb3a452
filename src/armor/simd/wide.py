"""Vectors of as many floats as a kernel asks for, one lane an item of a batch, for Numba kernels.

LLVM splits them into the registers that there are. The number of lanes is part of a kernel's types:
a tuple of as many zeros as its power of two (`lanes_tag`), since Numba compiles a kernel anew for
each length of a tuple.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import models, register_model

from armor.simd.vectors import FUSED, address, intrinsic, load_vector

_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_F32 = ir.FloatType()


class _Wide(types.Type):
    """Some floats in registers; lives inside kernels only."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        super().__init__(name=f"armor_float32_wide{lanes}")


@register_model(_Wide)
class _WideModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(_F32, fe_type.lanes))


@cache
def _wide(lanes: int) -> _Wide:
    return _Wide(lanes)


def lanes_tag(lanes: int) -> tuple[int, ...]:
    """What tells a kernel that its vectors have `lanes` (a power of two, at least 4) lanes."""
    return (0,) * (lanes.bit_length() - 1)


def _of_tag(tag: Any) -> _Wide:
    return _wide(2 ** len(tag))


def _every(builder: Any, scalar: Any, lanes: int) -> Any:
    nothing = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    first = builder.insert_element(nothing, scalar, ir.Constant(_I32, 0))
    zeros = ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes)
    return builder.shuffle_vector(first, nothing, zeros)


@intrinsic
def zeros(typing: Any, tag: Any):  # type: ignore[no-untyped-def]
    """Zeros in all lanes."""
    kind = _of_tag(tag)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(ir.VectorType(_F32, kind.lanes), [0.0] * kind.lanes)

    return kind(tag), codegen


@intrinsic
def load_lanes(typing: Any, tag: Any, array: Any, index: Any):  # type: ignore[no-untyped-def]
    """float32 from ``array[index]`` on (flat index of a contiguous array)."""
    kind = _of_tag(tag)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = address(context, builder, signature.args[1], args[1], args[2])
        return load_vector(builder, pointer, _F32, kind.lanes)

    return kind(tag, array, types.intp), codegen


@intrinsic
def store_lanes(typing: Any, array: Any, index: Any, value: Any):  # type: ignore[no-untyped-def]
    """Into a float32 array from ``array[index]`` on."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = address(context, builder, signature.args[0], args[0], args[1])
        builder.store(args[2], builder.bitcast(pointer, args[2].type.as_pointer())).align = 4
        return context.get_dummy_value()

    return types.void(array, types.intp, value), codegen


@intrinsic
def add_product(typing: Any, total: Any, factor: Any, array: Any, index: Any):  # type: ignore[no-untyped-def]
    """``total + factor * array[index ..]``: a float32 times as many stored ones as total has."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes = signature.args[0].lanes
        pointer = address(context, builder, signature.args[2], args[2], args[3])
        there = load_vector(builder, pointer, _F32, lanes)
        product = builder.fmul(_every(builder, args[1], lanes), there, flags=FUSED)
        return builder.fadd(args[0], product, flags=FUSED)

    return total(total, types.float32, array, types.intp), codegen


@intrinsic
def add(typing: Any, one: Any, two: Any):  # type: ignore[no-untyped-def]
    """``one + two``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fadd(*args)

    return one(one, two), codegen
