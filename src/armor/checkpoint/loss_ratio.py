"""Losses against NoWag-P's: of one layer, and the mean over many that every summary shows."""

from __future__ import annotations

import math
from collections.abc import Iterable

from armor.checkpoint.records import LayerRecord


class GeometricMean:
    """Of the positive, finite values among those added."""

    def __init__(self, values: Iterable[float] = ()) -> None:
        self._logs = 0.0
        self._count = 0
        for value in values:
            self.add(value)

    def add(self, value: float) -> None:
        """Take one more value into account."""
        if value > 0 and math.isfinite(value):
            self._logs += math.log(value)
            self._count += 1

    @property
    def value(self) -> float | None:
        """The mean so far; None without a value."""
        return math.exp(self._logs / self._count) if self._count else None


def loss_ratio(record: LayerRecord) -> float | None:
    """A layer's loss over NoWag-P's; None where either is unknown, or NoWag-P's is zero."""
    if record.loss is None or not record.nowag_loss:
        return None
    return record.loss / record.nowag_loss


def mean_loss_ratio(records: Iterable[LayerRecord]) -> float | None:
    """The geometric mean of the `loss_ratio` of the layers, zeros left out; None without any."""
    return GeometricMean(r for record in records if (r := loss_ratio(record)) is not None).value
