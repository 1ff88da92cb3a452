"""Whether another machine can do its part of a run."""

from __future__ import annotations

import socket

from armor.errors import ArmorError
from armor.models.folder import ModelFolder


def check_machine(folder: ModelFolder, code: str, own: str) -> None:
    """Raise `ArmorError` where this machine has other code, or cannot read the model.

    Args:
        code: the hash of the code that opened the run. own: of the code here.
    """
    host = socket.gethostname()
    if code != own:
        raise ArmorError(
            f"{host} has another version of armor: install the same one on every machine"
        )
    if not (folder.path / "config.json").is_file():
        raise ArmorError(
            f"{host} cannot read {folder.path}: the model must be on a folder that every"
            " machine sees under the same path"
        )
