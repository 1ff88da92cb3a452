"""``armor prune``: the main job."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from armor.cli.generalisation import generalisation_lines
from armor.cli.options import (
    BlockSize,
    Bos,
    Calibration,
    Device,
    Log,
    Seed,
    SeqLen,
    TensorBoard,
    parse_block,
)
from armor.cli.recording import default_log, recording
from armor.cli.tune import print_summary, tune_progress
from armor.config import OBJECTIVES, PRESETS, SOLVERS, TARGETS, PruneConfig
from armor.engines.registry import ENGINES
from armor.errors import ArmorError
from armor.methods import METHODS, packed_methods
from armor.recipe import read_recipe, write_recipe
from armor.sparse.levels import CORES, WRAPPERS
from armor.tuning.config import OFF, TUNINGS, TuneConfig

if TYPE_CHECKING:
    from armor.run.plan import LayerPlan
    from armor.run.prune import PruneResult


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="prune")(prune_command)


def _choices(values: Iterable[str]) -> str:
    return "|".join(values)


Preset = Annotated[
    str,
    typer.Option(metavar=_choices(PRESETS), help="fast: a first look; paper: the paper's choices."),
]
Method = Annotated[
    str, typer.Option(metavar=_choices(packed_methods()), help="armor, or a baseline to compare.")
]
Objective = Annotated[
    str | None, typer.Option(metavar=_choices(OBJECTIVES), help="Input statistics used.")
]
Target = Annotated[
    str | None,
    typer.Option(metavar=_choices(TARGETS), help="Undo the error of earlier layers, or not."),
]
Solver = Annotated[
    str | None, typer.Option(metavar=_choices(SOLVERS), help="How a matrix is factorised.")
]
Iterations = Annotated[
    int | None, typer.Option(metavar="N", help="At most so many solver iterations.")
]
Sparsity = Annotated[
    str,
    typer.Option(metavar="N:M|P%", help="Sparsity of the core: 2:4, 4:8, ... or 50% anywhere."),
]
Core = Annotated[
    str | None,
    typer.Option(
        metavar=_choices(CORES),
        help="Round the core to so few bits, inside the solver (docs/quantisation.md).",
    ),
]
Wrappers = Annotated[
    str | None,
    typer.Option(metavar=_choices(WRAPPERS), help="Round the wrappers of a rounded core, too."),
]
OverheadBudget = Annotated[
    float, typer.Option(metavar="SHARE", help="Most that wrappers may add, for auto.")
]
Size = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="Bytes of all pruned layers over dense ones, such as 0.62: blocks, and which layers"
        " stay dense, are chosen for it by what each is worth to the model (docs/budget.md).",
    ),
]
PresetSamples = Annotated[
    int | None,
    typer.Option(metavar="N", help="Calibration windows (default: 128; fast: 24)."),
]
Include = Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Prune only these layers.")]
Exclude = Annotated[
    list[str] | None, typer.Option(metavar="GLOB", help="Leave these layers dense.")
]
Recipe = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="YAML with settings for single layers: docs/recipe.md."),
]
LmHead = Annotated[
    bool, typer.Option("--lm-head", help="Prune the output head, too, if it is not tied.")
]
Engine = Annotated[
    str, typer.Option(metavar=_choices(ENGINES), help="Processes here, or a Ray cluster.")
]
Workers = Annotated[
    int | None,
    typer.Option(metavar="N", help="Processes (default: one per GPU; on the CPU by model size)."),
]
MemoryBudget = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="Activations kept in memory, such as 16GB; the rest goes to files."
    ),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over; replace DIR if armor wrote it.")]
Tune = Annotated[
    str,
    typer.Option(
        metavar=_choices(TUNINGS),
        help="Then train the factors on the dense model's predictions, as armor tune does.",
    ),
]
SaveRecipe = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write the block of every layer as a recipe."),
]


def prune_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder or Hub id.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The new checkpoint folder.")],
    calibration: Calibration = "",
    preset: Preset = "default",
    method: Method = "armor",
    objective: Objective = None,
    target: Target = None,
    solver: Solver = None,
    iterations: Iterations = None,
    pattern: Sparsity = "2:4",
    core: Core = None,
    wrappers: Wrappers = None,
    block_size: BlockSize = "auto",
    overhead_budget: OverheadBudget = 0.10,
    size: Size = None,
    samples: PresetSamples = None,
    seq_len: SeqLen = None,
    bos: Bos = "auto",
    include: Include = None,
    exclude: Exclude = None,
    recipe: Recipe = None,
    lm_head: LmHead = False,
    tune: Tune = OFF,
    seed: Seed = 0,
    device: Device = "auto",
    engine: Engine = "local",
    workers: Workers = None,
    memory_budget: MemoryBudget = None,
    fresh: Fresh = False,
    save_recipe: SaveRecipe = None,
    log: Log = None,
    tensorboard: TensorBoard = None,
) -> None:
    """Prune a causal language model to 2:4 or another sparsity, in one shot.

    Interrupted, killed or out of disk? Give the same command again: finished layers are kept.

    Example: [bold]armor prune Qwen/Qwen2.5-0.5B --calibration text.txt --out qwen-armor[/bold]
    """
    if method in METHODS and METHODS[method].is_plain:
        raise ArmorError(
            f"{method} is there to be compared with: its weights are stored dense, in files that"
            f" are no smaller; armor compare --methods {method} measures it"
        )
    changes: dict[str, Any] = {
        "objective": objective,
        "target": target,
        "solver": solver,
        "iterations": iterations,
        "samples": samples,
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
        core=core,
        wrappers=wrappers,
        block_size=parse_block(block_size),
        overhead_budget=overhead_budget,
        size=size,
        bos=bos,
        include=include or (),
        exclude=exclude or (),
        seed=seed,
    )
    from armor.memory import parse_bytes

    if tune not in TUNINGS:
        raise ArmorError(f"unknown --tune {tune!r}; valid: {', '.join(TUNINGS)}")
    budget = None if memory_budget is None else parse_bytes(memory_budget)
    _run(
        model,
        config,
        out,
        save_recipe,
        None if tune == OFF else TuneConfig(tune, seed=seed),
        log,
        tensorboard,
        fresh=fresh,
        device=device,
        engine=engine,
        workers=workers,
        memory_budget=budget,
    )


def _run(
    model: str,
    config: PruneConfig,
    out: Path,
    save_recipe: Path | None,
    tuning: TuneConfig | None,
    log: str | None,
    tensorboard: Path | None,
    **where: Any,
) -> None:
    """Prune, and maybe tune, with a live display and a log, then print a summary.

    Args:
        where: see `prune`.
    """
    from armor.checkpoint.jsonfile import check_file
    from armor.cli.progress import LayerProgress
    from armor.events import combine_progress
    from armor.run.describe import describe_config
    from armor.run.prune import Progress, prune
    from armor.tuning.prune import prune_and_tune

    check_file(save_recipe)
    about = {"model": model, "config": describe_config(config)}
    with (
        recording("prune", out, default_log(out), log, tensorboard, **about) as recorder,
        LayerProgress() as display,
    ):
        progress = combine_progress(display.callbacks(), recorder.progress())
        if save_recipe is not None:
            progress = combine_progress(
                progress, Progress(planned=partial(_save_recipe, save_recipe))
            )
        if tuning is None:
            result, tuned = prune(model, config, out, progress=progress, **where), None
        else:
            result, tuned = prune_and_tune(
                model,
                config,
                tuning,
                out,
                progress=progress,
                tuning_progress=tune_progress(recorder, display),
                **where,
            )
    _print_summary(result, config.size)
    if tuned is not None and not result.found:
        print_summary(tuned)


def _save_recipe(path: Path, plans: list[LayerPlan]) -> None:
    write_recipe(path, {plan.name: plan.rules() for plan in plans})


def _print_summary(result: PruneResult, size: float | None) -> None:
    from rich.console import Console

    from armor.checkpoint.format import RUN_FILE
    from armor.checkpoint.generalisation import generalisation
    from armor.checkpoint.jsonfile import read_json
    from armor.checkpoint.loss_ratio import mean_loss_ratio
    from armor.run.pipeline import FEW_TOKENS

    console = Console(highlight=False)
    if result.found:
        console.print(
            f"[bold]{result.out}[/bold] is complete: this command made it; --fresh starts over"
        )
        return
    for note, names in _notes(result.plans).items():
        console.print(f"[yellow]note[/yellow] {names}: {note}")
    few = [record for record in result.records.values() if record.note.startswith(FEW_TOKENS)]
    if few:
        console.print(
            f"[yellow]note[/yellow] {len(few)} layers of experts saw fewer tokens than they have"
            " inputs: give more calibration text (--samples)"
        )
    summary = f"{len(result.records)} layers in {result.seconds:.1f} s"
    mean = mean_loss_ratio(result.records.values())
    if mean is not None:
        summary += f", proxy loss {mean:.3f} of NoWag-P's (geometric mean)"
    run = read_json(result.out / RUN_FILE)
    lines = generalisation_lines(generalisation(result.records.values()), run["config"])
    console.print("\n".join([summary, *lines, f"wrote [bold]{result.out}[/bold]"]))
    if size is not None:
        reached = run["budget"]["reached"]
        print(f"size {reached:.4f} of the dense layers, {size:g} asked for")


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
