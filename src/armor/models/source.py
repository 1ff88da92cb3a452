"""From what the user typed to a folder with the model's files."""

from __future__ import annotations

from pathlib import Path

from armor.models.load import check_causal

_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.tiktoken", "*.jinja"]


def resolve(path_or_id: str, trust_remote_code: bool = False) -> Path:
    """The model's folder: itself, or the Hub model downloaded to the local cache (or found there).

    It is checked (see `check_causal`) before anything but its config.json is read.

    Raises:
        ArmorError: nothing there, or not a causal language model.
    """
    check_causal(path_or_id, trust_remote_code)
    folder = Path(path_or_id)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(path_or_id, allow_patterns=_FILES))
    check_causal(str(folder), trust_remote_code)
    return folder
