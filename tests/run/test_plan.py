"""The plan: block sizes by budget, what stays dense and why."""

import pytest

from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.run.plan import choose_block, make_plan, overhead, packed_size
from armor.sparse.pattern import Pattern

SHAPES = {"layers.0.q": (64, 64), "layers.0.up": (172, 64), "layers.1.q": (64, 64)}


@pytest.mark.parametrize(
    ("shape", "block"),
    [
        ((4096, 4096), 128),  # 6.25 %
        ((1024, 4096), 64),  # 128 would be 15.6 %
        ((14336, 4096), 128),
        ((128, 896), 8),  # 16 would be 14.3 %
        ((352, 128), 8),  # 32 divides but costs a third
    ],
)
def test_the_largest_block_within_the_budget(shape: tuple[int, int], block: int) -> None:
    assert choose_block(shape, 0.10)[0] == block
    assert all(size % block == 0 for size in shape)


def test_over_the_budget_takes_the_smallest_and_says_so() -> None:
    block, note = choose_block((64, 64), 0.10)
    assert block == 8
    assert "25.0%" in note


def test_undividable_dims_get_a_partial_block_and_a_note() -> None:
    block, note = choose_block((172, 4096), 0.10)
    assert block == 16  # 32 would be 19 %, half of its last block unused
    assert "partial" in note


def test_overhead_counts_partial_blocks_whole() -> None:
    assert overhead((172, 64), 16) == (11 + 4) * 256 / (172 * 64)


def test_a_layer_that_would_not_shrink_stays_dense() -> None:
    plan = make_plan({"k": (64, 64), "big": (640, 640)}, PruneConfig(block_size=32))
    assert [item.dense for item in plan] == [True, False]
    assert "1.56x dense" in plan[0].note


@pytest.mark.parametrize(("percent", "dense"), [(6, True), (7, False)])
def test_without_wrappers_a_layer_may_not_shrink_either(percent: int, dense: bool) -> None:
    """The bitmap alone takes a sixteenth of 16-bit weights."""
    config = PruneConfig(
        method="wanda", overrides={"q": {"pattern": f"{percent}%"}, "up": {"pattern": "50%"}}
    )
    plan, _ = make_plan({"q": (640, 640), "up": (640, 640)}, config)
    assert (plan.dense, plan.note) == (dense, "6% would be 1.00x dense" if dense else "")


def test_globs() -> None:
    plans = make_plan(SHAPES, PruneConfig(include=("layers.0.*",), exclude=("*.up",), block_size=8))
    assert [plan.name for plan in plans if not plan.dense] == ["layers.0.q"]
    with pytest.raises(ArmorError, match="matches no linear"):
        make_plan(SHAPES, PruneConfig(include=("nothing",)))
    with pytest.raises(ArmorError, match="nothing to prune"):
        make_plan(SHAPES, PruneConfig(exclude=("*",)))


def test_patterns_have_sizes_of_their_own() -> None:
    """Positions of 4:8 take 7 bits of a group's 128 (70 masks), a bitmap one of 16."""
    shape = (640, 640)
    sizes = [
        packed_size(shape, None, pattern=Pattern.parse(text)) for text in ("2:4", "4:8", "50%")
    ]
    assert sizes == pytest.approx([0.5 + 4 / 64, 0.5 + 7 / 128, 0.5 + 1 / 16])


def test_a_block_holds_whole_groups() -> None:
    with pytest.raises(ArmorError, match="block 12 is not a multiple of 8, for 4:8"):
        make_plan(SHAPES, PruneConfig(pattern="4:8", block_size=12))
    assert make_plan({"big": (640, 640)}, PruneConfig(pattern="3:4", block_size=12))[0].block == 12


def test_baselines_have_no_wrappers() -> None:
    assert all(plan.block is None for plan in make_plan(SHAPES, PruneConfig(method="wanda")))
