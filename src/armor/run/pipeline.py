"""Block by block through the decoder: moments of each stage, its layers solved, both streams on.

Only what the store lacks is done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

from armor.calibrate.moments import Moments
from armor.calibrate.stream import merge_stages
from armor.checkpoint.records import LayerRecord
from armor.config import PruneConfig
from armor.engines.job import Job, Tensors
from armor.engines.scheduler import Scheduler
from armor.errors import ArmorError
from armor.models.routed import Routed, find_routed
from armor.models.streamed import StreamedModel
from armor.run.manifest import hash_tensors
from armor.run.plan import LayerPlan
from armor.run.shared import DenseMoments
from armor.run.store import Store
from armor.run.streams import Streams
from armor.run.threads import forward_threads, solve_threads
from armor.run.waves import Wave, passes, waves

#: Methods whose statistics come from the dense model; the others see the pruned one, as in
#: their papers. ARMOR's follow its target.
_DENSE_STATISTICS = frozenset({"nowag", "magnitude"})
#: How the note of an expert's layer begins whose moments were filled with other tokens.
FEW_TOKENS = "its expert saw"


def stream_kinds(config: PruneConfig) -> tuple[str, ...]:
    """The activation streams that a run needs: "dense", "pruned" or both."""
    if config.method == "armor":
        return ("dense",) if config.target == "dense" else ("dense", "pruned")
    return ("dense",) if config.method in _DENSE_STATISTICS else ("pruned",)


class Pipeline:
    """One run through the decoder.

    Args:
        plans: by layer name. cores: threads that jobs may use together, on one machine.
        tokens: of the calibration text.
        finished: called with a layer's name and record when it is in the store.
        kept: moments of the dense model, shared with other runs that need no other stream.
        task: what is done with each layer, a method of the worker like its `solve`.
        refs: by layer name, further handles that its job gets; dropped behind it.
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
        task: str = "solve",
        refs: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self._model = model
        self._plans = plans
        self._scheduler = scheduler
        self._engine = scheduler.engine
        self._store = store
        self._cores = cores
        self._tokens = tokens
        self._finished = finished
        self._kept = kept
        self._task = task
        self._refs = refs or {}
        self._solved: dict[str, Any] = {}  # handles of the block's packed layers, by linear

    def missing(self) -> list[int]:
        """The blocks with layers that are not in the store, in order; the output head is one."""
        return sorted({self._index(name) for name in self._plans if self._lacks(name)})

    def run_kept(self) -> bool:
        """Solve what is missing with nothing but the kept moments; False where they do not do."""
        wanted = {index: self._lacking(index) for index in self.missing()}
        if self._kept is None or not all(self._kept.covers(*block) for block in wanted.items()):
            return False
        for index in wanted:
            stages, means = self._kept.load(index)
            self._solve_all(index, stages, means)
            self._scheduler.settle(self._engine.ahead)
        self._scheduler.settle()
        return True

    def run(self, streams: Streams) -> None:
        """Solve every planned layer that is missing, from where `streams` are on."""
        last = self.missing()[-1]
        while True:
            self._model.prefetch(streams.index + 1)
            self._solved = {}
            before = streams.refs()
            if streams.index == len(self._model.structure.blocks):
                self._head(streams)
            elif streams.pruned is None:
                self._dense_block(streams)
            else:
                self._pruned_block(streams, last)
            for ref in (before - streams.refs()) | set(self._solved.values()):
                self._engine.drop(ref)
            if streams.index == last:
                break
            streams.index += 1
            parts = ((name, self._engine.fetch(ref)) for name, ref in streams.named())
            self._store.save_activations(streams.index, parts)
            self._store.drop_activations((self.missing() or [last])[0])
        self._scheduler.settle()

    def _dense_block(self, streams: Streams) -> None:
        """All stages at once: what they are fed does not depend on what becomes of the others."""
        assert streams.dense is not None
        wanted = any(map(self._lacks, self._in_block(streams.index)))
        args = {"index": streams.index, "sums": wanted}
        jobs = self._forward("advance", args, {"hidden": streams.dense}, 1 + wanted)
        found, ahead = [], []
        totals: dict[str, Moments] = {}
        reached: Counter[str] = Counter()
        for (stages, tokens, experts), (hidden, *sums) in self._scheduler.each(jobs):
            found.append(stages)
            ahead.append(hidden)
            reached.update(experts)
            for ref in sums:
                parts = self._engine.fetch(ref)
                for head, count in tokens.items():
                    part = {"second": parts[head]}
                    totals.setdefault(head, Moments()).merge(count, part)
                self._engine.drop(ref)
        before = Streams(streams.index, None, streams.dense)
        streams.dense = ahead
        if wanted:
            self._solve_dense(before, found, totals, reached)
        self._scheduler.settle(self._engine.ahead)

    def _solve_dense(
        self,
        streams: Streams,
        found: list[list[list[str]]],
        totals: Mapping[str, Moments],
        reached: Mapping[str, int],
    ) -> None:
        """Have the missing layers of a block solved; `streams` are before it."""
        index = streams.index
        found_waves = self._waves(index, found)
        heads = {linear: stage[0] for stage in merge_stages(found) for linear in stage}
        stages = [wave.stages[0] for wave in found_waves if wave.routed is None]
        seconds = {
            stage[0]: totals[heads[stage[0]]].means(self._name(index, stage[0]))["second"]
            for stage in stages
        }
        if self._kept is not None and len(stages) == len(found_waves):
            self._kept.save(index, stages, seconds)
        self._solve_all(index, stages, seconds)
        for wave in found_waves:
            if wave.routed is None:
                continue
            for group in self._groups(index, wave):
                sums = self._expert_moments(streams, wave.routed, group, reached)
                for stage in group:
                    means = sums.pop(stage[0]).means(self._name(index, stage[0]))
                    self._solve(index, stage, means, self._cores, reached)

    def _pruned_block(self, streams: Streams, last: int) -> None:
        """Stage by stage: each is fed what the pruned ones before it put out."""
        index, dense, pruned = streams.index, streams.dense, streams.pruned
        assert pruned is not None
        args = {"index": index, "note": dense is not None}
        jobs = self._forward("advance", args, {"hidden": dense or pruned})
        found, ahead = [], []
        reached: Counter[str] = Counter()
        for (stages, _, experts), (ref,) in self._scheduler.each(jobs):
            found.append(stages)
            ahead.append(ref)
            reached.update(experts)
        for wave in self._waves(index, found):
            for group in self._groups(index, wave):
                if wave.routed is None:
                    totals = {group[0][0]: self._stage_moments(streams, group[0][0])}
                else:
                    totals = self._expert_moments(streams, wave.routed, group, reached)
                for stage in group:
                    means = totals.pop(stage[0]).means(self._name(index, stage[0]))
                    self._solve(index, stage, means, sum(map(len, wave.stages)), reached)
                self._scheduler.settle()
            for linear in chain.from_iterable(wave.stages):
                done = self._store.load(self._name(index, linear))
                self._solved[linear] = self._engine.share(done)
        if dense is None:
            for ref in ahead:
                self._engine.drop(ref)
        else:
            streams.dense = ahead
        if index != last:
            jobs = self._forward("advance_pruned", {"index": index}, {"hidden": pruned})
            streams.pruned = [ref for _, (ref,) in self._scheduler.each(jobs)]

    def _head(self, streams: Streams) -> None:
        """The output head, behind the last block."""
        head = self._model.head
        assert head is not None
        hidden = {"hidden": streams.pruned or streams.dense or []}
        if streams.pruned is not None and streams.dense is not None:
            hidden["dense"] = streams.dense
        total = Moments()
        args = {"index": streams.index}
        for tokens, (ref,) in self._scheduler.each(self._forward("head_sums", args, hidden)):
            total.merge(tokens, self._engine.fetch(ref))
            self._engine.drop(ref)
        self._solve(streams.index, [head], total.means(head), 1)
        self._scheduler.settle()

    def _stage_moments(self, streams: Streams, linear: str) -> Moments:
        assert streams.pruned is not None
        hidden = {"hidden": streams.pruned}
        if streams.dense is not None:
            hidden["dense"] = streams.dense
        total = Moments()
        jobs = self._forward("sums", {"index": streams.index, "linear": linear}, hidden)
        for tokens, (ref,) in self._scheduler.each(jobs):
            total.merge(tokens, self._engine.fetch(ref))
            self._engine.drop(ref)
        return total

    def _solve_all(self, index: int, stages: list[list[str]], seconds: Tensors) -> None:
        """Have the missing layers of a block solved, given the moments of each stage's first."""
        for stage in stages:
            planned = [linear for linear in stage if self._name(index, linear) in self._plans]
            if self._incomplete(index, planned):
                self._solve(index, planned, {"second": seconds[stage[0]]}, self._cores)

    def _expert_moments(
        self, streams: Streams, routed: Routed, group: list[list[str]], reached: Mapping[str, int]
    ) -> dict[str, Moments]:
        """The moments of stages in experts, by their first linears.

        An expert that saw fewer tokens than its linear has inputs cannot tell them apart: others
        make up the number, which shrinks its moments towards those of all tokens.
        """
        assert streams.pruned is not None
        hidden = {"hidden": streams.pruned}
        if streams.dense is not None:
            hidden["dense"] = streams.dense
        shares = {
            head: max(0, self._width(streams.index, head) - reached.get(head, 0)) / self._tokens
            for head, *_ in group
        }
        args = {"index": streams.index, "routed": routed, "linears": shares}
        totals: dict[str, Moments] = {}
        for tokens, (ref,) in self._scheduler.each(self._forward("expert_sums", args, hidden)):
            sums = self._engine.fetch(ref)
            for head, count in tokens.items():
                if count:
                    kinds = {kind: sums.get(f"{kind}/{head}") for kind in ("second", "cross")}
                    part = {kind: value for kind, value in kinds.items() if value is not None}
                    totals.setdefault(head, Moments()).merge(count, part)
            self._engine.drop(ref)
        return totals

    def _solve(
        self,
        index: int,
        stage: list[str],
        means: Tensors,
        together: int,
        reached: Mapping[str, int] | None = None,
    ) -> None:
        """Have the missing layers of a stage solved."""
        digest = hash_tensors(means)
        moments = self._engine.share(means)
        plans = [self._plans[self._name(index, linear)] for linear in stage]
        if reached is not None and any(layer.holds(stage[0]) for layer in self._routed(index)):
            seen, width = reached.get(stage[0], 0), plans[0].shape[1]
            if seen < width:
                note = (
                    f"its expert saw {seen} tokens, fewer than its {width} inputs: others stand in"
                )
                plans = [replace(plan, note=note) for plan in plans]
        left = {plan.name for plan in plans if self._store.lacks(plan.name, digest)}

        def keep(plan: LayerPlan, record: LayerRecord, refs: list[Any]) -> None:
            (ref,) = refs
            self._store.save(plan.name, self._engine.fetch(ref), record, digest)
            for used in (ref, *self._refs.get(plan.name, {}).values()):
                self._engine.drop(used)
            left.remove(plan.name)
            if not left:
                self._engine.drop(moments)
            self._finished(plan.name, record)

        for plan in plans:
            if plan.name in left:
                entries = plan.shape[0] * plan.shape[1]
                job = Job(
                    self._task,
                    {"plan": plan},
                    {"moments": moments, **self._refs.get(plan.name, {})},
                    threads=solve_threads(entries, together, self._cores),
                    size=entries * max(plan.shape),
                    label=plan.name,
                )
                self._scheduler.later(job, partial(keep, plan))

    def _forward(
        self,
        task: str,
        args: dict[str, Any],
        hidden: Mapping[str, Sequence[Any]],
        results: int = 1,
    ) -> list[Job]:
        """One job for each part of the windows; those that need it get the block's layers too."""
        solved = {}
        if task != "advance":
            for linear, ref in self._solved.items():
                own = self._plans[self._name(args["index"], linear)].pattern
                solved[f"solved/{own}/{linear}"] = ref
        return [
            Job(
                task,
                args | ({"part": part} if task in ("advance", "sums") else {}),
                {name: refs[part] for name, refs in hidden.items()} | solved,
                threads=forward_threads(self._cores),
                results=results,
                urgent=True,
                label=f"calibration of {self._name(args['index'], '')}",
            )
            for part in range(len(hidden["hidden"]))
        ]

    def _waves(self, index: int, found: list[list[list[str]]]) -> list[Wave]:
        """The waves of a block with only the linears that are pruned."""
        routed = self._routed(index)
        found_waves = waves(
            merge_stages(found), routed, lambda linear: self._name(index, linear) in self._plans
        )
        called = {
            self._name(index, linear)
            for wave in found_waves
            for linear in chain.from_iterable(wave.stages)
        }
        if idle := [name for name in self._in_block(index) if name not in called]:
            raise ArmorError(
                f"layer {idle[0]} is never called on the calibration text: give more text, or"
                f" --exclude {idle[0]}"
            )
        return found_waves

    def _groups(self, index: int, wave: Wave) -> list[list[list[str]]]:
        """The stages of a wave with missing layers, in groups that one pass serves."""
        left = [stage for stage in wave.stages if self._incomplete(index, stage)]
        return list(passes(left, {stage[0]: self._width(index, stage[0]) for stage in left}))

    def _routed(self, index: int) -> list[Routed]:
        return find_routed(self._model.structure.blocks[index])

    def _width(self, index: int, linear: str) -> int:
        return self._plans[self._name(index, linear)].shape[1]

    def _name(self, index: int, linear: str) -> str:
        path = f"{self._model.structure.prefix}.{index}.{linear}".rstrip(".")
        if index == len(self._model.structure.blocks):
            path = self._model.head or ""
        return self._model.layout.name(path)

    def _index(self, name: str) -> int:
        path = self._model.layout.path(name)
        if path == self._model.head:
            return len(self._model.structure.blocks)
        return int(path.removeprefix(f"{self._model.structure.prefix}.").partition(".")[0])

    def _in_block(self, index: int) -> list[str]:
        return [name for name in self._plans if self._index(name) == index]

    def _lacking(self, index: int) -> list[str]:
        """The linears of a block that are not in the store."""
        prefix = self._name(index, "") + "."
        return [n.removeprefix(prefix) for n in self._in_block(index) if self._lacks(n)]

    def _incomplete(self, index: int, stage: list[str]) -> bool:
        return any(self._lacks(self._name(index, linear)) for linear in stage)

    def _lacks(self, name: str) -> bool:
        return self._store.lacks(name)
