"""Loading a model, its tokenizer, or the model without its weights; each failure is one line."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from armor.checkpoint.format import METHOD, from_metadata
from armor.checkpoint.weights import INDEX
from armor.errors import ArmorError
from armor.models.auto import reading_class
from armor.models.folder import ModelFolder, one_line_errors
from armor.models.stored_dtypes import check_dtypes
from armor.models.tied import untie_own_weights

_VOCABULARIES = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json")
#: A config may describe a little more than is stored: numbers of parameters, bytes of buffers.
_EXTRA_PARAMETERS, _EXTRA_BUFFERS = 1 << 20, 1 << 30
_FOREIGN = 16  # weights to a stored number, in the densest packing of other methods (2 bits)


def load_model(
    model: str | Path | ModelFolder,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> Any:
    """A causal language model in evaluation mode; dense and armor checkpoints alike.

    Only safetensors are read, and no code from the checkpoint is run.

    Args:
        model: a folder, open or not, or a model id of the Hugging Face Hub.
        dtype: dtype of the weights; None keeps the saved one.

    Returns:
        `transformers.PreTrainedModel` on `device`.

    Raises:
        ArmorError: see `ModelFolder.open` and `read_model`.
    """
    loaded = read_model(ModelFolder.open(model), dtype=dtype or "auto", trust_remote_code=False)
    return loaded.to(device).eval()


def read_model(folder: ModelFolder, **kwargs: Any) -> Any:
    """The model in `folder`: every weight is read from its files, or the model is refused.

    Args:
        kwargs: for ``from_pretrained`` of `reading_class`.

    Raises:
        ArmorError: the model cannot be built, tensors are missing or have the wrong shape, or there
            are parts of weights that the model does not know, such as scales.
    """
    empty_model(folder)  # refuses what is far larger than its files
    with one_line_errors(f"cannot load {folder.path}"):
        model, info = _from_pretrained(
            folder,
            **kwargs,
            ignore_mismatched_sizes=True,  # refused below, with their names
            output_loading_info=True,
        )
    missing = sorted(info["missing_keys"])
    # transformers 5 gives the names with both shapes, 4 the names alone.
    wrong = sorted(k if isinstance(k, str) else k[0] for k in info["mismatched_keys"])
    for names, fault in ((missing, "lacks"), (wrong, "has the wrong shape for")):
        if names:
            raise ArmorError(
                f"{folder.path} {fault} {len(names)} of the model's tensors, the first {names[0]}; "
                "download or write the checkpoint again"
            )
    if getattr(model, "quantization_method", METHOD) == METHOD:  # other methods know their own
        check_ignored(folder, model, info["unexpected_keys"])
    return model


def check_ignored(folder: ModelFolder, model: nn.Module, names: Iterable[str]) -> None:
    """Raise `ArmorError` if `model` ignores a stored tensor, no bias, of a linear or an embedding.

    Without it the weight may have other values.
    """
    known = dict(model.named_modules())
    for name in sorted(names):
        owner, _, leaf = name.rpartition(".")
        if isinstance(known.get(owner), (nn.Linear, nn.Embedding)) and leaf != "bias":
            raise ArmorError(
                f"{folder.path} holds {name}, a part of a weight that the model would ignore: use"
                " the original model, in float32, float16 or bfloat16"
            )


def _from_pretrained(folder: ModelFolder, **kwargs: Any) -> Any:
    """transformers' from_pretrained, with the config and the weights that `folder` has."""
    from transformers import GenerationConfig

    if folder.is_adapted:
        kwargs.setdefault("config", copy.deepcopy(folder.config))
    if folder.weights_alike:
        auto = reading_class(folder.config)
        return auto.from_pretrained(folder.path, **kwargs, use_safetensors=True)
    if getattr(folder.config, "quantization_config", None) is not None:
        raise ArmorError(
            f"{folder.path}: transformers would not read the files that {INDEX} names: delete those"
            " that it does not name"
        )
    kwargs.setdefault("config", copy.deepcopy(folder.config))
    kwargs.pop("trust_remote_code", None)
    loaded = (
        reading_class(folder.config)
        ._model_mapping[type(folder.config)]
        .from_pretrained(
            None,
            state_dict={name: stored.load() for name, stored in folder.tensors.items()},
            **kwargs,
        )
    )
    if (folder.path / "generation_config.json").exists():
        loaded[0].generation_config = GenerationConfig.from_pretrained(folder.path)
    return loaded


def load_tokenizer(model: str | Path | ModelFolder) -> Any:
    """The tokenizer of a model. Raises `ArmorError` where there is none, or no such model."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = ModelFolder.open(model)
    path = str(folder.path)
    # transformers 5 makes an empty tokenizer where the vocabulary is missing.
    if not any(any(folder.path.glob(name)) for name in _VOCABULARIES):
        raise ArmorError(f"{path} holds no tokenizer; copy the model's tokenizer files there")
    with one_line_errors(f"cannot load the tokenizer of {path}"):
        try:
            return AutoTokenizer.from_pretrained(
                path, config=copy.deepcopy(folder.config), trust_remote_code=False
            )
        except ValueError as error:
            # transformers 5 writes a class name that 4 does not have; tokenizer.json is enough.
            if "TokenizersBackend" not in str(error):
                raise
            return PreTrainedTokenizerFast.from_pretrained(path)


def empty_model(folder: ModelFolder) -> Any:
    """The model in `folder` without its weights, in float32.

    Parameters are on the meta device and take no memory; buffers that the model computes when it
    is built (rotary frequencies, masks) are there.

    Returns:
        `transformers.PreTrainedModel` in evaluation mode.

    Raises:
        ArmorError: the model cannot be built, is far larger than its files, or see `check_dtypes`.
    """
    with one_line_errors(f"cannot build {folder.path}"):
        stored = _stored_weights(folder)
        with torch.device("cpu"), _parameters_on_meta(8 * stored + _EXTRA_BUFFERS):
            config = copy.deepcopy(folder.config)
            model = reading_class(config).from_config(config, dtype=torch.float32)
    asked = sum(parameter.numel() for parameter in model.parameters())
    # Twice, for tied weights; whatever differs by less is found, by name, when it is loaded.
    if asked > 2 * stored + _EXTRA_PARAMETERS:
        raise ArmorError(
            f"{folder.path}: config.json describes {asked:.3g} parameters, its files hold"
            f" {stored:.3g}: copy or download the model again"
        )
    # Some versions of transformers keep such tables as plain attributes.
    plain = [value for module in model.modules() for value in vars(module).values()]
    tables = [table for table in (*model.buffers(), *plain) if isinstance(table, Tensor)]
    if any(table.is_meta for table in tables):
        beside = sum(table.numel() for table in tables)
        raise ArmorError(
            f"{folder.path}: config.json asks for {beside:.3g} numbers beside the weights: copy or"
            " download the model again"
        )
    check_dtypes(model, folder)
    untie_own_weights(model, folder)
    return model.eval()


def _stored_weights(folder: ModelFolder) -> int:
    """How many weights the stored tensors stand for, at most."""
    count = sum(math.prod(stored.shape) for stored in folder.tensors.values())
    quantization = getattr(folder.config, "quantization_config", None)
    if quantization is None:
        return count
    data = quantization if isinstance(quantization, dict) else quantization.to_dict()
    if data.get("quant_method") != METHOD:
        return _FOREIGN * count
    return count + sum(math.prod(spec.shape) for spec in from_metadata(data).values())


@contextmanager
def _parameters_on_meta(room: int) -> Iterator[None]:
    """While active, every parameter that a module registers moves to the meta device.

    `torch.device("meta")` would take the buffers along, and nothing could bring them back.

    Args:
        room: bytes for all buffers. What is larger is made on the meta device, too, so that a
            config cannot ask for more memory than there is.
    """
    register_parameter, register_buffer = nn.Module.register_parameter, nn.Module.register_buffer
    bounded = _Bounded(room)

    def parameter_on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and param.device.type != "meta":
            param = nn.Parameter(param.to("meta"), param.requires_grad)
        register_parameter(self, name, param)

    def buffer_counted(
        self: nn.Module, name: str, tensor: Tensor | None, persistent: bool = True
    ) -> None:
        bounded.room -= 0 if tensor is None else tensor.nbytes
        register_buffer(self, name, tensor, persistent)

    nn.Module.register_parameter = parameter_on_meta  # type: ignore[method-assign]
    nn.Module.register_buffer = buffer_counted  # type: ignore[method-assign]
    try:
        with bounded:
            yield
    finally:
        nn.Module.register_parameter = register_parameter  # type: ignore[method-assign]
        nn.Module.register_buffer = register_buffer  # type: ignore[method-assign]


class _Bounded(TorchDispatchMode):
    """While active, a tensor of more than `room` bytes is made on the meta device."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        meta = [tensor.is_meta for tensor in tensors]
        if any(meta) and (all(meta) or func._schema.is_mutable):
            return func(*args, **kwargs)
        on_meta = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        if any(meta):
            return func(*on_meta[0], **on_meta[1])
        device = {"device": torch.device("meta")} if "device" in kwargs else {}
        try:
            planned = func(*on_meta[0], **{**on_meta[1], **device})
        except RuntimeError:  # it has no twin on the meta device: it gives a plain number
            return func(*args, **kwargs)
        made = [leaf.nbytes for leaf in tree_leaves(planned) if isinstance(leaf, Tensor)]
        return planned if sum(made) > self.room else func(*args, **kwargs)
