"""Options that several commands share, and how their values are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from armor.errors import ArmorError

Calibration = Annotated[
    str,
    typer.Option(
        metavar="FILE|hf:NAME[:CONFIG]|self",
        help="Calibration text: a text file, .jsonl or .json with 'text', a data set, or self: what"
        " the model writes (self:FILE: going on from the lines of a file).",
    ),
]
Samples = Annotated[int, typer.Option(metavar="N", help="Calibration windows.")]
Seed = Annotated[int, typer.Option(metavar="N", help="Draws the calibration windows.")]
SeqLen = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=2,
        help="Tokens a window (default: the context, to calibrate at most 512, to evaluate 2048).",
    ),
]
Bos = Annotated[
    str,
    typer.Option(
        metavar="auto|always|never",
        help="Begin each window with the BOS token; auto: if the tokenizer adds it.",
    ),
]
BlockSize = Annotated[str, typer.Option(metavar="auto|N", help="Wrapper block, a multiple of 4.")]
Methods = Annotated[
    str,
    typer.Option(
        metavar="NAME[:SETTING=VALUE],...",
        help="What to compare, for example sparsegpt,armor,armor:seed=1.",
    ),
]
MaxChars = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Evaluate on the first N characters only.")
]
TaskDir = Annotated[
    Path | None, typer.Option(metavar="DIR", help="A folder with your own task YAML files.")
]
Limit = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="The first N documents of each task.")
]
BatchSize = Annotated[int, typer.Option(metavar="N", min=1, help="Prompts at a time, in tasks.")]
Device = Annotated[
    str, typer.Option(metavar="auto|cpu|cuda|cuda:N", help="auto takes a GPU if there is one.")
]
Json = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write everything here as JSON, too.")
]
Log = Annotated[
    str | None,
    typer.Option(metavar="FILE|off", help="Events as JSON lines (default: beside DIR)."),
]
TensorBoard = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Losses for TensorBoard, into this folder.")
]


def parse_block(text: str) -> int | None:
    """``auto`` -> None, a number -> itself. Raises `ArmorError` for anything else."""
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        raise ArmorError(f"--block-size {text!r} is neither auto nor a number") from None
