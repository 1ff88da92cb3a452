"""Recipes: what they may say, and what is said back when they are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.recipe import read_recipe
from armor.run.plan import make_plan

SHAPES = {
    "layers.0.q": (64, 64),
    "layers.0.qkv.0": (64, 64),
    "layers.0.qkv.1": (64, 64),
    "layers.1.q": (64, 64),
}


def recipe(tmp_path: Path, text: str) -> PruneConfig:
    (tmp_path / "recipe.yml").write_text(text)
    return PruneConfig(**read_recipe(tmp_path / "recipe.yml"))


def test_rules_reach_the_plan_and_later_ones_win(tmp_path: Path) -> None:
    config = recipe(
        tmp_path,
        """
        layers:
          "*": {block: 8}
          "*.qkv": {block: 4}
          "*.1": {skip: true}
          "layers.1.*": {method: sparsegpt, pattern: "4:8"}
        """,
    )
    plans = {plan.name: plan for plan in make_plan(SHAPES, config)}
    assert plans["layers.0.q"].block == 8
    assert plans["layers.0.qkv.0"].block == 4  # a part goes by the whole's name, too
    assert plans["layers.0.qkv.1"].dense
    assert "recipe" in plans["layers.0.qkv.1"].note
    assert plans["layers.1.q"].method == "sparsegpt"
    assert plans["layers.1.q"].block is None
    assert plans["layers.1.q"].settings(config).method == "sparsegpt"
    assert plans["layers.1.q"].settings(config).pattern == "4:8"
    assert plans["layers.0.q"].settings(config) == config


def test_a_recipe_survives_json(tmp_path: Path) -> None:
    config = recipe(tmp_path, "layers: {'*.q': {skip: true}}\nmodel: {blocks: a.b}\nlm_head: true")
    assert PruneConfig.from_dict(config.to_dict()) == config
    assert config.lm_head
    assert config.model == {"blocks": "a.b"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("layers: {", "not YAML"),
        ("", "none of the sections"),
        ("- a", "none of the sections"),
        ("layer: {}", "unknown 'layer'; valid: layers, model, lm_head"),
        ("layers: [a]", "not a table of globs"),
        ("layers: {'*': 3}", "give a table"),
        ("layers: {'*': {blocks: 8}}", "unknown 'blocks'; valid: skip, method, pattern, block"),
        ("layers: {'*': {block: 6}}", "neither auto nor a multiple of 4"),
        ("layers: {'*': {method: hope}}", "valid: armor, magnitude"),
        ("layers: {'*': {pattern: '5:1'}}", "layers '*': unknown pattern '5:1'"),
        ("layers: {'*': {pattern: 2:4}}", "write the pattern in quotes"),
        ("layers: {'*': {skip: maybe}}", "neither true nor false"),
        ("model: {linears: ['*']}", "blocks must name"),
        ("model: {blocks: a, linears: x}", "not a list of globs"),
        ("model: {blocks: a, stages: [x]}", "not a list of lists"),
        ("model: 3", "not a table"),
        ("lm_head: 3", "true or false"),
    ],
)
def test_a_wrong_recipe_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ArmorError) as error:
        recipe(tmp_path, text)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_no_such_file_and_no_such_layer(tmp_path: Path) -> None:
    with pytest.raises(ArmorError, match="cannot read the recipe"):
        read_recipe(tmp_path / "absent.yml")
    config = PruneConfig(overrides={"*.nothing": {"skip": True}})
    with pytest.raises(ArmorError, match=r"'\*.nothing' matches no linear"):
        make_plan(SHAPES, config)
