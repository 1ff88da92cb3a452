"""The methods a comparison knows by name, and settings on top of them."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from armor.config import PRESETS, PruneConfig
from armor.errors import ArmorError
from armor.methods import METHODS, packed_methods

#: What can be named, but is not among the defaults: the paper's own loop, hundreds of times slower.
MORE_LABELS: dict[str, dict[str, Any]] = {"armor-adam": {**PRESETS["paper"], "solver": "adam"}}


def default_labels() -> dict[str, dict[str, Any]]:
    """Every baseline, and armor in its two presets: settings by label."""
    baselines = {name: {"method": name} for name in packed_methods() if not METHODS[name].wrappers}
    return {**baselines, "armor-paper": PRESETS["paper"], "armor": PRESETS["default"]}


def parse_methods(text: str, **common: Any) -> dict[str, PruneConfig]:
    """Settings by label of ``NAME[:SETTING=VALUE]...``, several separated by commas.

    ``armor:block_size=8:samples=32`` has the label "armor-block_size=8-samples=32".

    Args:
        common: settings of every label; what a label says itself goes before.

    Raises:
        ArmorError: an unknown method or setting, a bad value, or a label given twice.
    """
    plain = {name: {"method": name} for name, one in METHODS.items() if one.is_plain}
    known = {**default_labels(), **MORE_LABELS, **plain}
    found: dict[str, PruneConfig] = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        name, *changes = re.split(r":(?!\d)", word)  # not the colon of pattern=2:4
        if name not in known:
            raise ArmorError(f"unknown method {name!r}; valid: {', '.join(known)}")
        label = "-".join([name, *changes]).replace(":", "of")  # the label names a folder
        if label in found:
            raise ArmorError(f"method {word} is given twice")
        own = dict(_setting(change) for change in changes)
        found[label] = PruneConfig(**{**common, **known[name], **own})
    if not found:
        raise ArmorError(f"no method given; valid: {', '.join(known)}")
    return found


_READABLE = ("str", "int", "float", "int | None", "float | None")


def _setting(text: str) -> tuple[str, Any]:
    name, _, word = text.partition("=")
    # How a word is read follows from the field's annotation.
    kinds = {field.name: str(field.type) for field in dataclasses.fields(PruneConfig)}
    readable = {name: kind for name, kind in kinds.items() if kind in _READABLE}
    if name not in readable:
        raise ArmorError(f"{text!r} is no setting; write NAME=VALUE with {', '.join(readable)}")
    kind = readable[name]
    if word == "auto" and "None" in kind:
        return name, None
    try:
        return name, int(word) if "int" in kind else float(word) if "float" in kind else word
    except ValueError:
        raise ArmorError(f"{text!r}: {word!r} is not a number") from None
