"""Block by block through the decoder: moments of each stage, its layers solved, both streams on.

Only what the store lacks is done. `armor.run.plain` is the same for one process on one page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain

from armor.calibrate.stream import merge_stages
from armor.checkpoint.records import LayerRecord
from armor.engines.engine import Done, Scheduler
from armor.engines.job import Handle, Handles, Job, Result, Tensors
from armor.errors import ArmorError
from armor.models.routed import Routed, find_routed
from armor.models.streamed import StreamedModel
from armor.run import jobs
from armor.run.forward import Forward, Passed
from armor.run.layer_names import LayerNames
from armor.run.manifest import hash_tensors
from armor.run.plan import LayerPlan
from armor.run.saving import is_on_gpu, later
from armor.run.shared import DenseMoments
from armor.run.store import Store
from armor.run.streams import Streams
from armor.run.threads import solve_threads
from armor.run.waves import Wave, passes, waves

#: How the note of an expert's layer begins whose moments were filled with other tokens.
FEW_TOKENS = "its expert saw"


class Pipeline:
    """One run through the decoder.

    Args:
        plans: by layer name. cores: threads that jobs may use together, on one machine.
        tokens: of the calibration text.
        finished: called with a layer's name and record when it is in the store.
        kept: moments of the dense model, shared with other runs that need no other stream.
        solve: the job of each layer.
        extra: by layer name, further handles that its job gets; dropped when it is done.
    """

    def __init__(
        self,
        model: StreamedModel,
        plans: Mapping[str, LayerPlan],
        scheduler: Scheduler,
        store: Store,
        cores: int,
        tokens: int,
        finished: Callable[[str, LayerRecord], None],
        kept: DenseMoments | None = None,
        solve: Callable[..., Result] = jobs.solve,
        extra: Mapping[str, Mapping[str, Handle]] | None = None,
    ) -> None:
        self._model = model
        self._plans = plans
        self._names = LayerNames(model, plans)
        self._scheduler = scheduler
        self._engine = scheduler.engine
        self._store = store
        self._cores = cores
        self._finished = finished
        self._kept = kept
        self._solve_job = solve
        self._extra = extra or {}
        self._forward = Forward(scheduler, self._names, plans, cores, tokens)

    def missing(self) -> list[int]:
        """The blocks with layers that are not in the store, in order; the output head is one."""
        return sorted({self._names.block_of(name) for name in self._plans if self._lacks(name)})

    def run_kept(self) -> bool:
        """Solve what is missing with nothing but the kept moments; False where they do not do."""
        wanted = {
            index: [self._names.path_in_block(name) for name in self._lacking(index)]
            for index in self.missing()
        }
        if self._kept is None or not all(self._kept.covers(*block) for block in wanted.items()):
            return False
        for index in wanted:
            stages, means = self._kept.load(index)
            self._solve_stages(index, stages, means)
            self._scheduler.wait(self._engine.ahead)
        self._scheduler.wait()
        return True

    def run(self, streams: Streams) -> None:
        """Solve every planned layer that is missing, from where `streams` are on."""
        last = self.missing()[-1]
        while True:
            self._model.prefetch(streams.index + 1)
            self._forward.solved = Handles()
            self._forward.own = streams.own_arguments(self._engine)
            before = streams.handles()
            if streams.index == len(self._model.structure.blocks):
                self._head(streams)
            elif streams.pruned is None:
                self._dense_block(streams)
            else:
                self._pruned_block(streams, last)
            used = {*self._forward.solved.values(), *self._forward.own}
            for handle in (before - streams.handles()) | used:
                self._engine.drop(handle)
            if streams.index == last:
                break
            streams.index += 1
            if self._store.activations_are_due():
                parts = ((name, self._engine.fetch(handle)) for name, handle in streams.named())
                self._store.save_activations(streams.index, parts, (self.missing() or [last])[0])
        self._scheduler.wait()
        self._store.stop_saving()

    def _dense_block(self, streams: Streams) -> None:
        """All stages at once: what they are given does not depend on what becomes of the others."""
        index, hidden = streams.index, streams.dense
        assert hidden is not None
        wanted = bool(self._lacking(index))
        passed = self._forward.advance_dense(index, {"hidden": hidden}, keep=False, sums=wanted)
        streams.dense = passed.after
        if wanted:
            self._solve_dense(index, hidden, passed)
        self._scheduler.wait(self._engine.ahead)

    def _solve_dense(self, index: int, hidden: list[Handle], passed: Passed) -> None:
        """Have the missing layers of a block solved.

        Args:
            hidden: states before the block. passed: what came of its pass.
        """
        found = self._waves(index, passed)
        heads = {linear: stage[0] for stage in merge_stages(passed.stages) for linear in stage}
        stages = [wave.stages[0] for wave in found if wave.routed is None]
        seconds: Tensors = {}
        for first, *_ in stages:
            means = passed.moments[heads[first]].means(self._names.name(index, first))
            seconds[first] = means["second"]
        if self._kept is not None and len(stages) == len(found):
            self._kept.save(index, stages, seconds)
        self._solve_stages(index, stages, seconds)
        for wave in found:
            if wave.routed is None:
                continue
            for group in self._groups(index, wave):
                sums = self._forward.expert_moments(
                    index, {"hidden": hidden}, wave.routed, group, passed.reached
                )
                for stage in group:
                    means = sums.pop(stage[0]).means(self._names.name(index, stage[0]))
                    self._solve(index, stage, means, self._cores, passed.reached)

    def _pruned_block(self, streams: Streams, last: int) -> None:
        """Stage by stage: each is given what the pruned ones before it put out."""
        index, dense, pruned = streams.index, streams.dense, streams.pruned
        assert pruned is not None
        hidden = {"hidden": pruned} if dense is None else {"hidden": pruned, "dense": dense}
        passed = self._forward.advance_dense(
            index, {"hidden": dense or pruned}, keep=dense is not None, sums=False
        )
        self._check_called_once(index, passed)
        for wave in self._waves(index, passed):
            for group in self._groups(index, wave):
                first = group[0][0]
                if wave.routed is None:
                    alone, base = len(group[0]) == 1, passed.bases.get(first)
                    total = self._forward.stage_moments(index, hidden, first, alone, base)
                    totals = {first: total}
                else:
                    totals = self._forward.expert_moments(
                        index, hidden, wave.routed, group, passed.reached
                    )
                for stage in group:
                    means = totals.pop(stage[0]).means(self._names.name(index, stage[0]))
                    self._solve(index, stage, means, sum(map(len, wave.stages)), passed.reached)
                self._scheduler.wait()
            for linear in chain.from_iterable(wave.stages):
                packed = self._store.load(self._names.name(index, linear))
                self._forward.solved[linear] = self._engine.share(packed)
        if dense is None:
            for handle in passed.after:
                self._engine.drop(handle)
        else:
            streams.dense = passed.after
        if index != last:
            streams.pruned = self._forward.advance_pruned(index, {"hidden": pruned})

    def _head(self, streams: Streams) -> None:
        """The output head, after the last block."""
        head = self._model.head
        assert head is not None
        hidden = {"hidden": streams.pruned or streams.dense or []}
        if streams.pruned is not None and streams.dense is not None:
            hidden["dense"] = streams.dense
        total = self._forward.head_moments(streams.index, hidden)
        self._solve(streams.index, [head], total.means(head), 1)
        self._scheduler.wait()

    def _solve_stages(self, index: int, stages: list[list[str]], seconds: Tensors) -> None:
        """Have the missing layers of a block solved, given the moments of each stage's first."""
        for stage in stages:
            planned = [one for one in stage if self._names.name(index, one) in self._plans]
            if self._is_incomplete(index, planned):
                self._solve(index, planned, {"second": seconds[stage[0]]}, self._cores)

    def _solve(
        self,
        index: int,
        stage: list[str],
        means: Tensors,
        together: int,
        reached: Mapping[str, int] | None = None,
    ) -> None:
        """Have the missing layers of a stage solved.

        Args:
            together: how many solves can run at a time.
        """
        plans = [self._plans[self._names.name(index, linear)] for linear in stage]
        if reached is not None and any(layer.holds(stage[0]) for layer in self._routed(index)):
            seen, width = reached.get(stage[0], 0), plans[0].shape[1]
            if seen < width:
                note = f"{FEW_TOKENS} {seen} tokens, fewer than its {width} inputs: others stand in"
                plans = [replace(plan, note=note) for plan in plans]
        is_new = all(self._lacks(plan.name) for plan in plans)
        # Of a GPU it is made beside the solves, and asked for when the first of them is done.
        digest = later(partial(hash_tensors, means), beside=is_new and is_on_gpu(means))
        left = {plan.name for plan in plans if is_new or self._store.lacks(plan.name, digest())}
        moments = self._engine.share(means)

        def keep(plan: LayerPlan, done: Done) -> None:
            (handle,) = done.handles
            self._store.save(plan.name, self._engine.fetch(handle), done.value, digest())
            for used in (handle, *self._extra.get(plan.name, {}).values()):
                self._engine.drop(used)
            left.remove(plan.name)
            if not left:
                self._engine.drop(moments)
            self._finished(plan.name, done.value)

        for plan in plans:
            if plan.name in left:
                entries = plan.shape[0] * plan.shape[1]
                job = Job(
                    self._solve_job,
                    {"plan": plan},
                    {"moments": moments, **self._extra.get(plan.name, {})},
                    threads=solve_threads(entries, together, self._cores),
                    size=entries * max(plan.shape),
                    label=plan.name,
                )
                self._scheduler.submit(job, partial(keep, plan))

    def _waves(self, index: int, passed: Passed) -> list[Wave]:
        """The waves of a block with only the linears that are pruned."""
        found = waves(
            merge_stages(passed.stages),
            self._routed(index),
            lambda linear: self._names.name(index, linear) in self._plans,
        )
        called = {
            self._names.name(index, linear)
            for wave in found
            for linear in chain.from_iterable(wave.stages)
        }
        if idle := [name for name in self._names.in_block(index) if name not in called]:
            raise ArmorError(
                f"layer {idle[0]} is never called on the calibration text: give more text, or"
                f" --exclude {idle[0]}"
            )
        return found

    def _check_called_once(self, index: int, passed: Passed) -> None:
        """Refuse a linear that is called several times when its block runs once.

        Two streams could not be paired call by call; in experts they are paired token by token.
        """
        for linear in passed.repeated:
            name = self._names.name(index, linear)
            if name in self._plans:
                raise ArmorError(
                    f"{name} is called more than once when its block runs: leave it dense with"
                    f" --exclude {name}"
                )

    def _groups(self, index: int, wave: Wave) -> list[list[list[str]]]:
        """The stages of a wave with missing layers, in groups that one pass serves."""
        left = [stage for stage in wave.stages if self._is_incomplete(index, stage)]
        widths = {
            stage[0]: self._plans[self._names.name(index, stage[0])].shape[1] for stage in left
        }
        return list(passes(left, widths))

    def _routed(self, index: int) -> list[Routed]:
        return find_routed(self._model.structure.blocks[index])

    def _lacking(self, index: int) -> list[str]:
        """The layers of a block that are not in the store."""
        return [name for name in self._names.in_block(index) if self._lacks(name)]

    def _is_incomplete(self, index: int, stage: list[str]) -> bool:
        return any(self._lacks(self._names.name(index, linear)) for linear in stage)

    def _lacks(self, name: str) -> bool:
        return self._store.lacks(name)
