"""Scalable graphics as text: elements with escaped content, coloured by the page's CSS classes."""

from __future__ import annotations

from markupsafe import Markup, escape


def tag(element: str, *content: str | Markup, **attributes: str | float) -> Markup:
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


def picture(width: float, height: float, title: str, description: str, *content: Markup) -> Markup:
    """An ``<svg>`` that scales with its container; `title` and `description` are its alt text."""
    return tag(
        "svg",
        tag("title", title),
        tag("desc", description),
        *content,
        viewBox=f"0 0 {_number(width)} {_number(height)}",
        role="img",
        aria_label=f"{title}. {description}",
    )


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def label(x: float, y: float, text: str, anchor: str = "start", class_: str = "label") -> Markup:
    """One line of text, vertically centred on `y`; `anchor` is "start", "middle" or "end"."""
    return tag("text", text, x=x, y=y + 4, text_anchor=anchor, class_=class_)


def _number(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.2f}".rstrip("0").rstrip(".")
