"""The settings of a run as logs and records show them: with the calibration text by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from armor.text.sources import parse_source

if TYPE_CHECKING:
    from armor.config import PruneConfig


def describe_config(config: PruneConfig) -> dict[str, Any]:
    """`config` as a JSON-ready dict, texts that were given as strings by their number."""
    return config.to_dict() | {"calibration": parse_source(config.calibration).name}


def record_config(config: PruneConfig) -> dict[str, Any]:
    """`config` as a JSON-ready dict, texts that were given as strings by number and SHA-256."""
    return config.to_dict() | {"calibration": parse_source(config.calibration).record()}
