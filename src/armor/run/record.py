"""The record of a run: the contents of armor_run.json."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

from armor.checkpoint.records import LayerRecord
from armor.config import PruneConfig
from armor.memory import peak_memory
from armor.run.plan import LayerPlan


def run_record(
    model: str,
    config: PruneConfig,
    plans: list[LayerPlan],
    records: Mapping[str, LayerRecord],
    **about: Any,
) -> dict[str, Any]:
    """The contents of armor_run.json; `about` says more about the run as a whole."""
    import numba
    import transformers

    return {
        "model": model,
        "method": config.method,
        "config": _described(config),
        "versions": {
            "armor": version("armor-prune"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numba": numba.__version__,
        },
        "machine": {"system": platform.platform(), "threads": torch.get_num_threads()},
        **about,
        "peak_memory_bytes": peak_memory(),
        "layers": {name: record.to_dict() for name, record in records.items()},
        "dense_layers": {plan.name: plan.note for plan in plans if plan.dense},
    }


def _described(config: PruneConfig) -> dict[str, Any]:
    """The config, with texts given as strings replaced by their number and hash."""
    described = config.to_dict()
    if not isinstance(config.calibration, str):
        digest = hashlib.sha256("\0".join(config.calibration).encode()).hexdigest()
        described["calibration"] = {"texts": len(config.calibration), "sha256": digest}
    return described
