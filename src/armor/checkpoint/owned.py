"""Which folders are armor's own work, and may be replaced when asked to."""

from __future__ import annotations

from pathlib import Path

from armor.checkpoint.format import RUN_FILE
from armor.checkpoint.sidecar import CONFIG, read_config


def is_checkpoint(folder: Path) -> bool:
    """Whether armor wrote `folder` (a link to one does not count)."""
    if folder.is_symlink() or not all((folder / name).is_file() for name in (RUN_FILE, CONFIG)):
        return False
    quantization = read_config(folder).get("quantization_config")
    return isinstance(quantization, dict) and quantization.get("quant_method") == "armor"
