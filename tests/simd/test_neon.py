"""The instructions for 64-bit ARM: compiled to assembly; no such machine is needed."""

from __future__ import annotations

import pytest
from llvmlite import binding, ir

from armor.simd import select
from armor.simd.vectors import FLOATS


def assembly(pick) -> str:
    """A function that picks 16 of 32 floats, as assembly for a plain 64-bit ARM processor."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    try:
        target = binding.Target.from_triple("aarch64-unknown-linux-gnu")
    except RuntimeError:
        pytest.skip("this LLVM has no ARM")
    machine = target.create_target_machine(opt=3, features="+neon")
    module = ir.Module("picks")
    module.triple = "aarch64-unknown-linux-gnu"
    places = FLOATS.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), (places, places, ir.IntType(32), places))
    function = ir.Function(module, kind, "pick")
    builder = ir.IRBuilder(function.append_basic_block())
    low, high, positions, values = function.args
    found = pick(builder, builder.load(low), builder.load(high), positions)
    total = builder.load(values)
    product = builder.fmul(found, total, flags=("contract",))
    builder.store(builder.fadd(product, total, flags=("contract",)), values)
    builder.ret_void()
    return machine.emit_assembly(binding.parse_assembly(str(module)))


def test_four_values_are_picked_by_one_look_up() -> None:
    text = assembly(select._select_neon)
    assert text.count("tbl\t") == 4
    assert text.count("fmla\t") == 4
    assert "armor_two_of_four_places" in text


def test_the_table_says_where_the_bytes_of_the_kept_floats_are() -> None:
    module = ir.Module("table")
    rows = select._places(module).initializer.constant
    for byte in (0x44, 0x94, 0xE9):
        floats = [byte >> 2 * value & 3 for value in range(4)]
        places = [4 * (at + 4 * (value // 2)) for value, at in enumerate(floats)]
        expected = [place + part for place in places for part in range(4)]
        assert list(rows[byte].constant) == expected
