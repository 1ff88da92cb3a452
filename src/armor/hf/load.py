"""load: a checked checkpoint as a transformers model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from armor.checkpoint.reader import Checkpoint
from armor.models.source import resolve


def load(folder: str | Path, **kwargs: Any) -> Any:
    """The model of an armor checkpoint, a `transformers.PreTrainedModel` in eval mode.

    Args:
        folder: what `prune` wrote, or the id of such a model on the Hugging Face Hub.
        kwargs: for ``AutoModelForCausalLM.from_pretrained``, such as ``dtype`` or ``device_map``.

    Raises:
        ArmorError: not an armor checkpoint, or a damaged one.
    """
    from transformers import AutoModelForCausalLM

    checkpoint = Checkpoint.open(resolve(str(folder)))
    return AutoModelForCausalLM.from_pretrained(checkpoint.folder, **kwargs)
