"""A picture as a PNG file, in the light colours, drawn mark by mark with matplotlib."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from armor.checkpoint.atomic import atomic_write
from armor.errors import ArmorError
from armor.report.fonts import fonts_for, spelled_out
from armor.report.picture import Curve, Dot, Line, Mark, Picture, Rect, Text
from armor.report.style import PALETTE, STYLES, Style

_INCH = 100.0  # pixels of a picture
_DOTS = 250  # dots an inch: 2.5 a pixel
_POINT = 72 / _INCH
_MARGIN, _TITLE = 16.0, 34.0


def require_matplotlib() -> None:
    """Raise `ArmorError` with the remedy where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ArmorError(
            "--png needs matplotlib, which the page does not: pip install 'armor-prune[plots]'"
        ) from None


def write_png(picture: Picture, path: Path) -> None:
    """Write `picture` with its title above; atomic."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = picture.width + 2 * _MARGIN
    height = picture.height + 2 * _MARGIN + _TITLE
    texts = [picture.title, *(mark.text for mark in picture.marks if isinstance(mark, Text))]
    families, missing = fonts_for(texts)
    with rc_context({"font.family": families}):
        figure = Figure(
            figsize=(width / _INCH, height / _INCH), dpi=_DOTS, facecolor=_colour("card")
        )
        FigureCanvasAgg(figure)
        axes: Any = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(-_MARGIN, picture.width + _MARGIN)
        axes.set_ylim(picture.height + _MARGIN, -_MARGIN - _TITLE)
        axes.axis("off")
        size = min(15.0, 1.6 * picture.width / len(picture.title))
        axes.text(
            *(0, -_TITLE + 8, spelled_out(picture.title, missing)),
            parse_math=False,
            color=_colour("ink"), fontsize=size * _POINT, fontweight="bold", va="center",
        )  # fmt: skip
        for order, mark in enumerate(picture.marks):
            if isinstance(mark, Text):
                mark = replace(mark, text=spelled_out(mark.text, missing))
            _draw(axes, mark, order)
        with atomic_write(path) as file:
            figure.savefig(file, format="png", metadata={"Software": None})


def _draw(axes: Any, mark: Mark, order: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Circle, Rectangle
    from matplotlib.patheffects import withStroke

    style = STYLES[mark.style]
    if isinstance(mark, Line):
        line = Line2D([mark.x1, mark.x2], [mark.y1, mark.y2], zorder=order, **_stroke(style, 1))
        axes.add_line(line)
    elif isinstance(mark, Curve):
        x, y = zip(*mark.points, strict=True)
        axes.add_line(Line2D(x, y, zorder=order, **_stroke(style, mark.opacity)))
    elif isinstance(mark, Rect):
        corner = (mark.x, mark.y)
        axes.add_patch(
            Rectangle(corner, mark.width, mark.height, zorder=order, **_fill(style, mark.opacity))
        )
    elif isinstance(mark, Dot):
        axes.add_patch(Circle((mark.x, mark.y), mark.radius, zorder=order, **_fill(style, 1)))
    else:
        axes.text(
            mark.x,
            mark.y,
            mark.text,
            color=_colour(style.fill),
            fontsize=(style.size or 12) * _POINT,
            fontweight="bold" if style.bold else "normal",
            ha={"start": "left", "middle": "center", "end": "right"}[mark.anchor],
            va="center",
            rotation=90 if mark.upright else 0,
            zorder=order,
            parse_math=False,
            path_effects=[withStroke(linewidth=4 * _POINT, foreground=_colour("card"))]
            if style.halo
            else None,
        )


def _stroke(style: Style, opacity: float) -> dict[str, Any]:
    width = style.width * _POINT
    dash = style.dash and (0, tuple(length * _POINT / width for length in style.dash))
    return {
        "color": _colour(style.stroke),
        "linewidth": width,
        "linestyle": dash or "solid",
        "alpha": style.opacity * opacity,
        "solid_capstyle": "butt",
    }


def _fill(style: Style, opacity: float) -> dict[str, Any]:
    return {
        "facecolor": _colour(style.fill),
        "edgecolor": _colour(style.stroke),
        "linewidth": style.width * _POINT if style.stroke else 0,
        "alpha": style.opacity * opacity,
    }


def _colour(role: str | None) -> str:
    return PALETTE[role][0] if role else "none"
