"""Loading a model or tokenizer from a folder or the Hub, with every failure as one clear line."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from armor.checkpoint.format import short
from armor.checkpoint.sidecar import check_sidecar
from armor.errors import ArmorError, reason
from armor.models.folder import check_fits, check_folder

_VOCABULARIES = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json")


def load_model(
    path_or_id: str, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> Any:
    """A causal language model in evaluation mode; dense and armor checkpoints alike.

    Only safetensors are read, and no code from the checkpoint is run.

    Args:
        path_or_id: a folder, or a model id of the Hugging Face Hub.
        dtype: dtype of the weights; None keeps the saved one.

    Returns:
        `transformers.PreTrainedModel` on `device`.

    Raises:
        ArmorError: nothing there, not a causal language model, or an unreadable or incomplete
            checkpoint.
    """
    from armor.models.source import resolve

    folder = resolve(path_or_id)
    model = read_model(folder, dtype=dtype or "auto", trust_remote_code=False)
    return model.to(device).eval()


def read_model(folder: Path, **kwargs: Any) -> Any:
    """The model in `folder`, once everything fits: nothing is ever left to chance or unpickled.

    Args:
        folder: what `resolve` gave.
        kwargs: for ``AutoModelForCausalLM.from_pretrained``.

    Raises:
        ArmorError: the folder is refused, or tensors are missing or have the wrong shape.
    """
    from transformers import AutoModelForCausalLM

    check_causal(str(folder), bool(kwargs.get("trust_remote_code")))
    with one_line(f"cannot load {folder}"):
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            **kwargs,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # refused below, with their names
            output_loading_info=True,
        )
    missing = sorted(info["missing_keys"])
    # transformers 5 gives the names with both shapes, 4 the names alone.
    wrong = sorted(k if isinstance(k, str) else k[0] for k in info["mismatched_keys"])
    for names, fault in ((missing, "lacks"), (wrong, "has the wrong shape for")):
        if names:
            raise ArmorError(
                f"{folder} {fault} {len(names)} of the model's tensors, the first {names[0]}; "
                "download or write the checkpoint again"
            )
    return model


def load_tokenizer(path_or_id: str) -> Any:
    """The tokenizer of a folder or Hub id. Raises `ArmorError` where there is none."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = Path(path_or_id)
    _find(path_or_id, "tokenizer_config.json")
    if folder.is_dir():
        check_sidecar(folder)
        # transformers 5 makes an empty tokenizer where the vocabulary is missing.
        if not any(any(folder.glob(name)) for name in _VOCABULARIES):
            raise ArmorError(
                f"{path_or_id} holds no tokenizer; copy the model's tokenizer files there"
            )
    with one_line(f"cannot load the tokenizer of {path_or_id}"):
        try:
            return AutoTokenizer.from_pretrained(path_or_id, trust_remote_code=False)
        except ValueError as error:
            # transformers 5 writes a class name that 4 does not know; tokenizer.json says it all.
            if "TokenizersBackend" not in str(error):
                raise
            return PreTrainedTokenizerFast.from_pretrained(path_or_id)


def check_causal(path_or_id: str, trust_remote_code: bool = False) -> Any:
    """The model's config, with no weights read.

    A folder is checked before (`check_folder`), and that its weights fit the config.

    Raises:
        ArmorError: nothing there, a folder that is refused, an unknown model type, not a causal
            language model, or one far larger than its files.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    _find(path_or_id, "config.json")
    folder = Path(path_or_id)
    tensors = check_folder(folder, trust_remote_code) if folder.is_dir() else None
    with one_line(f"cannot read the config of {path_or_id}"):
        config = AutoConfig.from_pretrained(path_or_id, trust_remote_code=trust_remote_code)
    names = getattr(config, "architectures", None) or []
    causal = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    known = isinstance(names, list) and any(isinstance(n, str) and n in causal for n in names)
    if getattr(config, "is_encoder_decoder", False) or not known:
        raise ArmorError(
            f"{path_or_id} is not a causal language model: architectures {short(names)}; "
            "only decoder-only text models can be pruned and evaluated"
        )
    if tensors is not None:
        with one_line(f"cannot build {path_or_id}"):
            check_fits(config, tensors, folder)
    return config


def _find(path_or_id: str, file: str) -> None:
    """Raise `ArmorError` unless `path_or_id` is a model folder or a Hub id within reach."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    path = Path(path_or_id)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ArmorError(f"{path_or_id} is not a model folder: it holds no config.json")
        return
    if path.exists():
        raise ArmorError(f"{path_or_id} is a file; give the model's folder or a Hub id")
    try:
        if not isinstance(try_to_load_from_cache(path_or_id, file), str):
            # One quick question: from_pretrained would retry for half a minute.
            HfApi().model_info(path_or_id, timeout=10)
    except Exception:
        raise ArmorError(
            f"{path_or_id}: no such folder, and not a Hub id that could be reached"
        ) from None


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Quiet transformers, and turn whatever it raises into one `ArmorError`."""
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
        raise ArmorError(f"{what}: {type(error).__name__}: {reason(error)}") from error
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
