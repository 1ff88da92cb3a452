"""``armor tune``: train the factors of a pruned model on the dense one's predictions."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from armor.cli.options import Device, Log, Seed, SeqLen, TensorBoard
from armor.cli.recording import default_log, recording
from armor.engines.registry import ENGINES
from armor.tuning.config import BLOCK, FULL, STEPS, TuneConfig

if TYPE_CHECKING:
    from armor.cli.progress import LayerProgress
    from armor.events import Recorder
    from armor.tuning.plan import Plan
    from armor.tuning.tune import TuneProgress, TuneResult


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="tune")(tune_command)


def tune_command(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A folder armor prune wrote.")],
    reference: Annotated[
        str, typer.Option(metavar="DENSE", help="The model it was made of: folder or Hub id.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The new checkpoint folder.")],
    calibration: Annotated[
        str,
        typer.Option(
            metavar="FILE|hf:NAME[:CONFIG]|self",
            help="Text to train on, as for armor prune (default: that of the pruning).",
        ),
    ] = "",
    samples: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Windows of the text (default: as many as the steps can see once)."
        ),
    ] = None,
    seq_len: SeqLen = None,
    bos: Annotated[
        str | None,
        typer.Option(
            metavar="auto|always|never", help="As in armor prune (default: as it was there)."
        ),
    ] = None,
    mode: Annotated[
        str,
        typer.Option(
            metavar="|".join(STEPS),
            help="full: end to end; block: two blocks in memory at a time, which wins back less.",
        ),
    ] = FULL,
    steps: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help=f"Steps of the optimiser (default: {STEPS[FULL]}; block: {STEPS[BLOCK]} for two"
            " blocks).",
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(metavar="N", help="Windows of a step (default: as many as 2048 tokens)."),
    ] = None,
    step_size: Annotated[
        float, typer.Option(metavar="SHARE", help="Largest step, of each tensor's size.")
    ] = TuneConfig.step_size,
    seed: Seed = 0,
    device: Device = "auto",
    engine: Annotated[
        str, typer.Option(metavar="|".join(ENGINES), help="Processes here, or a Ray cluster.")
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Processes that share the windows of a step (default: one per GPU)."
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over; replace the new DIR if armor wrote it.")
    ] = False,
    log: Log = None,
    tensorboard: TensorBoard = None,
) -> None:
    """Train the factors of a pruned model on the dense model's predictions.

    Masks, size and speed stay as they are. Windows that are never trained on judge: what does not
    lower their divergence from the dense model is not kept. Interrupted or killed? Give the same
    command again.

    Example: [bold]armor tune qwen-armor --reference Qwen/Qwen2.5-0.5B --out qwen-tuned[/bold]
    """
    config = TuneConfig(
        mode=mode,
        calibration=calibration,
        samples=samples,
        seq_len=seq_len,
        bos=bos,
        steps=steps,
        batch=batch,
        step_size=step_size,
        seed=seed,
    )
    where = {"fresh": fresh, "device": device, "engine": engine, "workers": workers}
    run_tune(folder, reference, config, out, log, tensorboard, **where)


def run_tune(
    folder: str,
    reference: str,
    config: Any,
    out: Path,
    log: str | None,
    tensorboard: Path | None,
    **where: Any,
) -> None:
    """Tune with a live display and a log, then print a summary; `where`: see `tune`."""
    from armor.cli.progress import LayerProgress
    from armor.tuning.tune import tune

    about = {"model": folder, "config": config.to_dict()}
    with (
        recording("tune", out, default_log(out), log, tensorboard, **about) as recorder,
        LayerProgress() as display,
    ):
        progress = tune_progress(recorder, display)
        result = tune(folder, reference, config, out, progress=progress, **where)
    print_summary(result)


def tune_progress(recorder: Recorder, display: LayerProgress) -> TuneProgress:
    """Callbacks that show and record what `armor.tuning.tune.tune` does."""
    from armor.tuning.tune import TuneProgress

    def planned(plan: Plan) -> None:
        display.say(plan.describe())
        recorder.emit("tuning_planned", **asdict(plan))

    def stepped(done: int, total: int, held_out: float, trained: float) -> None:
        display.step(done, total, held_out)
        recorder.emit("step_taken", number=done, steps=total, held_out=held_out, trained=trained)

    return TuneProgress(planned, stepped)


def print_summary(result: TuneResult) -> None:
    """What came of it."""
    from rich.console import Console

    console = Console(highlight=False)
    if result.found:
        console.print(
            f"[bold]{result.out}[/bold] is complete: this command made it; --fresh starts over"
        )
        return
    if result.resumed:
        console.print(f"went on after step {result.resumed} of an interrupted run")
    curve = result.curve
    console.print(
        f"divergence from the dense model on held-out windows {curve.before:.4f} ->"
        f" {curve.after:.4f} nats a token, best after step {curve.best} of {max(curve.held_out)},"
        f" {result.seconds:.1f} s"
    )
    console.print(f"wrote [bold]{result.out}[/bold]")
