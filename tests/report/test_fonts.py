"""Names in any script: with a font that has their letters, or spelled out, without a warning."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from armor.report import fonts
from armor.report.fonts import BASE, fonts_for, spelled_out
from armor.report.picture import Picture, Text
from armor.report.png import write_png


def test_latin_and_greek_need_no_other_font() -> None:
    assert fonts_for(["loss of layer 3", "λ ≤ 1"]) == ([BASE], frozenset())


def test_a_font_that_has_them_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    has = {BASE: set("abc"), "Other": set("a"), "Wide": set("模"), "Never": set("模型")}
    monkeypatch.setattr(fonts, "_installed", lambda: tuple(has))
    monkeypatch.setattr(fonts, "_letters_of", lambda family, letters: has[family] & letters)
    assert fonts_for(["ab", "模"]) == ([BASE, "Wide"], frozenset())
    assert fonts_for(["a型?"]) == ([BASE, "Never"], frozenset("?"))


def test_what_no_font_has_is_spelled_out() -> None:
    assert spelled_out("a模$型", "模型") == r"a\u6a21$\u578b"


@pytest.mark.parametrize("title", ["模型", "نموذج", "a $ b $ c", "\U0001f680 \ue000"])
def test_no_warning_whatever_the_fonts(
    tmp_path: Path, title: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = Picture(300, 100, title, "", (Text(0, 50, title),))
    write_png(picture, tmp_path / "one.png")
    monkeypatch.setattr(fonts, "_installed", lambda: ())
    write_png(picture, tmp_path / "two.png")
    assert (tmp_path / "two.png").read_bytes().startswith(b"\x89PNG")
