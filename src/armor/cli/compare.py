"""``armor compare``: methods and settings on one model, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from armor.cli.options import (
    BlockSize,
    Bos,
    Calibration,
    Device,
    Log,
    MaxChars,
    Methods,
    Samples,
    Seed,
    SeqLen,
    TensorBoard,
    parse_block,
)
from armor.compare.labels import default_labels, parse_methods


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="compare")(compare_command)


EqualBytes = Annotated[
    bool,
    typer.Option(
        "--equal-bytes",
        help="Add what the bytes of armor's row buy otherwise: SparseGPT and Wanda with layers left"
        " dense, SparseGPT plus low rank, int8 and int4 (docs/evaluation.md).",
    ),
]


def compare_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A dense model folder or Hub id.")],
    calibration: Calibration,
    ppl: Annotated[
        list[str], typer.Option(metavar="FILE|hf:NAME|wikitext2|c4", help="Evaluation texts.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Checkpoints, results and report.")],
    methods: Methods = ",".join(default_labels()),
    block_size: BlockSize = "auto",
    samples: Samples = 128,
    seq_len: SeqLen = None,
    bos: Bos = "auto",
    max_chars: MaxChars = None,
    seed: Seed = 0,
    equal_bytes: EqualBytes = False,
    device: Device = "auto",
    log: Log = None,
    tensorboard: TensorBoard = None,
) -> None:
    """Prune a model with several methods and tabulate perplexity, KL, size and time.

    What DIR already holds is not done again, so methods, settings and texts can be added later.

    Example: [bold]armor compare MODEL --methods sparsegpt,armor,armor:block_size=8
    --calibration c.txt --ppl test.txt --out cmp[/bold]
    """
    from armor.cli.display import show_comparison
    from armor.compare.equal_bytes import with_rivals
    from armor.device import resolve_device
    from armor.text.sources import check_text

    settings = parse_methods(
        methods,
        calibration=calibration,
        block_size=parse_block(block_size),
        samples=samples,
        seq_len=seq_len,
        bos=bos,
        seed=seed,
    )
    where = resolve_device(device)
    for text in ppl:
        check_text(text)
    show_comparison(
        model,
        with_rivals(settings) if equal_bytes else settings,
        text_names(ppl),
        out,
        Path(model).name,
        seq_len=seq_len,
        max_chars=max_chars,
        bos=bos,
        log=log,
        tensorboard=tensorboard,
        device=where,
    )


def text_names(texts: list[str]) -> dict[str, str]:
    """The texts by a short name; by their whole one where the short one would be ambiguous."""
    short = [Path(text).stem for text in texts]
    return {
        stem if short.count(stem) == 1 else text: text
        for stem, text in zip(short, texts, strict=True)
    }
