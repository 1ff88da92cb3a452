"""Events as TensorBoard scalars: losses layer by layer, and each layer's way down."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from armor.checkpoint.jsonfile import plain
from armor.errors import ArmorError


class TensorBoard:
    """Writes into ``folder/label``, for events without a label into ``folder/name``.

    Raises:
        ArmorError: the tensorboard package is missing, or the folder cannot be made.
    """

    def __init__(self, folder: Path, name: str) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ArmorError(
                "--tensorboard needs the tensorboard package: "
                "pip install 'armor-prune[tensorboard]'"
            ) from None
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArmorError(f"cannot write to {folder}: {error.strerror}") from None
        self._make = SummaryWriter
        self._folder = folder
        self._name = name
        self._writers: dict[str, Any] = {}

    def write(self, event: Mapping[str, Any]) -> None:
        """Add what the event says as scalars; kinds without numbers leave no trace."""
        try:
            if event["kind"] == "run_started":
                text = json.dumps(plain(event), indent=2, ensure_ascii=False)
                self._writer(event).add_text("run", "\n".join("    " + x for x in text.split("\n")))
            elif event["kind"] == "layer_finished":
                self._layer(event)
            elif event["kind"] == "measured":
                name = f"perplexity/{event['text']}"
                self._writer(event).add_scalar(name, event["perplexity"], 0)
        except OSError as error:
            warning = "no more events go to %s: %s"
            logging.getLogger("armor").warning(warning, self._folder, error.strerror)

    def close(self) -> None:
        """Flush and close the files."""
        for writer in self._writers.values():
            writer.close()

    def _writer(self, event: Mapping[str, Any]) -> Any:
        name = event.get("label", self._name)
        if name not in self._writers:
            self._writers[name] = self._make(str(self._folder / name), purge_step=0)
        return self._writers[name]

    def _layer(self, event: Mapping[str, Any]) -> None:
        writer, number = self._writer(event), event["number"]
        end = datetime.fromisoformat(event["time"]).timestamp()
        writer.add_scalar("layers/relative_loss", event["loss"], number, end)
        writer.add_scalar("layers/seconds", event["seconds"], number, end)
        for baseline in ("nowag", "sparsegpt"):
            if base := event[f"{baseline}_loss"]:
                writer.add_scalar(f"layers/loss_over_{baseline}", event["loss"] / base, number, end)
        begin = end - event["seconds"]
        for step, (loss, after) in enumerate(zip(event["losses"], event["times"], strict=True)):
            writer.add_scalar(f"loss/{event['layer']}", loss, step, begin + after)
