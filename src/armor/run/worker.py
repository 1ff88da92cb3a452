"""Worker: does the jobs of a run, in whichever process; holds one decoder block at most."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from armor.calibrate.moments import Moments
from armor.calibrate.stream import Call, Calls, input_of, merged, observe
from armor.config import PruneConfig
from armor.factorize.scaling import cast
from armor.models.streamed import StreamedModel
from armor.packed import PackedLayer
from armor.run.job import Job, Tensors
from armor.run.plan import LayerPlan
from armor.run.solve import LayerInputs, LayerRecord, solve_layer
from armor.run.threads import threads

#: The dense model's inputs to a block's linears are kept up to this size, so that it runs once a
#: block; above, it runs again for each stage.
NOTED_BYTES = 2**30


@dataclass(frozen=True)
class Spec:
    """What every worker of a run must know.

    Attributes:
        folder: the model. calls: how its blocks are called. device: a torch device.
    """

    folder: Path
    config: PruneConfig
    calls: Calls
    device: str


class Worker:
    """Does jobs. A job returns a plain message, and groups of named tensors on the CPU."""

    def __init__(self, spec: Spec, model: StreamedModel | None = None) -> None:
        self._spec = spec
        self._model = model or StreamedModel(spec.folder)
        self._block: _Block | None = None
        self._noted: dict[int, dict[str, list[Tensor]]] = {}  # by part

    def run(self, job: Job, tensors: Mapping[str, Tensors]) -> tuple[Any, list[Tensors]]:
        """Do `job`; `tensors` are what its references stand for."""
        with threads(job.threads):
            message, *results = getattr(self, job.task)(**job.args, **tensors)
        assert len(results) == job.results
        return message, [
            {name: tensor.cpu() for name, tensor in result.items()} for result in results
        ]

    def advance(
        self, index: int, part: int, hidden: Tensors, note: bool = False, sums: bool = False
    ) -> tuple[Any, ...]:
        """One part of the windows through the dense block.

        Args:
            hidden: hidden states before the block, by batch.
            note: keep what the linears are fed for `sums` of the same part, if there is room.
            sums: also add up the moments of each stage, by its first linear.

        Returns:
            The stages and the tokens of each; the hidden states behind the block, by batch; with
            `sums` the second moments, summed, by the first linear of the stage.
        """
        block = self._at(index)
        found: list[list[list[str]]] = []
        noted: dict[str, list[Tensor]] = {}
        moments: dict[str, Moments] = {}
        result: Tensors = {}
        for batch, states in hidden.items():
            call = self._call(index, states)
            result[batch], stages = observe(block.dense, call, states.to(self._spec.device))
            found.append([names for names, _ in stages])
            for (head, *_), inputs in stages:
                if note:
                    noted.setdefault(head, []).append(inputs)
                if sums:
                    moments.setdefault(head, Moments()).add(inputs)
        if note and _bytes(*self._noted.values(), noted) <= NOTED_BYTES:
            self._noted[part] = noted
        message = merged(found), {head: total.tokens for head, total in moments.items()}
        if not sums:
            return message, result
        return message, result, {head: total.sums()["second"] for head, total in moments.items()}

    def sums(
        self,
        index: int,
        part: int,
        linear: str,
        hidden: Tensors,
        dense: Tensors | None = None,
        **solved: Tensors,
    ) -> tuple[int, Tensors]:
        """The moments of what `linear` is fed in the block as pruned so far, over one part.

        Args:
            hidden: hidden states before the block. dense: those of the dense model, to get the
                cross moment too.
            solved: the packed layers of the block so far, as ``solved/LINEAR``.

        Returns:
            The number of tokens; ``second`` and maybe ``cross``, summed.
        """
        block = self._at(index)
        block.apply(solved)
        twins = self._noted.get(part, {}).pop(linear, None) if dense is not None else None
        moments = Moments()
        for number, (batch, states) in enumerate(hidden.items()):
            inputs = self._input(block.pruned, index, states, linear)
            if inputs is None:
                continue
            if dense is None:
                moments.add(inputs)
            elif twins is not None:
                moments.add(inputs, twins[number])
            else:
                moments.add(inputs, self._input(block.dense, index, dense[batch], linear))
        return moments.tokens, moments.sums()

    def advance_pruned(
        self, index: int, hidden: Tensors, **solved: Tensors
    ) -> tuple[None, Tensors]:
        """One part of the windows through the pruned block."""
        block = self._at(index)
        block.apply(solved)
        device = self._spec.device
        return None, {
            batch: self._call(index, states).run(block.pruned, states.to(device))
            for batch, states in hidden.items()
        }

    def solve(self, plan: LayerPlan, moments: Tensors) -> tuple[LayerRecord, Tensors]:
        """Prune one layer: its record, and the packed layer."""
        weight = f"{plan.name}.weight"
        inputs = LayerInputs(
            self._model.load(weight, self._spec.device),
            **{name: moment.to(self._spec.device) for name, moment in moments.items()},
        )
        dtype = self._model.dtype(weight)
        factors, record = solve_layer(plan, inputs, self._spec.config, dtype)
        return record, PackedLayer.from_factors(factors.to("cpu")).tensors()

    def _at(self, index: int) -> _Block:
        if self._block is None or self._block.index != index:
            self._block = None  # gone before the next one comes
            self._noted = {}
            self._block = _Block(index, self._model, self._spec.device)
        return self._block

    def _call(self, index: int, states: Tensor) -> Call:
        return self._spec.calls[index][states.shape[0]].to(self._spec.device)

    def _input(self, block: nn.Module, index: int, states: Tensor, linear: str) -> Tensor | None:
        call = self._call(index, states)
        return input_of(block, call, states.to(self._spec.device), linear)


class _Block:
    """One decoder block in float32: as it was, and as it is being pruned."""

    def __init__(self, index: int, model: StreamedModel, device: str) -> None:
        self.index = index
        self.dense = model.block(index, device)
        # All that is not pruned is shared.
        shared = [*self.dense.parameters(), *self.dense.buffers()]
        self.pruned = copy.deepcopy(self.dense, {id(tensor): tensor for tensor in shared})
        self._done: set[str] = set()
        self._device = device

    def apply(self, solved: Mapping[str, Tensors]) -> None:
        """Put packed layers, ``solved/LINEAR``, in the place of their linears."""
        for key in solved.keys() - self._done:
            linear = self.pruned.get_submodule(key.removeprefix("solved/"))
            assert isinstance(linear, nn.Linear)
            packed = PackedLayer(linear.in_features, **solved[key])
            weight = cast(packed.to_factors(), torch.float32).dense().to(self._device)
            linear.weight = nn.Parameter(weight, requires_grad=False)
            self._done.add(key)


def _bytes(*noted: Mapping[str, list[Tensor]]) -> int:
    return sum(t.nbytes for inputs in noted for batch in inputs.values() for t in batch)
