"""``armor reproduce``: the paper's protocol from end to end, beside its published figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from armor.cli.evaluate import find_tasks
from armor.cli.options import (
    BatchSize,
    BlockSize,
    Bos,
    Calibration,
    Device,
    Limit,
    Log,
    MaxChars,
    Methods,
    Samples,
    Seed,
    TaskDir,
    TensorBoard,
    parse_block,
)
from armor.errors import ArmorError
from armor.versions import versions

if TYPE_CHECKING:
    from armor.compare.row import Row
    from armor.compare.sheet import Sheet
    from armor.evaluation.harness import TaskList

METHODS = "sparsegpt,wanda,nowag,armor-paper,armor"
#: A sample of SlimPajama, which the paper calibrates on.
CALIBRATION = "hf:DKYoon/SlimPajama-6B"
LONGEST = 8192  # tokens a window, where the model's context is not shorter
PAGE, DATA = "reproduction.md", "reproduction.json"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="reproduce")(reproduce_command)


Texts = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME=]TEXT",
        help="Text for perplexity, as of armor eval, or a local copy: wikitext2=FILE. "
        "Default: wikitext2 and c4.",
    ),
]
Tasks = Annotated[
    str, typer.Option(metavar="paper|none|NAME[:SHOTS],...", help="Tasks, as of armor eval.")
]
Window = Annotated[
    int | None,
    typer.Option(metavar="N", min=2, help="Tokens a window (default: context, at most 8192)."),
]
Published = Annotated[
    str | None, typer.Option(metavar="NAME", help="The model in the paper (default: by name).")
]


def reproduce_command(
    what: Annotated[str, typer.Argument(metavar="paper", help="arXiv 2510.05528.")],
    model: Annotated[str, typer.Option(metavar="MODEL", help="A dense model folder or Hub id.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Checkpoints, results and the page.")],
    calibration: Calibration = CALIBRATION,
    ppl: Texts = None,
    tasks: Tasks = "paper",
    task_dir: TaskDir = None,
    methods: Methods = METHODS,
    block_size: BlockSize = "128",
    samples: Samples = 128,
    seq_len: Window = None,
    bos: Bos = "never",
    max_chars: MaxChars = None,
    limit: Limit = None,
    batch_size: BatchSize = 8,
    published: Published = None,
    seed: Seed = 0,
    device: Device = "auto",
    log: Log = None,
    tensorboard: TensorBoard = None,
) -> None:
    """Run the paper's comparison on your model and put the results beside the published ones.

    Prunes with the baselines, the paper's preset and the default, at the paper's block; measures
    perplexity and the paper's tasks; fills DIR/reproduction.md as it goes. Run it again to
    continue after an interruption. Without a network give local texts and tasks.

    Example: [bold]armor reproduce paper --model Qwen/Qwen2.5-7B --out repro[/bold]
    """
    from armor.cli.display import show_comparison
    from armor.compare.checkpoints import DENSE
    from armor.compare.compare import bos_of_model
    from armor.compare.labels import parse_methods
    from armor.compare.sheet import Sheet
    from armor.device import resolve_device
    from armor.evaluation.tasks import parse_tasks
    from armor.models.folder import ModelFolder
    from armor.text.bos import bos_words
    from armor.text.sources import check_text
    from armor.text.windows import check_window, context_length, default_window

    if what != "paper":
        raise ArmorError(f"unknown reproduction {what!r}; valid: paper")
    where = resolve_device(device)
    texts = _texts_by_name(ppl or ["wikitext2", "c4"])
    for text in texts.values():
        check_text(text)
    name, theirs = _published(published, model)
    found = find_tasks([] if tasks == "none" else parse_tasks(tasks, limit), task_dir)
    context = context_length(ModelFolder.open(model).config)
    window = seq_len or default_window(context, LONGEST)
    check_window(window, context)
    bos = bos_of_model(model, bos)
    settings = parse_methods(
        methods,
        calibration=calibration,
        block_size=parse_block(block_size),
        samples=samples,
        seq_len=window,
        bos=bos,
        seed=seed,
    )
    facts = {
        "model": model,
        "in the paper": name or "this model is not among the paper's",
        "calibration": f"{samples} windows of {window} tokens of {calibration}",
        "perplexity": f"windows of {window} tokens, {bos_words(bos == 'always')}, as in calibration"
        + (f", the first {max_chars:,} characters" if max_chars else ""),
        "wrapper block": block_size,
        "device": where,
    }
    facts |= {"tasks": f"the first {limit} documents of each"} if limit else {}
    title = f"{Path(model).name}: ARMOR reproduced"
    labels, specs = [DENSE, *settings], found.specs if found else []
    sheet = Sheet(title, facts | _versions(), labels, list(texts), specs, theirs, _notes(theirs))

    def on_row(rows: list[Row]) -> None:
        sheet.rows = rows
        _write(out, sheet)

    show_comparison(
        model, settings, texts, out, title, window, max_chars, bos, log, tensorboard, where, on_row
    )
    if found:
        _run_tasks(sheet, found, model, out, where, batch_size)
    typer.echo(f"wrote {out / PAGE}")


def _run_tasks(
    sheet: Sheet, tasks: TaskList, model: str, out: Path, device: str, batch_size: int
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


def _texts_by_name(texts: list[str]) -> dict[str, str]:
    """``NAME=TEXT`` under its name, others as `armor compare` calls them."""
    from armor.cli.compare import text_names

    named: dict[str, str] = {}
    for text in texts:
        name, sign, rest = text.partition("=")
        named |= {name: rest} if sign and not Path(text).exists() else text_names([text])
    if len(named) < len(texts):
        raise ArmorError("two texts of --ppl have one name; write NAME=TEXT")
    return named


def _published(name: str | None, model: str) -> tuple[str | None, Mapping[str, Any]]:
    """The paper's name of the model, if it is there, and its figures."""
    from armor.compare import paper

    name = name or paper.same_model(model)
    return name, paper.published(name) if name else {}


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
    found = versions("armor", "torch", "transformers", "python")
    names = {"armor": "armor-prune", "python": "Python"}
    return {"versions": ", ".join(f"{names.get(n, n)} {value}" for n, value in found.items())}


def _write(out: Path, sheet: Sheet) -> None:
    from armor.checkpoint.jsonfile import write_json, write_text

    write_json(out / DATA, sheet.to_dict())
    write_text(out / PAGE, sheet.markdown())
