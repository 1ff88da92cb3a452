"""Arrays at an address, and counters that several threads share, for Numba kernels."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from armor.simd.vectors import intrinsic

_I64 = ir.IntType(64)


@intrinsic
def pointer(typing: Any, place: Any, dtype: Any):  # type: ignore[no-untyped-def]
    """The address `place` (intp) as what ``numba.carray`` takes; `dtype` as in ``np.float32``."""
    kind = types.CPointer(dtype.instance_type)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(kind))

    return kind(types.intp, dtype), codegen


@intrinsic
def take_ticket(typing: Any, place: Any):  # type: ignore[no-untyped-def]
    """Adds 1 to the int64 at address `place`; what it was before. No two threads get the same."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        counter = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.atomic_rmw("add", counter, ir.Constant(_I64, 1), "seq_cst")

    return types.intp(types.intp), codegen


@intrinsic
def read_counter(typing: Any, place: Any):  # type: ignore[no-untyped-def]
    """The int64 at address `place`; what its writer wrote before is there, too."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        counter = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.load_atomic(counter, "acquire", 8)

    return types.intp(types.intp), codegen
