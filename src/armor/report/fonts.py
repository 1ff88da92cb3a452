"""Fonts for the letters of a picture: names of models and texts may be in any script."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cache

#: What every matplotlib brings along.
BASE = "DejaVu Sans"


def fonts_for(texts: Iterable[str]) -> tuple[list[str], frozenset[str]]:
    """Installed font families that together have the letters of `texts`, the first `BASE`.

    Returns:
        The families, for matplotlib's ``font.family``, and the letters that no font here has.
    """
    missing = set().union(*texts) - _letters_of(BASE, frozenset(set().union(*texts)))
    families = [BASE]
    for family in _installed() if missing else ():
        if found := _letters_of(family, frozenset(missing)):
            families.append(family)
            missing -= found
        if not missing:
            break
    return families, frozenset(missing)


def spelled_out(text: str, missing: Collection[str]) -> str:
    r"""`text` with the letters of `missing` as their numbers, such as ``\u6a21``."""
    return "".join(ascii(letter)[1:-1] if letter in missing else letter for letter in text)


@cache
def _installed() -> tuple[str, ...]:
    from matplotlib.font_manager import fontManager

    return tuple(sorted({font.name for font in fontManager.ttflist if font.style == "normal"}))


def _letters_of(family: str, letters: frozenset[str]) -> set[str]:
    """Those of `letters` that a family has; none of a font that cannot be read."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    try:
        path = findfont(FontProperties(family=family), fallback_to_default=False)
        font = get_font(path)
        return {letter for letter in letters if font.get_char_index(ord(letter))}
    except (OSError, RuntimeError, ValueError):
        return set()
