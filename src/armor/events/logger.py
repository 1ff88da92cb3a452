"""Events as lines for people, through the standard logging module under the name "armor"."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any


class Logger:
    """Logs each event: layers that begin as DEBUG, all else as INFO."""

    def __init__(self) -> None:
        self._logger = logging.getLogger("armor")

    def write(self, event: Mapping[str, Any]) -> None:
        """Log one line."""
        level = logging.DEBUG if event["kind"] == "layer_started" else logging.INFO
        if self._logger.isEnabledFor(level):
            self._logger.log(level, "%s", describe(event))

    def close(self) -> None:
        """Nothing to do."""


def describe(event: Mapping[str, Any]) -> str:
    """One line that says what happened."""
    label = f"{event['label']}: " if "label" in event else ""
    kind = event["kind"]
    if kind == "run_started":
        text = f"{event['command']} {event.get('model', '')} -> {event.get('out', '')}"
    elif kind == "run_planned":
        dense = len(event["dense_layers"])
        weights = event["weights"] / 1e6
        text = f"{event['layers']} layers to prune ({weights:.2f} M weights), {dense} stay dense"
    elif kind == "run_resumed":
        text = f"{len(event['finished'])} layers were finished before"
        if event["damaged"]:
            text += f", {len(event['damaged'])} are damaged and done again"
    elif kind == "layer_started":
        text = event["layer"]
    elif kind == "layer_finished":
        text = f"{event['number']}/{event['layers']} {event['layer']}: loss {event['loss']:.4g}"
        if event["nowag_loss"]:
            text += f", {event['loss'] / event['nowag_loss']:.3f} of NoWag-P's"
        if event["losses"]:
            text += f", {len(event['losses']) - 1} iterations"
        text += f", {event['seconds']:.2f} s"
    elif kind == "measured":
        text = f"perplexity {event['perplexity']:.4f} on {event['text']}"
    elif kind == "run_finished":
        memory = event["peak_memory_bytes"] / 1e9
        text = f"finished in {event['seconds']:.1f} s, at most {memory:.2f} GB of memory"
    elif kind == "run_failed":
        text = f"failed after {event['seconds']:.1f} s: {event['error']}"
    else:
        text = kind.replace("_", " ")
    return label + text
