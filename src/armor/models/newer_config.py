"""config.json as transformers 5 writes it, in the terms of transformers 4, which would ignore them.

transformers 4 keeps a key that it does not know as a mere attribute and computes with its defaults:
rotary frequencies of base 10000, no scaling. So each such key is translated, or the model refused.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from armor.checkpoint.format import short
from armor.errors import ArmorError

_ROPE = "rope_parameters"
#: Keys that are called otherwise by classes of transformers 4: new -> old.
_RENAMED = {"num_local_experts": "num_experts"}
#: New settings, and what transformers 4 computes with instead.
_FIXED: dict[str, tuple[Any, ...]] = {
    "swiglu_alpha": (1.702,),
    "swiglu_limit": (7.0,),
    "time_step_limit": ([0.0, math.inf],),
    "use_bidirectional_attention": (False, None),
}


def in_terms_of_installed(folder: Path, data: dict[str, Any]) -> dict[str, Any]:
    """`data`, the config.json of `folder`, with the older names of its newer keys added.

    With transformers 5, or where nothing is to be added, it is `data` itself.

    Raises:
        ArmorError: a setting that the installed transformers would ignore.
    """
    if not _is_old():
        return data
    try:
        return _translated(data, data.get("model_type"))
    except _Unknown as unknown:
        raise ArmorError(
            f"{folder}: config.json sets {unknown}, which this version of transformers would ignore"
            f" ({_remedy()})"
        ) from None


def adapted_config(path: Path, data: dict[str, Any], stored: dict[str, Any]) -> Any:
    """The config that `data` describes, where transformers would read another from `stored`.

    Args:
        path: of the model's folder. data: from `in_terms_of_installed`. stored: config.json.

    Returns:
        `transformers.PretrainedConfig`, or None where transformers may read config.json itself.
    """
    usable = _decoded(data) if _is_old() else data
    config_class = _config_class(data.get("model_type"))
    if usable == stored or config_class is None:
        return None
    config = config_class.from_dict(usable)
    config.name_or_path = str(path)
    return config


def _decoded(value: Any) -> Any:
    """`value` with the numbers that JSON lacks, as transformers 5 writes them, as numbers."""
    if isinstance(value, dict):
        if list(value) == ["__float__"] and value["__float__"] in ("Infinity", "-Infinity", "NaN"):
            return float(value["__float__"])
        return {key: _decoded(item) for key, item in value.items()}
    return [_decoded(item) for item in value] if isinstance(value, list) else value


def newer_hint(data: Mapping[str, Any]) -> str:
    """A remedy to end a message with, if a newer transformers wrote this config; else ""."""
    import transformers

    written = str(data.get("transformers_version"))[:20]
    if _numbers(written) <= _numbers(transformers.__version__):
        return ""
    return f"; it was written by transformers {written}: {_remedy()}"


class _Unknown(Exception):
    """A setting that transformers 4 would ignore."""


def _remedy() -> str:
    import transformers

    return f"this is {transformers.__version__}: pip install -U transformers"


def _is_old() -> bool:
    import transformers

    return _numbers(transformers.__version__) < (5,)


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, at most two."""
    parts = version.split(".")[:2]
    return tuple(int(part) for part in parts) if all(map(str.isdigit, parts)) else ()


def _translated(data: dict[str, Any], model_type: Any) -> dict[str, Any]:
    """`data` and all configs inside it, translated."""
    added: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict) and isinstance(value.get("model_type"), str):
            inner = _translated(value, value["model_type"])
            if inner is not value:
                added[key] = inner
    config_class = _config_class(model_type)
    if config_class is not None:
        known = _known(config_class)
        added |= _renamed(data, known)
        rope = data.get(_ROPE)
        if rope is not None and _ROPE not in known:
            added |= _rope(rope, data, known, config_class)
    new = {key: value for key, value in added.items() if data.get(key, _MISSING) != value}
    return data | new if new else data


_MISSING = object()


def _renamed(data: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    """Old names for new keys. Raises `_Unknown` for settings that have no old name."""
    found = {
        old: data[new]
        for new, old in _RENAMED.items()
        if new in data and new not in known and old in known
    }
    for key, same in _FIXED.items():
        if key in data and key not in known and _decoded(data[key]) not in same:
            raise _Unknown(f"{key} to {short(data[key])}")
    types = data.get("layer_types")
    if isinstance(types, list) and "layer_types" not in known:
        other = [kind for kind in types if kind != "full_attention"]
        if other:
            raise _Unknown(f"layer_types to {short(other[0])}")
    return found


def _rope(rope: Any, data: Mapping[str, Any], known: set[str], config_class: Any) -> dict[str, Any]:
    """The rotary settings of transformers 4 that say what `rope` does. Raises `_Unknown`."""
    if not isinstance(rope, dict):
        raise _Unknown(f"{_ROPE} to {short(rope)}")
    if not rope:
        return {}
    nested = {key: value for key, value in rope.items() if isinstance(value, dict)}
    if not nested:
        return _one_rope(rope, data, known, config_class)
    if set(nested) != {"full_attention", "sliding_attention"} or len(nested) != len(rope):
        raise _Unknown(f"{_ROPE} for {short(sorted(rope))}")
    added = _one_rope(nested["full_attention"], data, known, config_class)
    sliding = dict(nested["sliding_attention"])
    theta = sliding.pop("rope_theta", None)
    if _kind(sliding) != "default" or set(sliding) - {"rope_type", "type"}:
        raise _Unknown(f"{_ROPE}.sliding_attention to {short(sliding)}")
    if "rope_local_base_freq" in known:
        return added | {"rope_local_base_freq": theta}
    if theta != added.get("rope_theta"):
        raise _Unknown(f"{_ROPE}.sliding_attention.rope_theta to {short(theta)}")
    return added


def _one_rope(
    rope: Mapping[str, Any], data: Mapping[str, Any], known: set[str], config_class: Any
) -> dict[str, Any]:
    """`_rope` where all layers have the same."""
    rest = {key: value for key, value in rope.items() if value is not None}
    added: dict[str, Any] = {}
    for new, olds in (
        ("rope_theta", ("rope_theta", "rotary_emb_base")),
        ("partial_rotary_factor", ("partial_rotary_factor", "rotary_pct")),
    ):
        if new not in rest:
            continue
        value = rest.pop(new)
        names = [name for name in olds if name in known]
        if not names and not (new == "partial_rotary_factor" and value == 1.0):
            raise _Unknown(f"{_ROPE}.{new} to {short(value)}")
        added |= dict.fromkeys(names, value)
    kind = _kind(rest)
    if kind == "default":
        if others := sorted(set(rest) - {"rope_type", "type"}):
            raise _Unknown(f"{_ROPE}.{others[0]} to {short(rest[others[0]])}")
        return added if data.get("rope_scaling") is None else added | {"rope_scaling": None}
    if not _reads_scaling(config_class):
        raise _Unknown(f"{_ROPE}.rope_type to {short(kind)}")
    original = "original_max_position_embeddings"
    if original in known and original in rest:
        added[original] = rest.pop(original)
        # Phi-3 accepts exactly these three keys, the first by its oldest name.
        rest.pop("rope_type", None)
        rest["type"] = kind
    return added | {"rope_scaling": rest}


def _kind(rope: Mapping[str, Any]) -> Any:
    return rope.get("rope_type", rope.get("type", "default"))


def _config_class(model_type: Any) -> Any:
    """The config class for a model type; None for one that transformers does not know."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        return None
    return CONFIG_MAPPING[model_type]


def _known(config_class: Any) -> set[str]:
    """The keys that a config class of transformers 4 does something with."""
    known = set(config_class.attribute_map)
    for base in config_class.__mro__[:-1]:
        if base.__name__ != "PretrainedConfig" and "__init__" in vars(base):
            known |= set(inspect.signature(base.__init__).parameters)
    return known


def _reads_scaling(config_class: Any) -> bool:
    """Whether the code of the model, not only its config, knows of scaled rotary positions."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if config_class not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return False
    module = inspect.getmodule(MODEL_FOR_CAUSAL_LM_MAPPING[config_class])
    return module is not None and "config.rope_scaling" in inspect.getsource(module)
