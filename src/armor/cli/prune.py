"""``armor prune``: the main job."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from armor.cli.recording import Board, Log, beside, described, recording
from armor.config import OBJECTIVES, PRESETS, SOLVERS, TARGETS, PruneConfig
from armor.errors import ArmorError
from armor.methods import METHODS
from armor.recipe import read_recipe, write_recipe

if TYPE_CHECKING:
    from armor.run.plan import LayerPlan
    from armor.run.prune import PruneResult


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="prune")(prune_command)


def _choices(values: tuple[str, ...]) -> str:
    return "|".join(values)


def prune_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder or Hub id.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The new checkpoint folder.")],
    calibration: Annotated[
        str,
        typer.Option(
            metavar="FILE|hf:NAME[:CONFIG]", help="Text file, .jsonl with 'text', or dataset."
        ),
    ] = "",
    preset: Annotated[
        str, typer.Option(metavar=_choices(tuple(PRESETS)), help="paper: the paper's choices.")
    ] = "default",
    method: Annotated[
        str, typer.Option(metavar=_choices(tuple(METHODS)), help="armor, or a baseline to compare.")
    ] = "armor",
    objective: Annotated[
        str | None, typer.Option(metavar=_choices(OBJECTIVES), help="Input statistics used.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar=_choices(TARGETS), help="Undo the error of earlier layers, or not."),
    ] = None,
    solver: Annotated[
        str | None, typer.Option(metavar=_choices(SOLVERS), help="How a matrix is factorised.")
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(metavar="N", help="Ceiling on solver iterations.")
    ] = None,
    pattern: Annotated[
        str,
        typer.Option(
            metavar="N:M|P%", help="Sparsity of the core: 2:4, 4:8, ...; 50%: zeros anywhere."
        ),
    ] = "2:4",
    block_size: Annotated[
        str, typer.Option(metavar="auto|N", help="Wrapper block, a multiple of 4.")
    ] = "auto",
    overhead_budget: Annotated[
        float, typer.Option(metavar="SHARE", help="Most that wrappers may add, for auto.")
    ] = 0.10,
    size: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Bytes of all pruned layers over dense ones, such as 0.62: blocks are chosen for"
            " it by what each is worth to the model (docs/budget.md).",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(metavar="N", help="Calibration windows.")] = 128,
    seq_len: Annotated[
        int | None,
        typer.Option(metavar="N", help="Tokens a window (default: the context, at most 2048)."),
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Prune only these layers.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Leave these layers dense.")
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML with settings for single layers: docs/recipe.md."),
    ] = None,
    lm_head: Annotated[
        bool, typer.Option("--lm-head", help="Prune the output head, too, if it is not tied.")
    ] = False,
    seed: Annotated[int, typer.Option(metavar="N", help="Draws the calibration windows.")] = 0,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda", help="Where to compute; auto prefers a GPU.")
    ] = "cpu",
    engine: Annotated[
        str, typer.Option(metavar="local|ray", help="Processes here, or a Ray cluster.")
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", help="Processes (default: one a GPU; on the CPU by the size)."),
    ] = None,
    memory_budget: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Activations in memory, such as 16GB; more go to files."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over; replace DIR if armor wrote it.")
    ] = False,
    save_recipe: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the block of every layer as a recipe."),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the run's record here, too.")
    ] = None,
    log: Log = None,
    tensorboard: Board = None,
) -> None:
    """Prune a causal language model to 2:4 or another sparsity, in one shot.

    Interrupted, killed or out of disk? The same command goes on where it stopped.

    Example: [bold]armor prune Qwen/Qwen2.5-0.5B --calibration text.txt --out qwen-armor[/bold]
    """
    changes: dict[str, Any] = {
        "objective": objective,
        "target": target,
        "solver": solver,
        "iterations": iterations,
        "seq_len": seq_len,
        "lm_head": lm_head or None,
    }
    config = PruneConfig.preset(
        preset,
        **({} if recipe is None else read_recipe(recipe))
        | {name: value for name, value in changes.items() if value is not None},
        calibration=calibration,
        method=method,
        pattern=pattern,
        block_size=parse_block(block_size),
        overhead_budget=overhead_budget,
        size=size,
        samples=samples,
        include=include or (),
        exclude=exclude or (),
        seed=seed,
    )
    from armor.checkpoint.format import RUN_FILE
    from armor.checkpoint.jsonfile import check_file, read_json, write_json
    from armor.cli.progress import LayerProgress
    from armor.events import both
    from armor.memory import parse_bytes
    from armor.run.prune import Progress, prune

    check_file(json)
    check_file(save_recipe)
    about = {"model": model, "config": described(config)}
    with (
        recording("prune", out, beside(out), log, tensorboard, **about) as recorder,
        LayerProgress() as display,
    ):
        progress = both(display.callbacks(), recorder.progress())
        if save_recipe is not None:
            progress = both(progress, Progress(planned=partial(_save_recipe, save_recipe)))
        result = prune(
            model,
            config,
            out,
            fresh=fresh,
            device=device,
            progress=progress,
            engine=engine,
            workers=workers,
            memory_budget=None if memory_budget is None else parse_bytes(memory_budget),
        )
    _report(result)
    if size is not None:
        reached = read_json(out / RUN_FILE)["budget"]["reached"]
        print(f"size {reached:.4f} of the dense layers, {size:g} asked for")
    if json is not None:
        write_json(json, read_json(out / RUN_FILE))


def _save_recipe(path: Path, plans: list[LayerPlan]) -> None:
    write_recipe(path, {plan.name: plan.rules() for plan in plans})


def parse_block(text: str) -> int | None:
    """``auto`` -> None, a number -> itself."""
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        raise ArmorError(f"--block-size {text!r} is neither auto nor a number") from None


def _report(result: PruneResult) -> None:
    from math import exp, log

    from rich.console import Console

    from armor.run.pipeline import FEW_TOKENS

    console = Console(highlight=False)
    for note, names in _notes(result.plans).items():
        console.print(f"[yellow]note[/yellow] {names}: {note}")
    few = [record for record in result.records.values() if record.note.startswith(FEW_TOKENS)]
    if few:
        console.print(
            f"[yellow]note[/yellow] {len(few)} layers of experts saw fewer tokens than they have"
            " inputs: give more calibration text (--samples)"
        )
    ratios = [
        record.loss / record.nowag_loss
        for record in result.records.values()
        if record.loss > 0 and record.nowag_loss > 0
    ]
    summary = f"{len(result.records)} layers in {result.seconds:.1f} s"
    if ratios:
        mean = exp(sum(map(log, ratios)) / len(ratios))
        summary += f", proxy loss {mean:.3f} of NoWag-P's (geometric mean)"
    console.print(f"{summary}\nwrote [bold]{result.out}[/bold]")


def _notes(plans: list[LayerPlan]) -> dict[str, str]:
    """Each note once, with the layers it concerns."""
    found: dict[str, list[str]] = {}
    for plan in plans:
        if plan.note:
            found.setdefault(plan.note, []).append(plan.name)
    return {
        note: names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        for note, names in found.items()
    }
