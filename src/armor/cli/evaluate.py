"""``armor eval``: perplexity and tasks of a dense or pruned model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from armor.cli.options import BatchSize, Bos, Device, Limit, MaxChars, SeqLen, TaskDir
from armor.errors import ArmorError

if TYPE_CHECKING:
    from armor.evaluation.harness import TaskList
    from armor.evaluation.measure import Measurement
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
    seq_len: SeqLen = None,
    bos: Bos = "auto",
    max_chars: MaxChars = None,
    tasks: Annotated[
        str,
        typer.Option(
            metavar="paper|quick|NAME[:SHOTS],...", help="Tasks of lm-evaluation-harness."
        ),
    ] = "",
    task_dir: TaskDir = None,
    limit: Limit = None,
    batch_size: BatchSize = 8,
    device: Device = "auto",
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
    from armor.checkpoint.jsonfile import check_file
    from armor.device import resolve_device
    from armor.evaluation.measure import Measurement
    from armor.evaluation.tasks import parse_tasks
    from armor.text.sources import check_text

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
    where = resolve_device(device)
    for text in texts:
        check_text(text)
    found = find_tasks(specs, task_dir)
    work = Measurement(model, where, json, fresh, reference, bos)
    work.record.about["max_chars"] = max_chars
    _measure(work, texts, seq_len, max_chars, found, batch_size)
    known = f"; {work.reused} known from {json} (--fresh measures again)" if work.reused else ""
    typer.echo(f"{model}, {work.dtype} on {where}{known}")


def _measure(
    work: Measurement,
    texts: list[str],
    seq_len: int | None,
    max_chars: int | None,
    tasks: TaskList | None,
    batch_size: int,
) -> None:
    """Measure what is not known yet, and print the tables."""
    from rich.console import Console

    from armor.cli.progress import WindowProgress
    from armor.cli.table import divergence_table, perplexity_table, task_table

    console = Console(highlight=False)
    rows = []
    for text in texts:
        with WindowProgress(Path(text).name) as bar:
            rows.append(work.perplexity(text, seq_len, max_chars, bar.step))
    if rows:
        console.print(perplexity_table(rows))
        if work.reference is not None:
            console.print()
            console.print(divergence_table(rows))
    if tasks is not None:
        rows = []
        for spec in tasks.specs:
            rows.append(work.task(tasks, spec, batch_size))
            typer.echo(f"{spec.name}: {rows[-1]['value']:.4f}", err=True)  # hours may lie between
        console.print(task_table(rows))


def find_tasks(specs: list[TaskSpec], task_dir: Path | None) -> TaskList | None:
    """The tasks with their definitions; None where none is named."""
    if not specs:
        return None
    from rich.console import Console

    from armor.evaluation.harness import TaskList

    with Console(stderr=True).status("reading the list of tasks"):
        return TaskList(specs, task_dir)
