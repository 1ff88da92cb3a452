"""load: a checked checkpoint as a transformers model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from armor.checkpoint.reader import Checkpoint
from armor.models.folder import ModelFolder
from armor.models.load import read_model


def load(folder: str | Path, **kwargs: Any) -> Any:
    """The model of an armor checkpoint, a `transformers.PreTrainedModel` in eval mode.

    Args:
        folder: what `prune` wrote, or the id of such a model on the Hugging Face Hub.
        kwargs: for ``AutoModelForCausalLM.from_pretrained``, such as ``dtype`` or ``device_map``.
            Code in the folder is run only with ``trust_remote_code=True``.

    Raises:
        ArmorError: not an armor checkpoint, or a damaged one.
    """
    kwargs.setdefault("trust_remote_code", False)
    opened = ModelFolder.open(folder, kwargs["trust_remote_code"])
    Checkpoint.of(opened.files)
    return read_model(opened, **kwargs)
