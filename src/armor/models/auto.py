"""Which of transformers' automatic classes reads a model: by its config."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def reading_class(config: Any) -> Any:
    """The class whose ``from_pretrained`` reads a model with a text decoder.

    That is `AutoModelForCausalLM` where it knows the config, also that of a model which reads
    images or sound, of which it may then read the text part alone. Otherwise it is the one for such
    models, if they have a text part that is no encoder with a decoder.

    Args:
        config: the model's, of which `is_causal` holds.
    """
    return next(auto for auto, _ in _classes(config))


def is_causal(config: Any, architectures: Any) -> bool:
    """Whether a model is a causal language model, or holds one.

    Args:
        config: its `transformers.PretrainedConfig`.
        architectures: names of classes, as they are in config.json.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if getattr(config, "is_encoder_decoder", False) or not any(_classes(config)):
        return False
    if not isinstance(architectures, list):
        return False
    known = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(), *(name for _, name in _classes(config))}
    return any(isinstance(name, str) and name in known for name in architectures)


def _classes(config: Any) -> Iterator[tuple[Any, str]]:
    """Automatic classes that know the config, and what they call the model's class."""
    import transformers

    causal = transformers.AutoModelForCausalLM
    text = config.get_text_config(decoder=True)
    if type(config) in causal._model_mapping:
        yield causal, causal._model_mapping[type(config)].__name__
    elif text is config or getattr(text, "is_encoder_decoder", False):
        return
    for name in ("AutoModelForImageTextToText", "AutoModelForMultimodalLM"):
        auto = getattr(transformers, name, None)
        if auto is not None and type(config) in auto._model_mapping:
            yield auto, auto._model_mapping[type(config)].__name__
