from __future__ import annotations

from math import comb

import pytest

from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.sparse.pattern import Pattern


@pytest.mark.parametrize(
    ("text", "kept", "group", "density"),
    [("2:4", 2, 4, 0.5), ("1:4", 1, 4, 0.25), ("4:8", 4, 8, 0.5), ("2:8", 2, 8, 0.25)],
)
def test_n_of_m(text: str, kept: int, group: int, density: float) -> None:
    pattern = Pattern.parse(text)
    assert (pattern.kept, pattern.group, pattern.density) == (kept, group, density)
    assert str(pattern) == text
    assert not pattern.is_unstructured
    assert len(pattern.masks) == comb(group, kept)
    assert list(pattern.masks) == sorted(set(pattern.masks))


def test_a_share_of_all_entries() -> None:
    pattern = Pattern.parse("60%")
    assert pattern.is_unstructured
    assert str(pattern) == "60%"
    assert pattern.density == pytest.approx(0.4)
    assert pattern.count((10, 10)) == 40
    assert pattern.count((1, 1)) == 1


@pytest.mark.parametrize(
    "text", ["", "4:2", "4:4", "0:4", "2:3", "8:16", "100%", "0%", "0.5", "2:4 ", "5٣%"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ArmorError, match="unknown pattern"):
        Pattern.parse(text)


@pytest.mark.parametrize("value", [None, 0.5, 2, ("2:4",)])
def test_a_pattern_is_a_text(value: object) -> None:
    with pytest.raises(ArmorError, match="a pattern is a text"):
        PruneConfig(pattern=value)  # type: ignore[arg-type]
