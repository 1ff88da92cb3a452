"""Choosing the engine of a run, and how many workers it gets."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from armor.engines.engine import Engine, InProcess
from armor.errors import ArmorError
from armor.models.streamed import StreamedModel
from armor.run.memory import available_memory
from armor.run.plan import LayerPlan
from armor.run.streams import PARTS
from armor.run.threads import SHARED_FROM
from armor.run.worker import Spec, Worker

ENGINES = ("local", "ray")
#: A solve takes about so many times the memory of its matrix in float32.
_SOLVE = 16


@dataclass(frozen=True)
class Where:
    """Where a run computes; nothing of it but `device` changes the result.

    Attributes:
        engine: see `ENGINES`. workers: how many, None for as many as make sense.
        device: "cpu" or "cuda". budget: bytes of activations held in memory, None for half of what
            is free.
    """

    engine: str
    workers: int | None
    device: str
    budget: int | None

    @classmethod
    def parse(cls, engine: str, workers: int | None, device: str, budget: int | None) -> Where:
        """From what the user asked for.

        Raises:
            ArmorError: an unknown engine or device, no GPU, or a number that makes no sense.
        """
        if engine not in ENGINES:
            raise ArmorError(f"unknown engine {engine!r}; valid: {', '.join(ENGINES)}")
        if workers is not None and workers < 1:
            raise ArmorError(f"--workers must be at least 1, not {workers}")
        if device not in ("auto", "cpu", "cuda"):
            raise ArmorError(f"unknown device {device!r}; valid: auto, cpu, cuda")
        # A cluster's GPUs are not this machine's.
        here = torch.cuda.is_available()
        if device == "cuda" and not here and engine == "local":
            raise ArmorError("no CUDA device is available; use --device cpu")
        use_gpu = device == "cuda" or (device == "auto" and here)
        return cls(engine, workers, "cuda" if use_gpu else "cpu", budget)


def open_engine(
    where: Where, spec: Spec, model: StreamedModel, plans: Sequence[LayerPlan], scratch: Path
) -> Engine:
    """The engine that `where` asks for. Raises `ArmorError` if it cannot be had."""
    if where.engine == "ray":
        from armor.engines.ray import RayEngine

        return RayEngine(spec, where.workers, where.budget)
    gpus = torch.cuda.device_count() if where.device == "cuda" else 0
    workers = where.workers or gpus or sensible_workers(model, plans)
    if workers > 1 and sys.platform != "win32":
        from armor.engines.local import LocalPool

        devices = [f"cuda:{slot % gpus}" if gpus else "cpu" for slot in range(workers)]
        return LocalPool(spec, devices, scratch)
    budget = available_memory() // 2 if where.budget is None else where.budget
    return InProcess(Worker(spec, model), scratch, budget)


def sensible_workers(model: StreamedModel, plans: Sequence[LayerPlan]) -> int:
    """On the CPU: one where matrices are small, as processes take seconds to start; else as many
    as there are cores and memory for."""
    largest = max(plan.shape[0] * plan.shape[1] for plan in plans)
    if largest < SHARED_FROM:
        return 1
    block = sum(tensor.numel() for tensor in model.structure.blocks[0].parameters())
    fitting = available_memory() // (4 * (2 * block + _SOLVE * largest))
    return max(1, min(torch.get_num_threads(), PARTS, fitting))
