"""load: a checked checkpoint as a transformers model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from armor.checkpoint.reader import Checkpoint


def load(folder: str | Path, **kwargs: Any) -> Any:
    """The model of an armor checkpoint folder, a `transformers.PreTrainedModel` in eval mode.

    Args:
        folder: what `prune` wrote.
        kwargs: for ``AutoModelForCausalLM.from_pretrained``, such as ``dtype`` or ``device_map``.

    Raises:
        ArmorError: not an armor checkpoint, or a damaged one.
    """
    Checkpoint.open(folder)
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(folder), **kwargs)
