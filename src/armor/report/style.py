"""Colours and strokes, once for the page's CSS and for PNG."""

from __future__ import annotations

from dataclasses import dataclass

#: Role -> its colour on a light and on a dark page.
PALETTE = {
    "page": ("#fbfaf8", "#13161a"),
    "card": ("#ffffff", "#1b1f24"),
    "ink": ("#1d2126", "#e8eaed"),
    "soft": ("#5c646e", "#9aa4af"),
    "faint": ("#e4e2dd", "#2e343b"),
    "accent": ("#0a7d6c", "#45c9b0"),
    "wash": ("#e6f4f1", "#16302c"),
    "base": ("#7a8591", "#8d99a6"),
}


@dataclass(frozen=True)
class Style:
    """Colours are keys of `PALETTE`; `width` and `dash` are of the stroke, `size` is of text;
    a `halo` in the card's colour lifts text off the grid behind it."""

    fill: str | None = None
    stroke: str | None = None
    width: float = 1.0
    dash: tuple[float, float] | None = None
    opacity: float = 1.0
    size: float | None = None
    bold: bool = False
    halo: bool = False


STYLES = {
    "label": Style("ink", size=12.5),
    "label-armor": Style("accent", size=12.5, bold=True),
    "value": Style("soft", size=12.5, halo=True),
    "value-armor": Style("accent", size=12.5, bold=True, halo=True),
    "caption": Style("ink", size=13.5, bold=True),
    "tick": Style("soft", size=11.5),
    "axis": Style("soft", size=11.5),
    "grid": Style(stroke="faint"),
    "reference": Style(stroke="soft", dash=(4, 3)),
    "leader": Style(stroke="soft", width=0.8),
    "stem": Style(stroke="base", width=2.5, opacity=0.55),
    "stem-armor": Style(stroke="accent", width=2.5, opacity=0.55),
    "dot": Style("base", "card", 1.5),
    "dot-armor": Style("accent", "card", 1.5),
    "dot-dense": Style("ink", "card", 1.5),
    "bar": Style("accent"),
    "bar-base": Style("base"),
    "mark": Style(stroke="ink", width=2.2),
    "curve": Style(stroke="accent", width=1.5),
    "curve-strong": Style(stroke="accent", width=2.8),
    "curve-fitted": Style(stroke="base", width=1.5, dash=(3, 2)),
    "curve-base": Style(stroke="base", width=2.8, dash=(6, 4)),
}


def css() -> str:
    """The palette as variables, for light, for dark, and a rule for each style."""
    light, dark = (
        " ".join(f"--{role}: {colours[index]};" for role, colours in PALETTE.items())
        for index in (0, 1)
    )
    rules = [
        f":root {{ {light} }}",
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}",
    ]
    rules += [f"svg .{name} {{ {_declarations(style)} }}" for name, style in STYLES.items()]
    return "\n".join(rules)


def _declarations(style: Style) -> str:
    parts = [f"fill: var(--{style.fill})" if style.fill else "fill: none"]
    if style.stroke:
        parts.append(f"stroke: var(--{style.stroke}); stroke-width: {style.width}")
    if style.halo:
        parts.append("stroke: var(--card); stroke-width: 4; paint-order: stroke")
    if style.dash:
        parts.append(f"stroke-dasharray: {style.dash[0]} {style.dash[1]}")
    if style.opacity != 1:
        parts.append(f"opacity: {style.opacity}")
    if style.size:
        parts.append(f"font-size: {style.size}px")
    if style.bold:
        parts.append("font-weight: 650")
    return "; ".join(parts)
