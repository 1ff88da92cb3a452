"""``armor eval``: perplexity and tasks of a dense or pruned model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from armor.errors import ArmorError

if TYPE_CHECKING:
    from armor.evaluation.harness import TaskList
    from armor.evaluation.tasks import TaskSpec


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="eval")(evaluate_command)


def evaluate_command(
    model: Annotated[str, typer.Argument(metavar="MODEL|DIR", help="Dense or pruned model.")],
    ppl: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE|hf:NAME|wikitext2|c4", help="Text for perplexity; may be repeated."
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="DENSE", help="Compare its predictions (of the same vocabulary) on the texts."
        ),
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
    tasks: Annotated[
        str,
        typer.Option(
            metavar="paper|quick|NAME[:SHOTS],...", help="Tasks of lm-evaluation-harness."
        ),
    ] = "",
    task_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A folder with your own task YAML files.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="The first N documents of each task.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(metavar="N", min=1, help="Prompts at a time, in tasks.")
    ] = 8,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda", help="auto takes a GPU if there is one.")
    ] = "auto",
    json: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Results as JSON; what it holds is not measured again."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again all the same.")] = False,
) -> None:
    """Measure perplexity and bits per byte over non-overlapping token windows, and run tasks.

    On a CPU in float32; on a GPU in the dtype of the checkpoint. Perplexities compare only at equal
    text, vocabulary and window; bits per byte compare across vocabularies. With --reference also
    how far the predictions are from that model's: KL divergence and the share of equal top tokens.
    Tasks need the extra armor-prune\\[eval].

    Example: [bold]armor eval qwen-armor --ppl test.txt --tasks quick --json eval.json[/bold]

    Example: [bold]armor eval qwen-armor --ppl test.txt --reference Qwen/Qwen2.5-7B[/bold]
    """
    from rich.console import Console

    from armor.checkpoint.jsonfile import check_file
    from armor.cli.progress import WindowProgress
    from armor.cli.table import divergence_table, perplexity_table, task_table
    from armor.evaluation.measure import Measurement
    from armor.evaluation.tasks import parse_tasks

    specs = parse_tasks(tasks, limit) if tasks else []
    texts = ppl or []
    if not texts and not specs:
        raise ArmorError(
            "nothing to evaluate: give --ppl FILE, --ppl hf:NAME[:CONFIG] or --tasks NAME,..."
        )
    if reference is not None and not texts:
        raise ArmorError("--reference compares predictions on a text; give one: --ppl FILE")
    if task_dir is not None and not specs:
        raise ArmorError("--task-dir defines tasks; name those to run: --tasks NAME,...")
    check_file(json)
    chosen = chosen_device(device)
    for text in texts:
        check_text(text)
    found = find_tasks(specs, task_dir)
    work = Measurement(model, chosen, json, fresh, reference)
    work.record.about["max_chars"] = max_chars
    console = Console(highlight=False)
    rows = []
    for text in texts:
        with WindowProgress(Path(text).name) as bar:
            rows.append(work.perplexity(text, seq_len, max_chars, bar.step))
    if rows:
        console.print(perplexity_table(rows))
        if reference is not None:
            console.print()
            console.print(divergence_table(rows))
    if found is not None:
        rows = []
        for spec in found.specs:
            rows.append(work.task(found, spec, batch_size))
            typer.echo(f"{spec.name}: {rows[-1]['value']:.4f}", err=True)  # hours may lie between
        console.print(task_table(rows))
    known = f"; {work.reused} known from {json} (--fresh measures again)" if work.reused else ""
    console.print(f"{model}, {work.dtype} on {chosen}{known}")


def check_text(text: str) -> None:
    """A bad file should not cost the wait for the model."""
    from armor.text.protocols import protocol_of
    from armor.text.sources import read_text

    if not text.startswith("hf:") and protocol_of(text) is None:
        read_text(text)


def find_tasks(specs: list[TaskSpec], task_dir: Path | None) -> TaskList | None:
    """The tasks, found; None for none."""
    if not specs:
        return None
    from rich.console import Console

    from armor.evaluation.harness import TaskList

    with Console(stderr=True).status("reading the list of tasks"):
        return TaskList(specs, task_dir)


def chosen_device(name: str) -> str:
    """ "cpu" or "cuda". Raises `ArmorError` for what is not there."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu" or (name == "cuda" and torch.cuda.is_available()):
        return name
    if name == "cuda":
        raise ArmorError("no CUDA device is available; use --device cpu")
    raise ArmorError(f"unknown device {name!r}; valid: auto, cpu, cuda")
