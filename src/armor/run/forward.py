"""Forward: the passes of the calibration windows through one decoder block, part by part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from armor.calibrate.moments import Moments
from armor.engines.engine import Scheduler
from armor.engines.job import Handle, Handles, Job, Result
from armor.models.routed import Routed
from armor.run import jobs
from armor.run.layer_names import LayerNames
from armor.run.plan import LayerPlan
from armor.run.threads import forward_threads

#: Hidden states before a block, part by part: ``hidden`` of the stream that a pass follows, and
#: maybe ``dense``, of the dense model.
Hidden = Mapping[str, Sequence[Handle]]


@dataclass
class Passed:
    """What a pass through a dense block has shown and left.

    Attributes:
        stages: of each part, see `jobs.Advanced`. after: hidden states after the block, by part.
        reached: tokens that were sent to each linear in an expert.
        repeated: linears that one batch was given to several times, but for those in experts.
        bases: of the linears that add to the residual stream, see `armor.calibrate.residual`.
        moments: second moments by the first linear of each stage, where they were asked for.
    """

    stages: list[list[list[str]]] = field(default_factory=list)
    after: list[Handle] = field(default_factory=list)
    reached: Counter[str] = field(default_factory=Counter)
    repeated: set[str] = field(default_factory=set)
    bases: dict[str, str] = field(default_factory=dict)
    moments: dict[str, Moments] = field(default_factory=dict)


class Forward:
    """Has the passes done, and puts what they sum up together in the order of the parts.

    Args:
        plans: by layer name. cores: threads that jobs may use together, on one machine.
        tokens: of the calibration text.

    Attributes:
        solved: handles of the packed layers of the block at hand, by path in it.
        own: handles of its arguments that differ from batch to batch, part by part, if there are
            any.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        names: LayerNames,
        plans: Mapping[str, LayerPlan],
        cores: int,
        tokens: int,
    ) -> None:
        self.solved = Handles()
        self.own: list[Handle] = []
        self._scheduler = scheduler
        self._engine = scheduler.engine
        self._names = names
        self._plans = plans
        self._cores = cores
        self._tokens = tokens

    def advance_dense(self, index: int, hidden: Hidden, keep: bool, sums: bool) -> Passed:
        """Through the dense block: see `jobs.advance_dense`."""
        passed = Passed()
        arguments = {"keep": keep, "sums": sums}
        work = self._jobs(jobs.advance_dense, index, hidden, arguments, True, results=1 + sums)
        for done in self._scheduler.in_order(work):
            advanced: jobs.Advanced = done.value
            after, *summed = done.handles
            passed.stages.append(advanced.stages)
            passed.after.append(after)
            passed.reached.update(advanced.reached)
            passed.repeated |= advanced.repeated
            passed.bases = passed.bases or advanced.bases
            for handle in summed:
                parts = self._engine.fetch(handle)
                for head, count in advanced.tokens.items():
                    part = {"second": parts[head]}
                    passed.moments.setdefault(head, Moments()).merge(count, part)
                self._engine.drop(handle)
        return passed

    def advance_pruned(self, index: int, hidden: Hidden) -> list[Handle]:
        """Through the block with its solved layers: the hidden states after it, by part."""
        work = self._jobs(jobs.advance_pruned, index, hidden, {"patterns": self._patterns(index)})
        return [done.handles[0] for done in self._scheduler.in_order(work)]

    def stage_moments(
        self, index: int, hidden: Hidden, linear: str, alone: bool, base: str | None
    ) -> Moments:
        """Of what `linear` is given in the block with its solved layers: see `jobs.sum_moments`."""
        about = {"linear": linear, "alone": alone, "base": base if alone else None}
        arguments = {**about, "patterns": self._patterns(index)}
        return self._total(self._jobs(jobs.sum_moments, index, hidden, arguments, True))

    def head_moments(self, index: int, hidden: Hidden) -> Moments:
        """Of what the output head is given."""
        return self._total(self._jobs(jobs.sum_head_moments, index, hidden, {}))

    def expert_moments(
        self,
        index: int,
        hidden: Hidden,
        routed: Routed,
        group: list[list[str]],
        reached: Mapping[str, int],
    ) -> dict[str, Moments]:
        """Of stages in experts, by their first linears.

        An expert that saw fewer tokens than its linear has inputs cannot tell them apart: others
        make up the number, which shrinks its moments towards those of all tokens.
        """
        shares = {
            head: max(0, self._width(index, head) - reached.get(head, 0)) / self._tokens
            for head, *_ in group
        }
        arguments = {"routed": routed, "linears": shares, "patterns": self._patterns(index)}
        totals: dict[str, Moments] = {}
        work = self._jobs(jobs.sum_expert_moments, index, hidden, arguments)
        for done in self._scheduler.in_order(work):
            (handle,) = done.handles
            sums = self._engine.fetch(handle)
            for head, count in done.value.items():
                if count:
                    kinds = {kind: sums.get(f"{kind}/{head}") for kind in ("second", "cross")}
                    part = {kind: value for kind, value in kinds.items() if value is not None}
                    totals.setdefault(head, Moments()).merge(count, part)
            self._engine.drop(handle)
        return totals

    def _total(self, work: list[Job]) -> Moments:
        """The moments that jobs have summed over their parts, in the order of these."""
        total = Moments()
        for done in self._scheduler.in_order(work):
            (handle,) = done.handles
            total.merge(done.value, self._engine.fetch(handle))
            self._engine.drop(handle)
        return total

    def _jobs(
        self,
        function: Callable[..., Result],
        index: int,
        hidden: Hidden,
        arguments: Mapping[str, Any],
        numbered: bool = False,
        results: int = 1,
    ) -> list[Job]:
        """One job for each part; jobs that name patterns get the solved layers.

        Args:
            numbered: whether the function takes the number of the part.
        """
        solved = {"solved": self.solved} if self.solved and "patterns" in arguments else {}
        given = {**hidden, "own": self.own} if self.own else hidden
        return [
            Job(
                function,
                {"index": index, **({"part": part} if numbered else {}), **arguments},
                {name: handles[part] for name, handles in given.items()} | solved,
                results=results,
                threads=forward_threads(self._cores),
                part=part if numbered else None,
                urgent=True,
                label=f"calibration of {self._names.name(index, '')}",
            )
            for part in range(len(hidden["hidden"]))
        ]

    def _patterns(self, index: int) -> dict[str, str]:
        """Of the solved layers, "" for that of the run."""
        return {
            linear: self._plans[self._names.name(index, linear)].pattern for linear in self.solved
        }

    def _width(self, index: int, linear: str) -> int:
        return self._plans[self._names.name(index, linear)].shape[1]
