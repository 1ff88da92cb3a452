"""ARMOR: prune language models to 2:4 sparsity and keep their quality.

The public API; every name loads what it needs on first use, so that ``import armor`` is cheap::

    import armor

    armor.prune("Qwen/Qwen2.5-7B", armor.PruneConfig(calibration="text.txt"), out="qwen-armor")
    model = armor.load("qwen-armor")  # or AutoModelForCausalLM.from_pretrained("qwen-armor")
    armor.export_dense("qwen-armor", "qwen-dense")

Importing armor also teaches transformers the checkpoint format, in whichever order the two are
imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from armor.hf.hook import register_when_imported

if TYPE_CHECKING:
    from armor.checkpoint.export import export_dense
    from armor.checkpoint.inspect import inspect
    from armor.config import PruneConfig
    from armor.errors import ArmorError
    from armor.evaluation.perplexity import evaluate
    from armor.hf.load import load
    from armor.hf.lora import lora
    from armor.linear import ArmorLinear, prepare, unfreeze
    from armor.run.prune import prune
    from armor.tuning.config import TuneConfig
    from armor.tuning.tune import tune

__all__ = [
    "ArmorError",
    "ArmorLinear",
    "PruneConfig",
    "TuneConfig",
    "evaluate",
    "export_dense",
    "inspect",
    "load",
    "lora",
    "prepare",
    "prune",
    "tune",
    "unfreeze",
]

_HOMES = {
    "ArmorError": "armor.errors",
    "ArmorLinear": "armor.linear",
    "PruneConfig": "armor.config",
    "TuneConfig": "armor.tuning.config",
    "evaluate": "armor.evaluation.perplexity",
    "export_dense": "armor.checkpoint.export",
    "inspect": "armor.checkpoint.inspect",
    "load": "armor.hf.load",
    "lora": "armor.hf.lora",
    "prepare": "armor.linear",
    "prune": "armor.run.prune",
    "tune": "armor.tuning.tune",
    "unfreeze": "armor.linear",
}

register_when_imported()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'armor' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
