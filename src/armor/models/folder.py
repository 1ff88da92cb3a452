"""ModelFolder: a model's folder, opened and checked before transformers reads any of it."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from armor.checkpoint.files import ModelFiles
from armor.checkpoint.format import short
from armor.checkpoint.sidecar import CONFIG, read_config, sidecar_files
from armor.checkpoint.tensorfile import StoredTensor
from armor.checkpoint.weights import find_weights
from armor.errors import ArmorError, cannot_read, reason
from armor.models.auto import is_causal
from armor.models.download import download
from armor.models.newer_config import adapted_config, in_terms_of_installed, newer_hint

# What a config may ask transformers to build a number of, and how many of them are plausible.
_COUNTS = re.compile(r"^(n|num)_.*(layer|block|expert|label|stage)|(layers|experts|depth)$")
_MOST = 4096


@dataclass(frozen=True)
class ModelFolder:
    """A causal language model on the disk, dense or pruned; nothing but headers and JSON is read.

    It can be sent to other processes, which then need not read the folder again.

    Attributes:
        files: what the folder holds.
        config: its `transformers.PretrainedConfig`. To be left unchanged.
        is_adapted: whether transformers would read another config from the folder; see
            `armor.models.newer_config`.
        weights_alike: whether transformers finds the same weights in the folder; see
            `armor.checkpoint.weights.Weights`.
    """

    files: ModelFiles
    config: Any
    is_adapted: bool = False
    weights_alike: bool = True

    @classmethod
    def open(cls, model: str | Path | ModelFolder, trust_remote_code: bool = False) -> ModelFolder:
        """Find a model and check its files; its weights are not loaded.

        Args:
            model: a folder, or a model id of the Hugging Face Hub, which is downloaded to the local
                cache (or found there). An open folder is given back as it is.
            trust_remote_code: accept a folder with code of its own.

        Raises:
            ArmorError: nothing there; damaged, huge or foreign files; weights that are missing,
                pickled or outside of the folder; code that would have to be run; counts that the
                weights cannot fill; not a causal language model.
        """
        if isinstance(model, ModelFolder):
            return model
        try:
            return cls._open(str(model), trust_remote_code)
        except PermissionError as error:
            raise cannot_read(Path(error.filename or model), error, "") from None

    @classmethod
    def _open(cls, name: str, trust_remote_code: bool) -> ModelFolder:
        def check_before_download(folder: Path) -> None:
            stored = read_config(folder)
            _check_supported(folder, stored, trust_remote_code)
            _transformers_config(folder, stored, stored, trust_remote_code)

        folder = Path(name) if _is_folder(name) else download(name, check_before_download)
        stored = read_config(folder)
        _check_supported(folder, stored, trust_remote_code)
        sidecar_files(folder)
        weights = find_weights(folder)
        _check_counts(folder, stored, len(weights.tensors))
        data = in_terms_of_installed(folder, stored)
        config, is_adapted = _transformers_config(folder, data, stored, trust_remote_code)
        for note in weights.notes:
            logging.getLogger("armor").warning("%s", note)
        files = ModelFiles(folder, data, weights.tensors)
        return cls(files, config, is_adapted, weights.alike_for_transformers)

    @property
    def path(self) -> Path:
        """Where the folder is."""
        return self.files.path

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        """Every stored tensor by its name in the files."""
        return self.files.tensors


@contextmanager
def one_line_errors(action: str) -> Iterator[None]:
    """Quiet transformers, and turn whatever it raises into one `ArmorError`.

    Args:
        action: how the message begins, such as "cannot load the model".
    """
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ArmorError:
        raise
    except BaseException as error:
        # A panic in Rust, where tokenizers are read, is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ArmorError(f"{action}: {type(error).__name__}: {reason(error)}") from error
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def refused_if_fails(what: str) -> Iterator[None]:
    """`one_line_errors` for a model that armor may not understand: what it raises is no remedy.

    Args:
        what: how the message begins, such as "the model cannot be run".
    """
    try:
        with one_line_errors(what):
            yield
    except ArmorError as error:
        out_of_memory = isinstance(error.__cause__, (MemoryError, torch.OutOfMemoryError))
        if error.__cause__ is None or out_of_memory:
            raise
        raise ArmorError(f"{what}: such a model is not supported") from error.__cause__


def _is_folder(name: str) -> bool:
    """Whether this is a model's folder; otherwise it may be a Hub id.

    Raises:
        ArmorError: a folder without config.json, or a file.
    """
    path = Path(name)
    if path.is_dir():
        if not (path / CONFIG).is_file():
            raise ArmorError(f"{name} is not a model folder: it holds no config.json")
        return True
    if path.exists():
        raise ArmorError(f"{name} is a file; give the model's folder or a Hub id")
    return False


def _check_supported(folder: Path, config: dict[str, Any], trust_remote_code: bool) -> None:
    """Raise `ArmorError` for folders that need what armor does not do, such as running code."""
    if (folder / "adapter_config.json").exists():
        raise ArmorError(
            f"{folder} holds an adapter: merge it into its model first, for example with peft's"
            " merge_and_unload"
        )
    if config.get("transformers_weights") is not None:
        raise ArmorError(
            f"{folder}: config.json names a weights file of its own (transformers_weights), which"
            " is not supported: delete that line and name the file model.safetensors"
        )
    if config.get("auto_map") and not trust_remote_code and not _is_known(config.get("model_type")):
        raise ArmorError(
            f"{folder}: model type {short(config.get('model_type'))} needs code from the model's"
            " folder, which armor does not run: use a version of transformers that knows the type"
        )
    # Older versions of transformers run it from a local folder even without trust_remote_code.
    if (folder / "custom_generate").exists() and not trust_remote_code:
        raise ArmorError(
            f"{folder} holds code for generation (custom_generate), which armor does not run:"
            " delete that folder"
        )


def _check_counts(folder: Path, config: dict[str, Any], tensors: int) -> None:
    """Raise `ArmorError` if the config asks for more layers or experts than there are tensors."""
    for key, value in _numbers(config):
        if value > max(_MOST, tensors) and _COUNTS.search(key):
            raise ArmorError(
                f"{folder}: config.json says {short(key)} is {short(value)}, more than its"
                f" {tensors} tensors can fill: copy or download the model again"
            )


def _transformers_config(
    folder: Path, data: dict[str, Any], stored: dict[str, Any], trust_remote_code: bool
) -> tuple[Any, bool]:
    """The config of the model, and whether transformers would read another; see `adapted_config`.

    Raises:
        ArmorError: it cannot be read, or is not a causal language model's.
    """
    from transformers import AutoConfig

    try:
        with one_line_errors(f"cannot read the config of {folder}"):
            adapted = adapted_config(folder, data, stored)
            config = adapted or AutoConfig.from_pretrained(
                str(folder), trust_remote_code=trust_remote_code
            )
    except ArmorError as error:
        raise ArmorError(f"{error}{newer_hint(data)}") from error
    names = getattr(config, "architectures", None) or []
    if not is_causal(config, names):
        raise ArmorError(
            f"{folder} is not a causal language model: architectures {short(names)}; "
            "only models with a decoder-only text part can be pruned and evaluated"
        )
    return config, adapted is not None


def _numbers(config: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """Every whole number in a config, with the key that it, or its list, has."""
    if isinstance(config, dict):
        for name, value in config.items():
            yield from _numbers(value, name)
    elif isinstance(config, list):
        for value in config:
            yield from _numbers(value, key)
    elif isinstance(config, int):
        yield key, config


def _is_known(model_type: Any) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return isinstance(model_type, str) and model_type in CONFIG_MAPPING_NAMES
