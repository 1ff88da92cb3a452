"""From what the user typed to a folder with the model's files."""

from __future__ import annotations

from pathlib import Path

from armor.models.load import check_causal

_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.tiktoken", "*.jinja"]


def resolve(path_or_id: str) -> Path:
    """The model's folder: itself, or the Hub model downloaded to the local cache (or found there).

    Raises:
        ArmorError: nothing there, or not a causal language model.
    """
    check_causal(path_or_id)
    folder = Path(path_or_id)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(path_or_id, allow_patterns=_FILES))
