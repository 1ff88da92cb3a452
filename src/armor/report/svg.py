"""A picture as an ``<svg>``, coloured by the page's CSS."""

from __future__ import annotations

from markupsafe import Markup, escape

from armor.report.picture import Curve, Dot, Line, Mark, Picture, Rect


def to_svg(picture: Picture) -> Markup:
    """Scales with its container; the picture's title and description are its alt text."""
    return _tag(
        "svg",
        _tag("title", picture.title),
        _tag("desc", picture.description),
        *map(_draw, picture.marks),
        viewBox=f"0 0 {_number(picture.width)} {_number(picture.height)}",
        role="img",
        aria_label=f"{picture.title}. {picture.description}",
    )


def _draw(mark: Mark) -> Markup:
    if isinstance(mark, Line):
        return _tag("line", x1=mark.x1, y1=mark.y1, x2=mark.x2, y2=mark.y2, class_=mark.style)
    if isinstance(mark, Rect):
        return _tag(
            "rect",
            *_tip(mark.tip),
            x=mark.x,
            y=mark.y,
            width=mark.width,
            height=mark.height,
            class_=mark.style,
            **_opacity(mark.opacity),
        )
    if isinstance(mark, Dot):
        tip = _tip(mark.tip)
        return _tag("circle", *tip, cx=mark.x, cy=mark.y, r=mark.radius, class_=mark.style)
    if isinstance(mark, Curve):
        points = " ".join(f"{_number(x)},{_number(y)}" for x, y in mark.points)
        return _tag(
            "polyline",
            *_tip(mark.tip),
            points=points,
            class_=mark.style,
            **_opacity(mark.opacity),
        )
    if mark.upright:
        place = f"translate({_number(mark.x + 4)} {_number(mark.y)}) rotate(-90)"
        return _tag("text", mark.text, transform=place, text_anchor="middle", class_=mark.style)
    return _tag(
        "text", mark.text, x=mark.x, y=mark.y + 4, text_anchor=mark.anchor, class_=mark.style
    )


def _tag(element: str, *content: str | Markup, **attributes: str | float) -> Markup:
    """``<element ...>content</element>``.

    Strings are escaped unless they are `Markup`; numbers are rounded to 0.01; an attribute
    ``text_anchor`` becomes ``text-anchor``, ``class_`` becomes ``class``.
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(_number(value))}"'
        for name, value in attributes.items()
    )
    inside = Markup("").join(content)
    return Markup(f"<{element}{written}>{inside}</{element}>")


def _tip(text: str) -> list[Markup]:
    return [_tag("title", text)] if text else []


def _opacity(value: float) -> dict[str, float]:
    return {} if value == 1 else {"opacity": value}


def _number(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.2f}".rstrip("0").rstrip(".")
