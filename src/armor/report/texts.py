"""Whether a figure was measured on the text that the model was calibrated on, going by names."""

from __future__ import annotations

import os
from pathlib import PurePath
from typing import Any

from armor.text.sources import parse_source

FIT = "calibration text (fit)"
OTHER = "other text"


def measured_on(calibration: Any, text: Any) -> str | None:
    """`FIT`, `OTHER`, or None where it cannot be known.

    Args:
        calibration, text: as `armor.text.source.Source.record` writes them down.
    """
    if isinstance(calibration, dict) and isinstance(text, dict):
        return FIT if calibration == text else OTHER
    if not (isinstance(calibration, str) and isinstance(text, str) and calibration and text):
        return None
    own, other = parse_source(calibration), parse_source(text)
    if own.has_splits or other.has_splits:
        # Which splits a data set had is not recorded.
        return None if own.name == other.name else OTHER
    if os.path.abspath(own.name) == os.path.abspath(other.name):
        return FIT
    # The same name in another folder may be a copy.
    return None if PurePath(own.name).name == PurePath(other.name).name else OTHER
