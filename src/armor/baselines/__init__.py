"""One-shot pruning methods without wrappers, each ``name(problem, pattern) -> Factors``."""

from __future__ import annotations

from collections.abc import Callable

from armor.baselines.magnitude import magnitude
from armor.baselines.nowag import nowag
from armor.baselines.sparsegpt import sparsegpt
from armor.baselines.wanda import wanda
from armor.sparse.factors import Factors

BASELINES: dict[str, Callable[..., Factors]] = {
    "magnitude": magnitude,
    "wanda": wanda,
    "nowag": nowag,
    "sparsegpt": sparsegpt,
}

__all__ = ["BASELINES", "magnitude", "nowag", "sparsegpt", "wanda"]
