"""``armor eval``: perplexity of a dense or pruned model on text."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from armor.errors import ArmorError

if TYPE_CHECKING:
    from rich.progress import TaskID
    from rich.table import Table

    from armor.evaluate.perplexity import PerplexityResult


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="eval")(evaluate_command)


def evaluate_command(
    model: Annotated[str, typer.Argument(metavar="MODEL|DIR", help="Dense or pruned model.")],
    ppl: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE|hf:NAME", help="Text for perplexity; may be repeated."),
    ] = None,
    seq_len: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=2, help="Tokens a window (default: the context, at most 2048)."
        ),
    ] = None,
    max_chars: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Read the first N characters only.")
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda", help="auto takes a GPU if there is one.")
    ] = "auto",
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the results here as JSON, too.")
    ] = None,
) -> None:
    """Measure perplexity and bits per byte over non-overlapping token windows.

    On a CPU in float32; on a GPU in the dtype of the checkpoint. Perplexities compare only at equal
    text, vocabulary and window; bits per byte compare across vocabularies.

    Example: [bold]armor eval qwen-armor --ppl test.txt --seq-len 2048[/bold]
    """
    from rich.console import Console

    from armor.checkpoint.jsonfile import write_json

    if not ppl:
        raise ArmorError("nothing to evaluate: give --ppl FILE or --ppl hf:NAME[:CONFIG]")
    if json is not None and not json.absolute().parent.is_dir():
        raise ArmorError(f"cannot write {json}: its folder does not exist")
    results, about = _run(model, ppl, seq_len, max_chars, device)
    if json is not None:
        rows = [result.to_dict() for result in results]
        write_json(json, {"model": model, **about, "max_chars": max_chars, "perplexity": rows})
    console = Console()
    console.print(_table(results))
    console.print(f"{model}, {about['dtype']} on {about['device']}", highlight=False)


def _run(
    path: str, texts: list[str], seq_len: int | None, max_chars: int | None, device: str
) -> tuple[list[PerplexityResult], dict[str, Any]]:
    """The result for each text, and the dtype and device they were computed with."""
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from armor.calibrate.sources import read_text
    from armor.evaluate.perplexity import evaluate
    from armor.models.load import load_model, load_tokenizer

    chosen = _device(device)
    for text in texts:
        if not text.startswith("hf:"):
            read_text(text)  # a bad file should not cost the wait for the model
    tokenizer = load_tokenizer(path)
    network = load_model(path, torch.float32 if chosen == "cpu" else None, chosen)
    results = []
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        for text in texts:
            task = bar.add_task(Path(text).name, total=None)

            def step(done: int, total: int, task: TaskID = task) -> None:
                bar.update(task, completed=done, total=total)

            results.append(
                evaluate(
                    network, tokenizer, text, seq_len=seq_len, max_chars=max_chars, progress=step
                )
            )
    dtype = str(network.dtype).removeprefix("torch.")
    return results, {"dtype": dtype, "device": chosen}


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu" or (name == "cuda" and torch.cuda.is_available()):
        return name
    if name == "cuda":
        raise ArmorError("no CUDA device is available; use --device cpu")
    raise ArmorError(f"unknown device {name!r}; valid: auto, cpu, cuda")


def _table(results: list[PerplexityResult]) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), header_style="bold")
    table.add_column("text", overflow="fold")
    for title in ("perplexity", "±95 %", "bits/byte", "window", "tokens"):
        table.add_column(title, justify="right", no_wrap=True)
    for result in results:
        low, high = result.ci95 or (math.nan, math.nan)
        table.add_row(
            Path(result.source).name,
            f"{result.perplexity:.4f}",
            "-" if result.ci95 is None else f"{(high - low) / 2:.3f}",
            f"{result.bits_per_byte:.4f}",
            str(result.seq_len),
            f"{result.tokens:,}",
        )
    return table
