"""``armor reproduce``: the paper's protocol from end to end, beside its published figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from armor.cli.recording import Board, Log
from armor.errors import ArmorError

if TYPE_CHECKING:
    from armor.compare.row import Row
    from armor.config import PruneConfig
    from armor.evaluation.harness import TaskList

METHODS = "sparsegpt,wanda,nowag,armor-paper,armor"
#: A sample of SlimPajama, which the paper calibrates on.
CALIBRATION = "hf:DKYoon/SlimPajama-6B"
LONGEST = 8192  # tokens a window, where the model's context is not shorter
PAGE, DATA = "reproduction.md", "reproduction.json"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="reproduce")(reproduce_command)


def reproduce_command(
    what: Annotated[str, typer.Argument(metavar="paper", help="arXiv 2510.05528.")],
    model: Annotated[str, typer.Option(metavar="MODEL", help="A dense model folder or Hub id.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Checkpoints, results and the page.")],
    calibration: Annotated[
        str, typer.Option(metavar="FILE|hf:NAME", help="Calibration text.")
    ] = CALIBRATION,
    ppl: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]TEXT",
            help="Text for perplexity, as of armor eval, or a local twin: wikitext2=FILE. "
            "Default: wikitext2 and c4.",
        ),
    ] = None,
    tasks: Annotated[
        str, typer.Option(metavar="paper|none|NAME[:SHOTS],...", help="Tasks, as of armor eval.")
    ] = "paper",
    task_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Task files to use before the harness's.")
    ] = None,
    methods: Annotated[
        str, typer.Option(metavar="A[:SETTING=VALUE],...", help="As of armor compare.")
    ] = METHODS,
    block_size: Annotated[str, typer.Option(metavar="auto|N", help="Wrapper block.")] = "128",
    samples: Annotated[int, typer.Option(metavar="N", help="Calibration windows.")] = 128,
    seq_len: Annotated[
        int | None,
        typer.Option(metavar="N", min=2, help="Tokens a window (default: context, at most 8192)."),
    ] = None,
    max_chars: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Read the first N characters only.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="The first N documents of each task.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(metavar="N", min=1, help="Prompts at a time, in tasks.")
    ] = 8,
    published: Annotated[
        str | None, typer.Option(metavar="NAME", help="The model in the paper (default: by name).")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Draws the calibration windows.")] = 0,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda", help="auto takes a GPU if there is one.")
    ] = "auto",
    log: Log = None,
    tensorboard: Board = None,
) -> None:
    """Run the paper's comparison on your model and put the results beside the published ones.

    Prunes with the baselines, the paper's preset and the default, at the paper's block; measures
    perplexity and the paper's tasks; fills DIR/reproduction.md as it goes. Run it again to go on
    after an interruption. Without a network give local texts and tasks.

    Example: [bold]armor reproduce paper --model Qwen/Qwen2.5-7B --out repro[/bold]
    """
    from armor.cli.display import show_comparison
    from armor.cli.evaluate import check_text, chosen_device, find_tasks
    from armor.cli.prune import parse_block
    from armor.compare.checkpoints import DENSE
    from armor.compare.labels import parse_methods
    from armor.compare.paper import published as figures
    from armor.compare.paper import same_model
    from armor.compare.sheet import Sheet
    from armor.evaluation.tasks import parse_tasks
    from armor.models.folder import ModelFolder

    if what != "paper":
        raise ArmorError(f"unknown reproduction {what!r}; valid: paper")
    where = chosen_device(device)
    texts = _named(ppl or ["wikitext2", "c4"])
    for text in texts.values():
        check_text(text)
    name = published or same_model(model)
    theirs = figures(name) if name else {}
    found = find_tasks([] if tasks == "none" else parse_tasks(tasks, limit), task_dir)
    context = ModelFolder.open(model).config.get_text_config().max_position_embeddings
    window = seq_len or min(LONGEST, context)
    settings = parse_methods(
        methods,
        calibration=calibration,
        block_size=parse_block(block_size),
        samples=samples,
        seq_len=window,
        seed=seed,
    )
    facts = {
        "model": model,
        "in the paper": name or "this model is not among the paper's",
        "calibration": f"{samples} windows of {window} tokens of {calibration}",
        "perplexity": f"windows of {window} tokens"
        + (f", the first {max_chars:,} characters" if max_chars else ""),
        "wrapper block": block_size,
        "device": where,
    }
    if limit:
        facts["tasks"] = f"the first {limit} documents of each"
    sheet = Sheet(
        f"{Path(model).name}: ARMOR reproduced",
        facts | _versions(),
        [DENSE, *settings],
        list(texts),
        found.specs if found else [],
        theirs,
        _notes(theirs),
    )

    def on_row(rows: list[Row]) -> None:
        sheet.rows = rows
        _write(out, sheet)

    title = sheet.title
    show_comparison(
        model, settings, texts, out, title, window, max_chars, log, tensorboard, where, on_row
    )
    if found:
        _run_tasks(sheet, found, model, settings, out, where, batch_size)
    typer.echo(f"wrote {out / PAGE}")


def _run_tasks(
    sheet: Any,
    tasks: TaskList,
    model: str,
    settings: Mapping[str, PruneConfig],
    out: Path,
    device: str,
    batch_size: int,
) -> None:
    """Every task on every model, each model loaded once; the page grows with each result."""
    from rich.console import Console

    from armor.cli.table import task_table
    from armor.compare.compare import measurement

    console = Console(highlight=False)
    for label in sheet.labels:
        work = measurement(out, label, model, device)
        rows = sheet.tasks.setdefault(label, {})
        for number, spec in enumerate(tasks.specs, 1):
            if not work.knows_task(tasks, spec):
                typer.echo(f"{label}: {spec.name} ({number} of {len(tasks.specs)})", err=True)
            rows[spec.name] = work.task(tasks, spec, batch_size)
            _write(out, sheet)
        console.print(f"[bold]{label}[/bold]")
        console.print(task_table(list(rows.values())))


def _named(texts: list[str]) -> dict[str, str]:
    """``NAME=TEXT`` under its name, others as `armor compare` calls them."""
    from armor.cli.compare import text_names

    named: dict[str, str] = {}
    for text in texts:
        name, sign, rest = text.partition("=")
        named |= {name: rest} if sign and not Path(text).exists() else text_names([text])
    if len(named) < len(texts):
        raise ArmorError("two texts of --ppl have one name; write NAME=TEXT")
    return named


def _notes(theirs: Mapping[str, Any]) -> list[str]:
    from armor.compare.paper import sources

    notes = [
        "armor-paper: the paper's objective and targets, solved in closed form; armor: this "
        "project's default. gap left: share of the best baseline's perplexity gap to dense that "
        "remains (worst text); linears: bytes of the decoder's linear layers as stored."
    ]
    if theirs:
        notes += [f"\nPublished {kind}: {source}." for kind, source in sources().items()]
    return notes


def _versions() -> dict[str, str]:
    import platform
    from importlib.metadata import version

    names = ("armor-prune", "torch", "transformers")
    found = ", ".join(f"{name} {version(name)}" for name in names)
    return {"versions": f"{found}, Python {platform.python_version()}"}


def _write(out: Path, sheet: Any) -> None:
    from armor.checkpoint.jsonfile import write_json, write_text

    write_json(out / DATA, sheet.to_dict())
    write_text(out / PAGE, sheet.markdown())
