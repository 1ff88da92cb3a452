"""``armor compare``: methods and settings on one model, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from armor.cli.recording import Board, Log
from armor.compare.labels import default_labels, parse_methods


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="compare")(compare_command)


def compare_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A dense model folder or Hub id.")],
    calibration: Annotated[str, typer.Option(metavar="FILE|hf:NAME", help="Calibration text.")],
    ppl: Annotated[list[str], typer.Option(metavar="FILE|hf:NAME", help="Evaluation texts.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Checkpoints, results and report.")],
    methods: Annotated[
        str,
        typer.Option(
            metavar="A[:SETTING=VALUE],...",
            help=f"Of: {', '.join(default_labels())}; for example armor:seed=1.",
        ),
    ] = ",".join(default_labels()),
    block_size: Annotated[
        str, typer.Option(metavar="auto|N", help="Wrapper block, a multiple of 4.")
    ] = "auto",
    samples: Annotated[int, typer.Option(metavar="N", help="Calibration windows.")] = 128,
    seq_len: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens a window, both texts.")
    ] = None,
    max_chars: Annotated[
        int | None, typer.Option(metavar="N", help="Evaluate on the first N characters.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Draws the calibration windows.")] = 0,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda", help="auto takes a GPU if there is one.")
    ] = "auto",
    log: Log = None,
    tensorboard: Board = None,
) -> None:
    """Prune a model with several methods and tabulate perplexity, size and time.

    What DIR already holds is not done again, so methods, settings and texts can be added later.

    Example: [bold]armor compare MODEL --methods sparsegpt,armor,armor:block_size=8
    --calibration c.txt --ppl test.txt --out cmp[/bold]
    """
    from armor.cli.display import show_comparison
    from armor.cli.evaluate import check_text, chosen_device
    from armor.cli.prune import parse_block

    settings = parse_methods(
        methods,
        calibration=calibration,
        block_size=parse_block(block_size),
        samples=samples,
        seq_len=seq_len,
        seed=seed,
    )
    where = chosen_device(device)
    for text in ppl:
        check_text(text)
    title, texts = Path(model).name, text_names(ppl)
    show_comparison(model, settings, texts, out, title, seq_len, max_chars, log, tensorboard, where)


def text_names(texts: list[str]) -> dict[str, str]:
    """The texts by a short name; by their whole one where the short one would be ambiguous."""
    short = [Path(text).stem for text in texts]
    return {
        stem if short.count(stem) == 1 else text: text
        for stem, text in zip(short, texts, strict=True)
    }
