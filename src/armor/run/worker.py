"""Worker: does the jobs of a run, in whichever process; holds one decoder block at most."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from armor.calibrate.gradients import Draw, block_gradient
from armor.calibrate.moments import Moments
from armor.calibrate.routed import fed, fill, routes
from armor.calibrate.stream import Call, Calls, input_of, merged, observe
from armor.checkpoint.records import LayerRecord
from armor.config import PruneConfig
from armor.engines.job import Job, Tensors
from armor.models.routed import Routed, find_routed
from armor.models.streamed import StreamedModel
from armor.run.memory import trim_memory
from armor.run.open import open_model
from armor.run.plan import LayerPlan
from armor.run.solve import LayerInputs, solve_certified
from armor.run.threads import SHARED_FROM, threads
from armor.sparse.layer import PackedLayer
from armor.sparse.pattern import Pattern

#: The dense model's inputs to a block's linears are kept up to this size, so that it runs once a
#: block; above, it runs again for each stage.
NOTED_BYTES = 2**30
#: Iterations with each block that is tried: enough to tell which are worth more.
TRIAL_ITERATIONS = 10


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
        self._model = model or open_model(spec.folder, spec.config)
        self._block: _Block | None = None
        self._noted: dict[tuple[int, int], dict[str, list[Tensor]]] = {}  # by block and part

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
            The stages, the tokens of each that is summed, and of those in experts, which are left
            to `expert_sums`; the hidden states behind the block, by batch; with `sums` the second
            moments, summed, by the first linear of the stage.
        """
        block = self._at(index)
        found: list[list[list[str]]] = []
        noted: dict[str, list[Tensor]] = {}
        moments: dict[str, Moments] = {}
        reached: dict[str, int] = {}
        result: Tensors = {}
        for batch, states in hidden.items():
            call = self._call(index, states)
            result[batch], stages = observe(
                block.dense, call, states.to(self._spec.device), self._model.structure.stages
            )
            found.append([names for names, _ in stages])
            for (head, *others), inputs in stages:
                if any(layer.holds(head) for layer in block.routed):
                    for name in (head, *others):
                        reached[name] = reached.get(name, 0) + inputs.shape[:-1].numel()
                    continue
                if note:
                    noted.setdefault(head, []).append(inputs)
                if sums:
                    moments.setdefault(head, Moments()).add(inputs)
        if note and _bytes(*self._noted.values(), noted) <= NOTED_BYTES:
            self._noted[index, part] = noted
        tokens = {head: total.tokens for head, total in moments.items()}
        message = merged(found), tokens, reached
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
            solved: the packed layers of the block so far, as
                ``solved/PATTERN/LINEAR``; no PATTERN is the run's.

        Returns:
            The number of tokens; ``second`` and maybe ``cross``, summed.
        """
        block = self._at(index)
        block.apply(solved, self._spec.config.pattern)
        twins = self._noted.get((index, part), {}).pop(linear, None) if dense is not None else None
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

    def expert_sums(
        self,
        index: int,
        routed: Routed,
        linears: dict[str, float],
        hidden: Tensors,
        dense: Tensors | None = None,
        **solved: Tensors,
    ) -> tuple[dict[str, int], Tensors]:
        """The moments of what linears in experts are fed, over one part: see `sums`.

        Both streams take the way of `hidden` through the router, so that they meet token by token.

        Args:
            linears: with the share of all tokens that pass each besides those routed to it.

        Returns:
            The tokens of each; ``second/LINEAR`` and maybe ``cross/LINEAR``, summed.
        """
        block = self._at(index)
        block.apply(solved, self._spec.config.pattern)
        moments = {linear: Moments() for linear in linears}
        for batch, states in hidden.items():
            inputs = self._input(block.pruned, index, states, routed.path)
            twins = (
                None
                if dense is None
                else self._input(block.dense, index, dense[batch], routed.path)
            )
            assert inputs is not None
            rows = routes(block.pruned, routed, inputs)
            flat = inputs.flatten(0, -2)
            for linear, share in linears.items():
                number, inside = routed.inside(linear)
                chosen = fill(rows[number], len(flat), math.ceil(share * len(flat)))
                if len(chosen):
                    expert = routed.expert(number)
                    given = fed(block.pruned.get_submodule(expert), inside, flat[chosen])
                    twin = (
                        None
                        if twins is None
                        else fed(
                            block.dense.get_submodule(expert), inside, twins.flatten(0, -2)[chosen]
                        )
                    )
                    moments[linear].add(given, twin)
        return {linear: total.tokens for linear, total in moments.items()}, {
            f"{kind}/{linear}": value
            for linear, total in moments.items()
            for kind, value in total.sums().items()
        }

    def head_sums(
        self, index: int, hidden: Tensors, dense: Tensors | None = None
    ) -> tuple[int, Tensors]:
        """The moments of what the output head is fed, over one part: see `sums`.

        Args:
            index: number of blocks. hidden, dense: hidden states behind the last.
        """
        moments = Moments()
        for batch, states in hidden.items():
            as_tuple = self._spec.calls[index - 1][states.shape[0]].as_tuple
            inputs = self._model.head_input(states, as_tuple).to(self._spec.device)
            twins = None if dense is None else self._model.head_input(dense[batch], as_tuple)
            moments.add(inputs, None if twins is None else twins.to(self._spec.device))
        return moments.tokens, moments.sums()

    def loss_gradient(
        self, index: int, linears: list[str], share: float, hidden: Tensors, tokens: Tensors
    ) -> tuple[None, Tensors, Tensors]:
        """The gradient of the loss behind the last block, by batch, and samples of the head.

        Args:
            index: number of blocks. linears: the head, if it is tried. share: of the tokens, to
                keep. hidden: hidden states behind the last. tokens: ids by batch, as float64, which
                files between workers can hold.
        """
        back: Tensors = {}
        samples: Tensors = {}
        for batch, states in hidden.items():
            as_tuple = self._spec.calls[index - 1][states.shape[0]].as_tuple
            back[batch], own = self._model.loss_gradient(
                states, tokens[batch].long(), as_tuple, linears, Draw(share, int(batch))
            )
            _append(samples, own)
        return None, back, samples

    def block_gradient(
        self, index: int, linears: list[str], share: float, hidden: Tensors, gradient: Tensors
    ) -> tuple[None, Tensors, Tensors]:
        """From the `gradient` behind the dense block to that before it, by batch.

        Args:
            linears: those that are tried. share: of the tokens, to keep. hidden: hidden states
                before the block.

        Returns:
            The gradient, and the samples of `linears`: see `armor.calibrate.gradients`.
        """
        back: Tensors = {}
        samples: Tensors = {}
        device = self._spec.device
        for batch, states in hidden.items():
            call, behind = self._call(index, states), gradient[batch].to(device)
            back[batch], own = block_gradient(
                self._at(index).dense,
                call,
                states.to(device),
                behind,
                linears,
                Draw(share, int(batch)),
            )
            _append(samples, own)
        return None, back, samples

    def advance_pruned(
        self, index: int, hidden: Tensors, **solved: Tensors
    ) -> tuple[None, Tensors]:
        """One part of the windows through the pruned block."""
        block = self._at(index)
        block.apply(solved, self._spec.config.pattern)
        device = self._spec.device
        return None, {
            batch: self._call(index, states).run(block.pruned, states.to(device))
            for batch, states in hidden.items()
        }

    def solve(self, plan: LayerPlan, moments: Tensors) -> tuple[LayerRecord, Tensors]:
        """Prune one layer: its record, and the packed layer."""
        if plan.shape[0] * plan.shape[1] >= SHARED_FROM:
            self._block = None  # read again in less time than the solve takes; its memory counts
            trim_memory()
        weight = f"{self._model.layout.path(plan.name)}.weight"
        dtype = self._model.dtype(weight)
        device = self._spec.device

        def inputs(precision: torch.dtype) -> LayerInputs:
            return LayerInputs(
                self._model.load(weight, device).to(precision),
                **{name: moment.to(device, precision) for name, moment in moments.items()},
            )

        factors, record = solve_certified(plan, inputs, self._spec.config, dtype)
        return record, PackedLayer.from_factors(factors.to("cpu")).tensors()

    def trial(
        self, plan: LayerPlan, moments: Tensors, sample: Tensors | None = None
    ) -> tuple[LayerRecord, Tensors]:
        """A few iterations with each of a layer's blocks.

        Args:
            sample: ``inputs`` and ``gradients``, scaled so that the sum of (gradient . error)^2 is
                the harm; None of an expert that no token reached.

        Returns:
            The last record; the harm of each block, float64 ().
        """
        config = self._spec.config
        few = min(TRIAL_ITERATIONS, config.iterations or TRIAL_ITERATIONS)
        config = replace(config, solver="exact", target="dense", iterations=few)
        weight = f"{self._model.layout.path(plan.name)}.weight"
        dense = self._model.load(weight, self._spec.device)
        second = moments["second"].to(self._spec.device)
        read = {name: own.to(dense) for name, own in (sample or {}).items()}

        def inputs(precision: torch.dtype) -> LayerInputs:
            return LayerInputs(dense.to(precision), second.to(precision))

        harms: Tensors = {}
        for block in plan.blocks:
            own = replace(plan, block=block)
            factors, record = solve_certified(own, inputs, config, self._model.dtype(weight))
            harm = torch.zeros((), dtype=torch.float64)
            if read:
                errors = read["inputs"] @ (factors.dense().float() - dense).T
                harm = (errors * read["gradients"]).sum(-1).square().sum(dtype=torch.float64)
            harms[str(block)] = harm
        return record, harms

    def _at(self, index: int) -> _Block:
        if self._block is None or self._block.index != index:
            self._block = None  # gone before the next one comes
            trim_memory()
            self._noted = {key: kept for key, kept in self._noted.items() if key[0] == index}
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
        self.routed = find_routed(self.dense)
        # All that is not pruned is shared.
        shared = [*self.dense.parameters(), *self.dense.buffers()]
        self.pruned = copy.deepcopy(self.dense, {id(tensor): tensor for tensor in shared})
        self._done: set[str] = set()
        self._device = device

    def apply(self, solved: Mapping[str, Tensors], common: str) -> None:
        """Put packed layers, ``solved/PATTERN/LINEAR``, in the place of their linears.

        `common` is the pattern of those that name none.
        """
        for key in solved.keys() - self._done:
            _, own, name = key.split("/")
            linear = self.pruned.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            pattern = Pattern.parse(own or common)
            packed = PackedLayer.of(linear.in_features, solved[key], pattern)
            weight = packed.to_factors().cast(torch.float32).dense().to(self._device)
            linear.weight = nn.Parameter(weight, requires_grad=False)
            self._done.add(key)


def _append(total: Tensors, part: Mapping[str, Tensor]) -> None:
    for name, tensor in part.items():
        total[name] = torch.cat((total[name], tensor)) if name in total else tensor


def _bytes(*noted: Mapping[str, list[Tensor]]) -> int:
    return sum(t.nbytes for inputs in noted for batch in inputs.values() for t in batch)
