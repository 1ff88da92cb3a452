"""Quality against bytes: one picture of the results of quantised.py.

    python benchmarks/quantised_picture.py     # reads results/quantised_*.json

Writes docs/images/quantised.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common import COLOURS, HERE, RESULTS, plt
from matplotlib.ticker import FuncFormatter, NullFormatter

from armor.checkpoint.jsonfile import read_json

#: Title and file of each panel.
PANELS = {
    "babyllama-1m (float32), TinyStories": "quantised_babyllama",
    "SmolLM2-135M (bfloat16), WikiText-2": "quantised_smollm2",
}
#: Rows that are joined: colour, marker, and what each is written as, the largest first.
LINES: dict[str, tuple[str, str, dict[str, str]]] = {
    "armor": (
        COLOURS["exact"],
        "o",
        {"16-bit": "not rounded", "int8": "int8", "fp8": "fp8", "int4": "int4"},
    ),
    "armor, rounded afterwards": (COLOURS["other"], "s", {"int4-after": "int4"}),
    "SparseGPT": (
        COLOURS["adam"],
        "^",
        {"sparsegpt": "not rounded", "sparsegpt-int4": "int4"},
    ),
    "plain rounding of all weights": (
        COLOURS["dense"],
        "D",
        {"plain-int8": "int8", "plain-int4": "int4", "plain-int3": "int3"},
    ),
}


def draw(axes: Any, title: str, data: dict[str, Any]) -> None:
    """One model: KL on its first text against bytes over dense, both logarithmic."""
    rows = {row["label"]: row for row in data["rows"]}
    text = next(iter(data["rows"][0]["perplexity"]))
    for name, (colour, marker, labels) in LINES.items():
        there = [label for label in labels if label in rows]
        places = [(rows[label]["size"], rows[label]["kl"][text]) for label in there]
        if not places:
            continue
        joined = [place for label, place in zip(there, places, strict=True) if label != "fp8"]
        axes.plot(*zip(*joined, strict=True), color=colour, linewidth=1.2, alpha=0.7)
        axes.plot(
            *zip(*places, strict=True), marker, color=colour, label=name, markersize=6, alpha=0.9
        )
        for label, place in zip(there, places, strict=True):
            above = label != "fp8" and not label.startswith("plain")
            axes.annotate(
                labels[label],
                place,
                xytext=(5, 4 if above else -11),
                textcoords="offset points",
                fontsize=8,
                color=colour,
            )
    axes.set_xscale("log")
    axes.set_xlim(0.085, 0.95)
    axes.set_yscale("log")
    axes.set_xticks([0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("bytes of the pruned linears, over dense")
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument(
        "--out", type=Path, default=HERE.parent / "docs" / "images" / "quantised.png"
    )
    args = parser.parse_args()
    drawing, panels = plt.subplots(1, len(PANELS), figsize=(10.5, 4.8), layout="constrained")
    for axes, (title, name) in zip(panels, PANELS.items(), strict=True):
        draw(axes, title, read_json(args.results / f"{name}.json"))
    panels[0].set_ylabel("KL from the dense predictions, nats a token")
    handles, labels = panels[0].get_legend_handles_labels()
    drawing.legend(handles, labels, fontsize=8, loc="outside upper center", ncols=len(LINES))
    drawing.savefig(args.out, dpi=130)
    plt.close(drawing)


if __name__ == "__main__":
    main()
