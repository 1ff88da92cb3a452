"""An output folder that is there already: made by the same command, or by another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from armor.checkpoint.folder import check_output, check_outside
from armor.checkpoint.format import RUN_FILE
from armor.checkpoint.jsonfile import read_json
from armor.checkpoint.plain import plain_run
from armor.checkpoint.reader import Checkpoint, is_checkpoint
from armor.checkpoint.records import LayerRecord
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.run.describe import record_config
from armor.run.manifest import differences, digest
from armor.run.record import VERSIONS
from armor.text.bos import bos_choice
from armor.versions import versions

#: In armor_run.json: the record of a tuning, and in that what was asked for.
TUNING, ASKED = "tuning", "asked"
_START_OVER = "--fresh starts over, or choose another --out"


def check_place(out: Path, model: str | Path, fresh: bool) -> bool:
    """Whether a finished checkpoint is at `out`; before anything is read or written.

    Raises:
        ArmorError: it lies inside the model's folder, or would replace the folder that the model
            lies in, or something that armor did not write is there.
    """
    source = Path(model)
    if source.is_dir():
        check_outside(out, source)
        if fresh and out.resolve() in source.resolve().parents and is_checkpoint(out):
            raise ArmorError(f"--fresh would delete {source}, inside {out}: choose another --out")
    if is_checkpoint(out):
        return True
    check_output(out)
    return False


def finished_records(
    out: Path,
    manifest: Mapping[str, Any],
    config: PruneConfig,
    tuning: Mapping[str, Any] | None = None,
) -> dict[str, LayerRecord]:
    """The records of the finished checkpoint `out`, by layer, if the run of `manifest` wrote it.

    Args:
        tuning: what was asked for of the tuning that followed, None if none did.

    Raises:
        ArmorError: it was made from another input, or is damaged.
    """
    written = read_json(out / RUN_FILE)
    if written.get("run") != digest(manifest):
        raise ArmorError(
            f"{out} exists already and is of another run: {_difference(written, config)};"
            f" {_START_OVER}"
        )
    check_tuning(out, written, tuning)
    try:
        run = Checkpoint.open(out).run if plain_run(out) is None else written
    except ArmorError as error:
        raise ArmorError(f"{error}; {_START_OVER}") from None
    return {name: LayerRecord.read(record) for name, record in run.get("layers", {}).items()}


def check_tuning(out: Path, written: Mapping[str, Any], tuning: Mapping[str, Any] | None) -> None:
    """Raise `ArmorError` unless the record `written` of `out` is of the `tuning` asked for."""
    found = written.get(TUNING)
    then = found.get(ASKED) if isinstance(found, dict) else None
    asked = None if tuning is None else json.loads(json.dumps(tuning))
    if then == asked:
        return
    if then is None or asked is None:
        differs = f"it is {'not ' if then is None else ''}tuned"
    else:
        differs = (differences(then, asked) or ["its tuning differs"])[0]
    raise ArmorError(f"{out} exists already and is of another run: {differs}; {_START_OVER}")


def _difference(written: Mapping[str, Any], config: PruneConfig) -> str:
    """What is known of it, in a phrase; armor_run.json holds no digests of weights and tokens."""
    config_then, versions_then = written.get("config"), written.get("versions")
    if not isinstance(config_then, dict) or not isinstance(versions_then, dict):
        return "its record is damaged"
    now = json.loads(json.dumps(record_config(config)))
    # Earlier versions had other names for it, and before those no choice.
    config_then["bos"] = bos_choice(config_then.get("bos", "never"))
    # The text may be the same under another name; what differs is said first of the rest.
    text = {"calibration": now.pop("calibration")}
    text_then = {"calibration": config_then.pop("calibration", None)}
    names = [name for name in VERSIONS if name in versions_then]
    found = [
        *differences(config_then, now),
        *differences(text_then, text),
        *differences({"version of": versions_then}, {"version of": versions(*names)}),
    ]
    if not found:
        return "the model, the calibration text or armor itself changed"
    return found[0] + (f" (and {len(found) - 1} more)" if len(found) > 1 else "")
