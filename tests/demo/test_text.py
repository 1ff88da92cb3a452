"""The demo's text: disjoint parts, the same on every call, and a remedy where it is missing."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armor.demo.text import HELD_OUT, calibration_text, evaluation_text, unseen_paragraphs
from armor.errors import ArmorError


def keys(text: str) -> list[str]:
    return [" ".join(part.split()) for part in text.split("\n\n")]


def test_parts_share_no_paragraph_and_repeat_none() -> None:
    calibration, evaluation = keys(calibration_text()), keys(evaluation_text())
    assert not set(calibration) & set(evaluation)
    assert len(set(calibration)) == len(calibration)
    assert len(set(evaluation)) == len(evaluation)


def test_parts_together_are_the_topics() -> None:
    from pydoc_data.topics import topics

    everything = {key for text in topics.values() for key in keys(text)} - {""}
    assert set(keys(calibration_text())) | set(keys(evaluation_text())) == everything
    assert set(HELD_OUT) < set(topics)
    assert len(evaluation_text()) > 40_000
    assert len(calibration_text()) > 250_000


@given(st.lists(st.text("ab \n")), st.text("ab \n"))
def test_unseen_paragraphs_are_new_ones_in_order(texts: list[str], seen: str) -> None:
    kept = unseen_paragraphs(texts, seen)
    everything = [part for text in texts for part in text.split("\n\n")]
    left = iter(everything)
    assert all(part in left for part in kept)  # a subsequence
    found = [" ".join(part.split()) for part in kept]
    expected = dict.fromkeys(" ".join(part.split()) for part in everything)
    assert found == [key for key in expected if key and key not in keys(seen)]


def test_python_without_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ArmorError, match=r"pydoc_data.*install") as caught:
        calibration_text()
    assert "\n" not in str(caught.value)
