"""Recipes: settings for single layers, and the description of an unusual model, in a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from armor.errors import ArmorError
from armor.sparse.levels import CORES, WRAPPERS
from armor.sparse.pattern import Pattern

#: What a recipe may say of the layers that a glob matches.
RULES = ("skip", "method", "pattern", "block", "core", "wrappers")
#: What a recipe says for a core or wrappers in the model's own dtype.
OWN_DTYPE = "dense"
#: What it may say of the model, see `armor.models.structure.Described`.
DESCRIPTION = ("blocks", "linears", "stages")
_SECTIONS = ("layers", "model", "lm_head")


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The settings of a recipe file, as arguments of `PruneConfig`.

    Raises:
        ArmorError: no such file, no YAML, or an unknown key; values are checked by `PruneConfig`.
    """
    import yaml

    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ArmorError(f"cannot read the recipe {path}: {error}") from None
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())[:200]
        raise ArmorError(f"{path} is not YAML: {where}") from None
    if not isinstance(data, dict) or not data:
        raise ArmorError(f"{path} has none of the sections {', '.join(_SECTIONS)}")
    _known(f"{path}", data, _SECTIONS)
    found = {"overrides": data.get("layers"), "model": data.get("model")}
    return {
        **{name: value for name, value in found.items() if value is not None},
        **({"lm_head": data["lm_head"]} if "lm_head" in data else {}),
    }


def write_recipe(path: Path, layers: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the rules of each layer as a recipe, to be looked at, edited and run."""
    import yaml

    from armor.checkpoint.jsonfile import write_text

    plain = {name: dict(rules) for name, rules in layers.items()}
    write_text(path, yaml.safe_dump({"layers": plain}, sort_keys=False, width=100))


def check_overrides(overrides: Any, methods: tuple[str, ...]) -> list[Pattern]:
    """The patterns that `overrides` names; `ArmorError` unless it maps globs to sound rules."""
    if not isinstance(overrides, Mapping):
        raise ArmorError("the recipe's layers are not a table of globs")
    patterns = []
    for glob, rules in overrides.items():
        if not isinstance(glob, str) or not isinstance(rules, Mapping):
            raise ArmorError(f"recipe, layers {glob!r}: give a table such as {{block: 64}}")
        where = f"recipe, layers {glob!r}"
        _known(where, rules, RULES)
        if "method" in rules and rules["method"] not in methods:
            raise ArmorError(f"{where}: method {rules['method']!r}; valid: {', '.join(methods)}")
        if "pattern" in rules:
            patterns.append(_pattern(where, rules["pattern"]))
        for rule, valid in (("core", CORES), ("wrappers", WRAPPERS)):
            if rules.get(rule, OWN_DTYPE) not in (OWN_DTYPE, *valid):
                known = ", ".join((OWN_DTYPE, *valid))
                raise ArmorError(f"{where}: {rule} {rules[rule]!r}; valid: {known}")
        block = rules.get("block", "auto")
        if block != "auto" and (type(block) is not int or block < 4 or block % 4):
            raise ArmorError(f"{where}: block {block!r} is neither auto nor a multiple of 4")
        if type(rules.get("skip", False)) is not bool:
            raise ArmorError(f"{where}: skip is neither true nor false")
    return patterns


def _pattern(where: str, given: Any) -> Pattern:
    if not isinstance(given, str):  # YAML reads a bare 2:4 as a number to the base 60
        raise ArmorError(f'{where}: write the pattern in quotes, such as "2:4", not {given!r}')
    try:
        return Pattern.parse(given)
    except ArmorError as error:
        raise ArmorError(f"{where}: {error}") from None


def check_description(model: Any) -> None:
    """Raise `ArmorError` unless `model` describes where the decoder is."""
    if not isinstance(model, Mapping):
        raise ArmorError("the recipe's model is not a table")
    if not model:
        return
    _known("recipe, model", model, DESCRIPTION)
    if not isinstance(model.get("blocks"), str):
        raise ArmorError("recipe, model: blocks must name a list of modules, such as model.layers")
    linears, stages = model.get("linears", []), model.get("stages", [])
    if not _strings(linears):
        raise ArmorError("recipe, model: linears is not a list of globs")
    if not isinstance(stages, (list, tuple)) or not all(map(_strings, stages)):
        raise ArmorError("recipe, model: stages is not a list of lists of names")


def _known(where: str, given: Mapping[Any, Any], valid: tuple[str, ...]) -> None:
    for key in given:
        if key not in valid:
            raise ArmorError(f"{where}: unknown {key!r}; valid: {', '.join(valid)}")


def _strings(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
