"""write_recipe: a plan as a recipe, to be looked at, edited and run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from armor.checkpoint.jsonfile import write_text
from armor.run.plan import LayerPlan


def write_recipe(path: Path, plans: Sequence[LayerPlan]) -> None:
    """The block of each layer, and which stay dense, as a recipe. Raises `ArmorError`."""
    import yaml

    layers = {plan.name: _rules(plan) for plan in plans}
    write_text(path, yaml.safe_dump({"layers": layers}, sort_keys=False, width=100))


def _rules(plan: LayerPlan) -> dict[str, object]:
    if plan.dense:
        return {"skip": True}
    rules = {"method": plan.method, "pattern": plan.pattern, "block": plan.block}
    return {key: value for key, value in rules.items() if value}
