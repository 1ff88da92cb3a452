"""Measuring what each block of each layer does to the model, before a size is shared out.

Two passes over the dense model. A backward pass over a few windows keeps, for some tokens, what
each layer is given and the gradient of the loss by what it puts out. A forward pass over all
windows gathers moments, with which a few iterations of the solver give a weight for each block.
Half the mean of (gradient . error of the output)^2 over the tokens is then the divergence to expect
from it: see `armor.calibrate.gradients`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from armor.calibrate.stream import batches
from armor.checkpoint.folder import full_disk
from armor.checkpoint.jsonfile import read_json, write_json
from armor.config import PruneConfig
from armor.engines.engine import Scheduler
from armor.engines.job import Handle, Job, Result
from armor.errors import ArmorError
from armor.models.streamed import StreamedModel
from armor.run.pipeline import Pipeline
from armor.run.placement import Placement
from armor.run.plan import LayerPlan
from armor.run.size import jobs
from armor.run.size.choose import Harms
from armor.run.store import TRIALS, Store
from armor.run.streams import Opened, open_streams, start
from armor.run.threads import forward_threads
from armor.run.worker import Spec

#: The backward pass reads so many tokens, in whole batches: activations at every block are kept.
BACKWARD_TOKENS = 8192
#: Of these so many are kept.
SAMPLED_TOKENS = 2048
_HARMS = "harms.json"

#: Called with a layer's name, how many are measured, and how many there are.
Measured = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Measurement:
    """What is measured, and where.

    Attributes:
        model, config, windows, placement: of the run. plans: its layers.
        measured: called as layers are done.
    """

    model: StreamedModel
    config: PruneConfig
    windows: Tensor
    placement: Placement
    plans: Sequence[LayerPlan]
    measured: Measured

    def harms(self, store: Store, manifest: dict[str, Any]) -> Harms:
        """The harm of every block that there is a choice of; finished layers are kept beside
        `store`, and so is the result.

        Raises:
            ArmorError: gradients that are not finite.
        """
        tried = {plan.name: plan for plan in self.plans if plan.blocks}
        if not tried:
            return {}
        path = store.folder / TRIALS / _HARMS
        if not path.is_file():
            trials = Store(path.with_suffix(""), manifest)
            try:
                harms = self._measure(tried, trials)
                with full_disk(store.folder):
                    write_json(path, harms)
                trials.remove()
            finally:
                trials.close()
        return read_json(path)

    def _measure(
        self, tried: Mapping[str, LayerPlan], trials: Store
    ) -> dict[str, dict[str, float]]:
        def finished(name: str, _record: object) -> None:
            self.measured(name, len(trials.layers), len(tried))

        model = self.model
        opened = open_streams(model, self.windows, trials.scratch)
        spec = Spec.of(model, self.config, opened.calls, self.windows)
        engine = self.placement.open(spec, model, list(tried.values()), trials.scratch)
        try:
            scheduler, cores = Scheduler(engine), torch.get_num_threads()
            left = [name for name in tried if trials.lacks(name)]
            backward = BackwardPass(model, scheduler, self.windows, opened, cores)
            samples = backward.samples(left) if left else {}
            pipeline = Pipeline(
                model,
                tried,
                scheduler,
                trials,
                cores,
                self.windows.numel(),
                finished,
                solve=jobs.try_blocks,
                extra={name: {"sample": handle} for name, handle in samples.items()},
            )
            if first := pipeline.missing():
                pipeline.run(start(engine, trials, opened, first[0], ("dense",)))
        finally:
            engine.close()
        return {
            name: {block: float(harm) for block, harm in trials.load(name).items()}
            for name in tried
        }


class BackwardPass:
    """From the loss of the dense model back to block 0, keeping samples at some layers."""

    def __init__(
        self,
        model: StreamedModel,
        scheduler: Scheduler,
        windows: Tensor,
        opened: Opened,
        cores: int,
    ) -> None:
        """Args: opened: how the blocks are called on `windows`. cores: threads there are."""
        self._model = model
        self._scheduler = scheduler
        self._engine = scheduler.engine
        self._threads = forward_threads(cores)
        ids = batches(windows)
        count = max(1, BACKWARD_TOKENS // ids[0].numel())
        each = [{number: states} for part in opened.hidden for number, states in part.items()]
        self._hidden = each[:count]
        self._tokens = [
            {number: ids[int(number)] for number in batch_states} for batch_states in self._hidden
        ]
        read = [tokens for batch in self._tokens for tokens in batch.values()]
        self._share = min(1.0, SAMPLED_TOKENS / sum(tokens.numel() for tokens in read))
        predicted = sum(tokens[:, 1:].numel() for tokens in read)
        self._scale = math.sqrt(2 * predicted)
        self._blocks = len(model.structure.blocks)
        self._own = opened.own

    def samples(self, layers: Sequence[str]) -> dict[str, Handle]:
        """What is kept of `layers`: see `armor.calibrate.gradients.Samples`.

        Returns:
            For each that was called a handle on ``inputs`` and ``gradients``, these scaled so that
            the sum of (gradient . error)^2 is the harm.

        Raises:
            ArmorError: gradients that are not finite.
        """
        names = {self._model.layout.path(name): name for name in layers}
        inputs = [[self._engine.share(batch) for batch in self._hidden]]
        for index in range(self._blocks):
            self._model.prefetch(index + 1)
            own = self._own_arguments(index)
            (after,) = self._run(jobs.advance, {"index": index}, 1, hidden=inputs[-1], **own)
            for handle in chain.from_iterable(own.values()):
                self._engine.drop(handle)
            inputs.append(after)
        heads = {path: name for path, name in names.items() if path == self._model.head}
        tokens = [self._engine.share(batch) for batch in self._tokens]
        back, found = self._back(
            jobs.back_through_head, self._blocks, heads, hidden=inputs.pop(), tokens=tokens
        )
        for index in reversed(range(self._blocks)):
            prefix = f"{self._model.structure.prefix}.{index}."
            inside = {
                path.removeprefix(prefix): name
                for path, name in names.items()
                if path.startswith(prefix)
            }
            given = {"hidden": inputs.pop(), "gradient": back, **self._own_arguments(index)}
            back, samples = self._back(jobs.back_through_block, index, inside, **given)
            found |= samples
        for handle in back:
            self._engine.drop(handle)
        return found

    def _own_arguments(self, index: int) -> dict[str, list[Handle]]:
        """The arguments of a block that differ from batch to batch, if there are any."""
        if not self._own[index]:
            return {}
        every = {name: own for part in self._own[index] for name, own in part.items()}
        return {
            "own": [
                self._engine.share(
                    {n: own for n, own in every.items() if n.partition("/")[0] in batch}
                )
                for batch in self._hidden
            ]
        }

    def _back(
        self,
        function: Callable[..., Result],
        index: int,
        names: Mapping[str, str],
        **handles: list[Handle],
    ) -> tuple[list[Handle], dict[str, Handle]]:
        """Gradients before block `index`, batch by batch, and samples of some of its layers.

        Args:
            names: of the layers, by path as `function` takes it. handles: dropped afterwards.
        """
        arguments = {"index": index, "linears": list(names), "share": self._share}
        gradients, own = self._run(function, arguments, 2, **handles)
        parts = [self._engine.fetch(handle) for handle in own]
        samples = {}
        for linear, name in names.items():
            sample = {
                kind: torch.cat(found)
                for kind in ("inputs", "gradients")
                if (found := [part[key] for part in parts if (key := f"{kind}/{linear}") in part])
            }
            if sample:  # not of an expert that no token reached
                if not sample["gradients"].isfinite().all():
                    raise ArmorError(
                        f"the gradients of {name} are not finite on the calibration text: change"
                        " the text, or leave out the size"
                    )
                sample["gradients"] /= self._scale
                samples[name] = self._engine.share(sample)
        for handle in (*chain.from_iterable(handles.values()), *own):
            self._engine.drop(handle)
        return gradients, samples

    def _run(
        self,
        function: Callable[..., Result],
        arguments: Mapping[str, Any],
        results: int,
        **handles: list[Handle],
    ) -> list[list[Handle]]:
        """A job for each batch: handles of the results, result by result, each batch by batch."""
        work = [
            Job(
                function,
                arguments,
                dict(zip(handles, own, strict=True)),
                results=results,
                threads=self._threads,
                urgent=True,
                label="the backward pass",
            )
            for own in zip(*handles.values(), strict=True)
        ]
        done = [done.handles for done in self._scheduler.in_order(work)]
        return [list(group) for group in zip(*done, strict=True)]
