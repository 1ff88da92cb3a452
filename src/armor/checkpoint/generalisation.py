"""Errors on held-out windows against those on fitted ones: of one layer, and the mean over many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from armor.checkpoint.loss_ratio import GeometricMean
from armor.checkpoint.records import LayerRecord

#: Above this mean ratio, more calibration text would help.
TOO_LITTLE_TEXT = 1.5


def error_ratio(record: LayerRecord) -> float | None:
    """A layer's held-out error over its fitted one; None where either is unknown, or nothing is
    missed of what was fitted."""
    if record.held_out_error is None or not record.fitted_error:
        return None
    return record.held_out_error / record.fitted_error


def generalisation(records: Iterable[LayerRecord]) -> float | None:
    """The geometric mean of the `error_ratio` of the layers, zeros left out; None without any."""
    return GeometricMean(r for record in records if (r := error_ratio(record)) is not None).value


def calibration_tokens(config: Mapping[str, Any]) -> int | None:
    """How many tokens a run was given, by its recorded settings; None where they do not say."""
    samples, seq_len = config.get("samples"), config.get("seq_len")
    if type(samples) is not int or type(seq_len) is not int:
        return None
    return samples * seq_len
