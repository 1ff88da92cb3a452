"""prune_and_tune: a dense model in, a pruned and tuned checkpoint out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from armor.checkpoint.folder import full_disk, unfinished_folder
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.run.finished import check_place
from armor.run.prune import Progress, PruneResult, prune
from armor.tuning.config import FULL, TuneConfig
from armor.tuning.tune import ROUNDED, TuneProgress, TuneResult, asked_for, curve_of, tune


def prune_and_tune(
    model: str | Path,
    config: PruneConfig,
    tuning: TuneConfig,
    out: str | Path,
    fresh: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
    tuning_progress: TuneProgress | None = None,
    **where: Any,
) -> tuple[PruneResult, TuneResult]:
    """`prune`, then `tune` on the dense model: the same call goes on wherever it was interrupted.

    The pruned checkpoint lies in the hidden folder of `out` until the tuned one is there.

    Args:
        tuning_progress: callbacks of the tuning. where: further arguments of `prune`.

    Raises:
        ArmorError: see both.
    """
    if config.core is not None or any("core" in rules for rules in config.overrides.values()):
        raise ArmorError(f"{ROUNDED}: leave out --tune or the core")
    out = Path(out).absolute()
    if check_place(out, model, fresh) and not fresh:
        found = prune(
            model, config, out, device=device, progress=progress, tuning=asked_for(tuning), **where
        )
        return found, TuneResult(out, curve_of(out), found.seconds, found=True)
    between = unfinished_folder(out) / "pruned"
    with full_disk(out.parent):
        between.parent.mkdir(parents=True, exist_ok=True)
    pruned = prune(model, config, between, fresh, device, progress, **where)
    engine = where.get("engine", "local") if tuning.mode == FULL else "local"
    tuned = tune(between, model, tuning, out, fresh, device, tuning_progress, engine)
    return replace(pruned, out=out), tuned
