"""Downloading a model from the Hugging Face Hub: its small files, then the weights it names."""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from pathlib import Path

from armor.checkpoint.format import RUN_FILE
from armor.checkpoint.sidecar import CONFIG, is_sidecar
from armor.checkpoint.weights import INDEX, SINGLE, indexed_files
from armor.errors import ArmorError, printable
from armor.hub import hub_failure

_SMALL = (CONFIG, INDEX, RUN_FILE)
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_SECONDS = 10  # for one quick question: the library would try again for half a minute


def download(name: str, check: Callable[[Path], None]) -> Path:
    """The folder in the local cache that holds the model `name` of the Hub, with all its files.

    Of the weights only those are fetched that transformers reads: the files that the index names,
    or model.safetensors. What is in the cache needs no network.

    Args:
        name: OWNER/NAME.
        check: gets the folder when all but the weights are there; may refuse it.

    Raises:
        ArmorError: no such model, no access to it, no network, or no safetensors weights.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HFValidationError

    try:
        cached = try_to_load_from_cache(name, CONFIG)
    except HFValidationError:
        raise ArmorError(
            f"{printable(name)}: no such folder, and not the form of a Hub id, OWNER/NAME"
        ) from None
    try:
        info = HfApi().model_info(name, timeout=_SECONDS)
    except Exception as error:
        if not isinstance(cached, str):
            either = "" if isinstance(error, GatedRepoError) else "; no such folder either"
            raise ArmorError(f"{hub_failure(name, error)}{either}") from error
        folder = Path(cached).parent
        check(folder)
        _check_complete(name, folder, error)
        return folder
    listed = [sibling.rfilename for sibling in info.siblings or ()]
    small = [file for file in listed if file in _SMALL or is_sidecar(file)]
    folder = _fetch(name, small)
    if CONFIG not in listed:
        raise ArmorError(f"{name} is not a model that can be read: it holds no {CONFIG}")
    check(folder)
    wanted = indexed_files(folder)
    if wanted == [SINGLE] and SINGLE not in listed:
        pickled = [file for file in listed if file.endswith(_PICKLED)]
        raise ArmorError(
            f"{name} has no {SINGLE} on the Hub"
            + (
                f", only {pickled[0]}, and pickled weights are never read, as they can run code:"
                " if you trust them, convert them to safetensors with save_pretrained"
                if pickled
                else ": give a model with safetensors weights"
            )
        )
    if _fetch(name, wanted) != folder:
        raise ArmorError(f"{name} was changed on the Hub meanwhile: give the same command again")
    return folder


def _fetch(name: str, files: Sequence[str]) -> Path:
    """These files of the model, in the cache, which remembers them as its newest."""
    from huggingface_hub import snapshot_download

    try:
        patterns = [glob.escape(file) for file in files]
        folder = snapshot_download(name, allow_patterns=patterns)
    except Exception as error:
        raise ArmorError(hub_failure(name, error)) from error
    return Path(folder)


def _check_complete(name: str, folder: Path, error: Exception) -> None:
    """Raise `ArmorError` unless the cache holds all weights; `error`: why no more can be got."""
    missing = [file for file in indexed_files(folder) if not (folder / file).exists()]
    if missing:
        raise ArmorError(
            f"{name}: the local cache lacks {printable(missing[0])}: {hub_failure(name, error)}"
        ) from error
