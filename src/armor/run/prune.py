"""prune: a model in, a checkpoint folder out."""

from __future__ import annotations

import hashlib
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from armor.calibrate.data import token_windows
from armor.checkpoint.assemble import assemble, check_source
from armor.checkpoint.folder import check_output
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.models.load import load_model, load_tokenizer
from armor.models.source import resolve
from armor.models.structure import Structure, find_structure
from armor.packed import PackedLayer
from armor.run.owned import is_checkpoint, remove_checkpoint
from armor.run.pipeline import run_blocks
from armor.run.plan import LayerPlan, make_plan
from armor.run.solve import LayerRecord

DEFAULT_CONTEXT = 2048


@dataclass(frozen=True)
class PruneResult:
    """A finished run: the checkpoint folder, the plan, and a record for every pruned layer."""

    out: Path
    plans: list[LayerPlan]
    records: dict[str, LayerRecord]
    seconds: float


@dataclass(frozen=True)
class Progress:
    """Callbacks of a run, for a display: every one may be left out."""

    planned: Callable[[list[LayerPlan]], None] = lambda plans: None
    started: Callable[[str], None] = lambda name: None
    finished: Callable[[str, LayerRecord], None] = lambda name, record: None


def prune(
    model: str | Path,
    config: PruneConfig,
    out: str | Path,
    fresh: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
) -> PruneResult:
    """Prune a causal language model and write the checkpoint.

    Args:
        model: a folder with safetensors weights, or a Hub id.
        config: what to do; its calibration text is required.
        out: the new folder. Written at the very end, complete or not at all.
        fresh: replace an `out` that armor itself wrote, once the new one is ready.
        device: "cpu", "cuda", or "auto" for a GPU if there is one. The model must fit there.
        progress: callbacks of a display.

    Raises:
        ArmorError: an unusable model, calibration text or output folder.
    """
    begin = time.perf_counter()
    progress = progress or Progress()
    out = Path(out)
    if not (fresh and is_checkpoint(out)):
        check_output(out)
    if not config.calibration:
        raise ArmorError("no calibration text: give --calibration FILE or hf:NAME")
    source = resolve(str(model))
    check_source(source)
    network = load_model(str(source), device=_device(device))
    _check_finite(network)
    structure = find_structure(network)
    plans = make_plan(_shapes(structure), config)
    tokenizer = load_tokenizer(str(source))
    config = replace(config, seq_len=_window(config, network))
    assert config.seq_len is not None
    windows = token_windows(
        config.calibration, tokenizer, config.samples, config.seq_len, config.seed
    )
    progress.planned(plans)
    packed: dict[str, PackedLayer] = {}
    records: dict[str, LayerRecord] = {}
    by_name = {plan.name: plan for plan in plans}
    windows = windows.to(network.device)
    for solved in run_blocks(network, structure, windows, by_name, config, progress.started):
        packed[solved.plan.name] = PackedLayer.from_factors(solved.factors.to("cpu"))
        records[solved.plan.name] = solved.record
        progress.finished(solved.plan.name, solved.record)
    seconds = time.perf_counter() - begin
    ordered = {plan.name: plan for plan in plans if not plan.dense}
    run = _run_record(str(model), config, plans, {name: records[name] for name in ordered}, seconds)
    if fresh:
        remove_checkpoint(out)
    assemble(source, out, {name: packed[name] for name in ordered}, run)
    return PruneResult(out, plans, records, seconds)


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise ArmorError(f"unknown device {name!r}; valid: auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ArmorError("no CUDA device is available; use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _shapes(structure: Structure) -> dict[str, tuple[int, int]]:
    return {
        name: (linear.out_features, linear.in_features)
        for index in range(len(structure.blocks))
        for name, linear in structure.linears(index).items()
    }


def _check_finite(network: nn.Module) -> None:
    for name, parameter in network.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ArmorError(f"tensor {name} holds NaN or inf: the model is damaged")


def _window(config: PruneConfig, network: Any) -> int:
    context = getattr(network.config, "max_position_embeddings", None) or DEFAULT_CONTEXT
    if config.seq_len is None:
        return min(DEFAULT_CONTEXT, context)
    if config.seq_len > context:
        raise ArmorError(f"--seq-len {config.seq_len} is longer than the model's context {context}")
    return config.seq_len


def _run_record(
    model: str,
    config: PruneConfig,
    plans: list[LayerPlan],
    records: dict[str, LayerRecord],
    seconds: float,
) -> dict[str, Any]:
    """The contents of armor_run.json."""
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
        "seconds": round(seconds, 3),
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


def peak_memory() -> int:
    """Peak resident memory of this process, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
