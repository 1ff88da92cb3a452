"""Axes: positions, round ticks, and when the logarithm is taken."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armor.report.charts.axes import clip, spread
from armor.report.scale import Scale, fit

POSITIVE = st.floats(1e-3, 1e9)


def test_positions() -> None:
    assert [Scale(0, 10, 100, 200)(x) for x in (0, 5, 10)] == [100, 150, 200]
    assert Scale(1, 100, 200, 100, log=True)(10) == pytest.approx(150)


@pytest.mark.parametrize(
    ("scale", "ticks"),
    [
        (Scale(0, 1.04, 0, 1), [0, 0.25, 0.5, 0.75, 1]),
        (Scale(18.9, 23.4, 0, 1), [19, 20, 21, 22, 23]),
        (Scale(1.9, 70, 0, 1, log=True), [2, 5, 10, 20, 50]),
        (Scale(0.9, 3000, 0, 1, log=True), [1, 10, 100, 1000]),
    ],
)
def test_ticks(scale: Scale, ticks: list[float]) -> None:
    assert scale.ticks(5) == pytest.approx(ticks)


@given(st.lists(POSITIVE, min_size=1, max_size=8))
def test_every_value_has_its_place_and_some_ticks(values: list[float]) -> None:
    scale = fit(values, 10, 200)
    assert scale.log == (max(values) > 4 * min(values))
    assert all(10 < scale(value) < 200 for value in values)
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 6
    assert ticks == sorted(set(ticks))
    assert all(9.99 <= scale(tick) <= 200.01 for tick in ticks)


@given(st.lists(st.floats(0, 100), max_size=10))
def test_labels_are_spread(wanted: list[float]) -> None:
    placed = spread(sorted(wanted), 10, 0, 100)
    assert all(b - a >= 10 - 1e-9 for a, b in pairwise(placed))
    assert all(-1e-9 <= place <= 100 for place in placed)
    apart = all(b - a >= 10 for a, b in pairwise(sorted(wanted)))
    if apart:
        assert placed == sorted(wanted)


def test_long_names_lose_their_middle() -> None:
    assert clip("q_proj") == "q_proj"
    assert clip("abcdefghij", 6) == "ab…hij"
    assert len(clip("x" * 90, 18)) == 18
