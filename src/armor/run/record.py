"""The record of a run: the contents of armor_run.json."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import torch

from armor.checkpoint.records import LayerRecord
from armor.config import PruneConfig
from armor.memory import peak_memory
from armor.run.describe import record_config
from armor.run.plan import LayerPlan
from armor.simd.processor import instruction_set
from armor.versions import versions

#: What a record says the version of.
VERSIONS = ("armor", "python", "torch", "transformers", "numba")


def run_record(
    model: str,
    config: PruneConfig,
    plans: list[LayerPlan],
    records: Mapping[str, LayerRecord],
    **about: Any,
) -> dict[str, Any]:
    """The contents of armor_run.json; `about` says more about the run as a whole."""
    return {
        "model": model,
        "method": config.method,
        "config": record_config(config),
        "versions": versions(*VERSIONS),
        "machine": {
            "system": platform.platform(),
            "threads": torch.get_num_threads(),
            "instructions": instruction_set(),
        },
        **about,
        "peak_memory_bytes": peak_memory(),
        "layers": {name: record.to_dict() for name, record in records.items()},
        "dense_layers": {plan.name: plan.note for plan in plans if plan.dense},
    }
