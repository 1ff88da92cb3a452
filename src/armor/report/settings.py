"""The settings of the runs: what all labels share, and where they differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from armor.text.bos import bos_choice

#: What steers the factorisation; a baseline has none of it.
_ARMOR_ONLY = frozenset(
    {
        *("objective", "target", "solver", "iterations", "block_size", "overhead_budget"),
        *("shrinkage", "damping", "target_damping"),
    }
)

#: A recipe that --save-recipe wrote has a rule for every layer.
MOST_RULES = 8


def settings_tables(
    settings: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """``(shared, differing)``: setting -> value, and setting -> label -> value.

    A setting that a label's method does not use has no value under that label; one that only armor
    uses, always alike, is shared.

    Args:
        settings: by label, the ``config`` of armor_run.json.
    """
    by_label = {label: _readable(config) for label, config in settings.items()}
    shared: dict[str, str] = {}
    differing: dict[str, dict[str, str]] = {}
    names = dict.fromkeys(name for values in by_label.values() for name in values)
    for name in names:
        column = {label: values[name] for label, values in by_label.items() if name in values}
        if len(set(column.values())) == 1:
            everyone = len(column) == len(by_label)
            shared[name if everyone else f"{name} (armor)"] = next(iter(column.values()))
        else:
            differing[name] = column
    return shared, differing


def _readable(config: Mapping[str, Any]) -> dict[str, str]:
    armor = config.get("method") == "armor"
    unused = set() if armor else _ARMOR_ONLY
    # Either a size or these decide on the blocks.
    unused |= {"size"} if config.get("size") is None else {"block_size", "overhead_budget"}
    return {
        name.replace("_", " "): _text(bos_choice(value) if name == "bos" else value)
        for name, value in config.items()
        if name not in unused and value not in ((), [], {})
    }


def _text(value: Any) -> str:
    if value is None:
        return "auto"
    if isinstance(value, Mapping) and all(isinstance(item, Mapping) for item in value.values()):
        return _rules(value)
    if isinstance(value, Mapping):  # texts that were given as strings
        return ", ".join(f"{name} {str(item)[:12]}" for name, item in value.items())
    if isinstance(value, (tuple, list)):
        return ", ".join(map(str, value))
    return str(value)


def _rules(overrides: Mapping[str, Mapping[str, Any]]) -> str:
    """What a recipe says of the layers: "*.q_proj: pattern 4:8, block 16; *.o_proj: skip True"."""
    each = [
        f"{glob}: {', '.join(f'{name} {value}' for name, value in rules.items())}"
        for glob, rules in overrides.items()
    ]
    more = [f"and {len(each) - MOST_RULES} more"] if len(each) > MOST_RULES else []
    return "; ".join(each[:MOST_RULES] + more)
