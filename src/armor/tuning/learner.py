"""Learner: the dense model and the pruned one in one process, which a step passes through."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from armor.checkpoint.reader import Checkpoint
from armor.engines.job import Tensors
from armor.memory import keep_freed_memory
from armor.models.folder import ModelFolder
from armor.models.load import load_model
from armor.run.machine import check_machine
from armor.run.manifest import code_digest
from armor.simd.processor import has_bfloat16
from armor.tuning.divergence import divergence
from armor.tuning.plan import Plan, make_plan, room
from armor.tuning.student import Student


@dataclass(frozen=True)
class Spec:
    """What every process of a run must know.

    Attributes:
        pruned, dense: the folders. work: windows to train on, tokens of each, steps.
        tokens: that pass together. together: processes that share a memory.
        code: the hash of the code that opened the run.
    """

    pruned: ModelFolder
    dense: ModelFolder
    work: tuple[int, int, int]
    tokens: int
    together: int
    code: str

    @property
    def checkpoint(self) -> Checkpoint:
        """The pruned one."""
        return Checkpoint.of(self.pruned.files)

    def lowered(self, device: str) -> bool:
        """Whether products are computed in bfloat16: as the weights are, where it is fast."""
        checkpoint = self.checkpoint
        stored = {checkpoint.tensors[f"{name}.core_values"].dtype for name in checkpoint.layers}
        return stored == {"BF16"} and (device != "cpu" or has_bfloat16())

    def plan(self, device: str) -> Plan:
        """What a process takes on `device`. Raises `ArmorError`: it does not fit."""
        return make_plan(
            self.checkpoint,
            self.dense.tensors,
            self.pruned.config,
            self.work,
            self.tokens,
            self.lowered(device),
            room(device, self.together),
        )

    def student(self, device: str) -> Student:
        """The pruned model on `device`."""
        return Student.of(load_model(self.pruned, torch.float32, device), self.checkpoint)


class Learner:
    """Both models on one device.

    Attributes:
        student: the pruned one. device: where they are.
    """

    def __init__(self, spec: Spec, device: str) -> None:
        """Read them. Raises `ArmorError`: they do not fit into the memory."""
        plan = spec.plan(device)
        self.device = device
        self._dense: Any = load_model(spec.dense, torch.float32, device).requires_grad_(False)
        self.student = spec.student(device)
        if plan.checkpointed:
            self.student.keep_less()
        if device == "cpu":
            keep_freed_memory()
        self._lowered = spec.lowered(device)

    def gradients(self, windows: Tensor, share: float) -> tuple[float, Tensors]:
        """The divergence from the dense model, and its gradients by what is trained.

        Args:
            windows: token ids, (some, seq). share: factor of the sum over the tokens.
        """
        self.student.merge()
        loss = self._divergence(windows.to(self.device)) * share
        loss.backward()
        self.student.pull_back()
        found = {}
        for name, parameter in self.student.trained.items():
            if parameter.grad is not None:  # but for experts that no token went to
                found[name], parameter.grad = parameter.grad, None
        return float(loss.detach()), found

    @torch.no_grad()
    def divergence(self, windows: Tensor) -> float:
        """That of what would be stored, in nats, summed over the tokens of `windows`."""
        with self.student.rounded():
            return float(self._divergence(windows.to(self.device)))

    @torch.no_grad()
    def take(self, trained: Mapping[str, Tensor]) -> None:
        """From now on what is trained is this, by name."""
        for name, parameter in self.student.trained.items():
            parameter.copy_(trained[name])

    def _divergence(self, windows: Tensor) -> Tensor:
        with self._precision():
            with torch.no_grad():
                reference = self._dense(input_ids=windows, use_cache=False).logits
            logits = self.student.model(input_ids=windows, use_cache=False).logits
        return divergence(logits.flatten(0, 1), reference.flatten(0, 1))

    @contextmanager
    def _precision(self) -> Iterator[None]:
        kind = torch.device(self.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=self._lowered):
            yield


def open_learner(spec: Spec, device: str) -> Learner:
    """The learner of another process. Raises `ArmorError`: this machine cannot do its part."""
    check_machine(spec.pruned, spec.code, code_digest("tuning"))
    check_machine(spec.dense, spec.code, code_digest("tuning"))
    return Learner(spec, device)
