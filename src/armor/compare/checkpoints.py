"""The checkpoints of a comparison: one folder a label, made once for the same input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from armor.checkpoint.inspect import inspect
from armor.checkpoint.jsonfile import read_json, write_json
from armor.checkpoint.plain import PLAIN, plain_run
from armor.checkpoint.reader import is_checkpoint
from armor.compare.row import Row
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.evaluation.record import key_of, model_id
from armor.models.folder import ModelFolder
from armor.run.describe import describe_config
from armor.run.plan import LayerPlan
from armor.run.prune import Progress, prune
from armor.run.shared import Shared
from armor.text.source import TextLike
from armor.text.sources import parse_source

RESULTS = "results.json"
DENSE = "dense"


class Checkpoints:
    """The folder of a comparison and its results.json.

    The file holds ``model``, ``seq_len``, ``max_chars``, ``bos``, ``texts`` (by name, as
    `Source.record`), ``rows`` (as `Row.to_dict`, of the last call) and ``pruned``: for each label
    ever begun, what it was made of and what came out.
    """

    def __init__(self, out: Path, model: str) -> None:
        self.out = out
        self.model = model
        self._model_id = model_id(ModelFolder.open(model).path)
        self._file = out / RESULTS
        self._pruned: dict[str, Any] = {}
        if self._file.is_file():
            with suppress(ArmorError):  # damaged: about to be replaced
                known = read_json(self._file).get("pruned")
                entries = known.items() if isinstance(known, dict) else ()
                self._pruned = {label: it for label, it in entries if isinstance(it, dict)}
        self._head: dict[str, Any] = {"model": model, "rows": []}

    def is_done(self, label: str, config: PruneConfig) -> bool:
        """Whether the checkpoint of `label` is there, made of the same input."""
        folder = self.out / label
        known = self._pruned.get(label, {})
        return (
            known.get("key") == self._key(config)
            and is_checkpoint(folder)
            and known.get("model_id") == model_id(folder)
        )

    def prune(
        self, label: str, config: PruneConfig, device: str, progress: Progress, shared: Shared
    ) -> None:
        """Make the checkpoint of `label`; an interrupted run of the same input is resumed."""
        folder = self.out / label
        key = self._key(config)
        begun = self._pruned.get(label, {}).get("key") == key
        self._pruned[label] = {"key": key, "config": describe_config(config)}
        self._save()
        fresh = not begun or is_checkpoint(folder)
        result = prune(self.model, config, folder, fresh, device, progress=progress, shared=shared)
        if (plain := plain_run(result.out)) is None:
            totals = inspect(result.out)["totals"]
        else:
            totals = {"bytes": plain[PLAIN]["compact_bytes"], **plain[PLAIN]}
        # Linears left dense count as they are, so that every row speaks of the same ones.
        left = _parameters(result.plans, dense=True)
        left *= totals["dense_bytes"] // _parameters(result.plans, dense=False)
        self._pruned[label] |= {
            "model_id": model_id(folder),
            "linear_bytes": totals["bytes"] + left,
            "dense_linear_bytes": totals["dense_bytes"] + left,
            "seconds": result.seconds,
        }
        self._save()

    def sizes(self, label: str) -> dict[str, Any]:
        """The bytes and seconds of a `Row`; zeros for the dense model."""
        known = self._pruned.get(label, {})
        names = ("linear_bytes", "dense_linear_bytes", "seconds")
        return {name: known.get(name, 0) for name in names}

    def write(
        self,
        rows: Sequence[Row],
        texts: Mapping[str, TextLike],
        seq_len: int | None,
        max_chars: int | None,
        bos: str,
    ) -> None:
        """Put `rows` and what they were measured on into results.json."""
        about = {
            "model": self.model,
            "seq_len": seq_len,
            "max_chars": max_chars,
            "bos": bos,
            "texts": {name: parse_source(text).record() for name, text in texts.items()},
        }
        self._head = {**about, "rows": [row.to_dict() for row in rows]}
        self._save()

    def _save(self) -> None:
        write_json(self._file, {**self._head, "pruned": self._pruned})

    def _key(self, config: PruneConfig) -> str:
        settings = config.to_dict() | {"calibration": parse_source(config.calibration).identity()}
        # What earlier versions made stays known: by the names that these choices had.
        if config.bos == "never":
            del settings["bos"]
        elif config.bos == "always":
            settings["bos"] = "yes"
        return key_of(self._model_id, settings)


def _parameters(plans: Sequence[LayerPlan], dense: bool) -> int:
    return sum(plan.shape[0] * plan.shape[1] for plan in plans if plan.dense == dense)
