"""What can be said of a checkpoint before a worker starts, so that a refusal reaches the user."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import transformers.quantizers.auto  # noqa: F401 (first: importing it registers armor)

from armor.checkpoint.reader import Checkpoint
from armor.errors import ArmorError
from armor.hf.config import ArmorConfig
from armor.hf.quantizer import ArmorQuantizer
from armor.hub import hub_failure
from armor.models.folder import ModelFolder, one_line_errors
from armor.models.load import check_ignored, empty_model
from armor.models.renaming import ConvertedTensor, find_stored
from armor.models.tied import tied_names
from armor.vllm.degrees import refuse_rounded


@cache
def open_checkpoint(model: str, revision: str | None) -> Checkpoint:
    """The checkpoint that vLLM calls `model`, opened once a process.

    Args:
        model: a folder, or the id of a model on the Hugging Face Hub, downloaded where it is not in
            the local cache.
        revision: of the latter; None is the newest.

    Raises:
        ArmorError: no such model, a damaged one, or one with rounded cores.
    """
    checkpoint = Checkpoint.open(_folder(model, revision))
    refuse_rounded(checkpoint)
    return checkpoint


def check(model: str, revision: str | None) -> Checkpoint:
    """`open_checkpoint`, and whether it has all tensors of its model, of the right shapes.

    vLLM itself counts no tensors of a quantised model: what is missing would stay random.

    Raises:
        ArmorError: a tensor is missing or misshapen, or one would be ignored.
    """
    checkpoint = open_checkpoint(model, revision)
    folder = ModelFolder.open(checkpoint.folder)
    empty = empty_model(folder)
    with one_line_errors(f"{checkpoint.folder}: config.json describes another model"):
        ArmorQuantizer(ArmorConfig(**folder.files.config["quantization_config"])).swap_layers(empty)
    found = find_stored(empty, checkpoint.tensors)
    tied = {name: group for group in tied_names(empty) for name in group}
    for name, tensor in empty.state_dict().items():
        _check_tensor(checkpoint.folder, name, tensor, found, tied.get(name, [name]))
    used = [
        stored
        for whole in found.values()
        for stored in (
            [part for *_, part in whole.parts] if isinstance(whole, ConvertedTensor) else [whole]
        )
    ]
    read = {(stored.path, stored.offset) for stored in used}
    stray = [n for n, s in checkpoint.tensors.items() if (s.path, s.offset) not in read]
    check_ignored(folder, empty, stray)
    return checkpoint


def _check_tensor(folder: Path, name: str, tensor: Any, found: Any, names: list[str]) -> None:
    """Raise `ArmorError` unless one of `names`, all of the same tensor, is found in its shape."""
    stored = next((found[same] for same in names if same in found), None)
    if stored is None:
        raise ArmorError(f"{folder} lacks the tensor {name}: copy or download it again")
    if not isinstance(stored, ConvertedTensor) and stored.shape != tuple(tensor.shape):
        raise ArmorError(
            f"{folder}: tensor {name} is {stored.shape}, its model has {tuple(tensor.shape)}:"
            " copy or download it again"
        )


def _folder(model: str, revision: str | None) -> Path:
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, revision=revision))
    except Exception as error:
        raise ArmorError(hub_failure(model, error)) from error
