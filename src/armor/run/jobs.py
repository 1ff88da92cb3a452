"""The jobs of a run, one function each: forward passes that sum up moments, and solves.

Every one gets the `Worker` of its process first. `hidden` is a part of the windows before a block
(see `armor.calibrate.state`), `own` the block's arguments that differ from batch to batch (see
`armor.run.streams.Opened`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from armor.calibrate.moments import Moments
from armor.calibrate.residual import BLOCK_INPUT, given_to, traced
from armor.calibrate.routed import (
    add_other_tokens,
    linear_input,
    noting_way,
    rows_in_use,
    taking_way,
    token_count,
    tokens_by_expert,
)
from armor.calibrate.sample import Sample
from armor.calibrate.state import states
from armor.calibrate.stream import merge_stages, observe
from armor.engines.job import Result, Tensors
from armor.models.routed import Routed
from armor.run.head import head_input
from armor.run.plan import LayerPlan
from armor.run.solve import LayerInputs, solve_certified
from armor.run.threads import SHARED_FROM
from armor.run.worker import Worker
from armor.sparse.layer import stored_parts

#: Packed layers of a block that are solved, by path in the block; none yet.
NOTHING: Mapping[str, Tensors] = {}


@dataclass(frozen=True)
class Advanced:
    """What a pass through a dense block has shown.

    Attributes:
        stages: linears that are given one tensor, by path in the block, in the order they run.
        tokens: of the first linear of each stage whose moments were summed.
        reached: of each linear in an expert, the tokens that were sent to it.
        repeated: the other linears that one batch was given to several times.
        bases: of the linears that add to the residual stream, see `armor.calibrate.residual`.
    """

    stages: list[list[str]]
    tokens: dict[str, int]
    reached: dict[str, int]
    repeated: set[str]
    bases: dict[str, str]


def advance_dense(
    worker: Worker,
    index: int,
    part: int,
    keep: bool,
    sums: bool,
    hidden: Tensors,
    own: Tensors | None = None,
) -> Result:
    """One part of the windows through the dense block.

    Args:
        keep: keep what the linears are given for `sum_moments` of the same part, if there is room.
        sums: also sum up the moments of each stage but those in experts, which are left to
            `sum_expert_moments`.
        hidden: before the block.

    Returns:
        `Advanced`; the hidden states after the block, and with `sums` the second moments, not
        divided by the tokens, by the first linear of the stage.
    """
    block = worker.block(index)
    found: list[list[list[str]]] = []
    inputs_of: dict[str, list[Tensor]] = {}
    moments: dict[str, Moments] = {}
    reached: dict[str, int] = {}
    repeated: set[str] = set()
    bases: dict[str, str] | None = None
    after: Tensors = {}
    for batch, state in states(hidden):
        call = worker.call(index, batch, own)
        moved = state.to(worker.device)
        with traced(block.dense, moved.hidden) if keep else nullcontext() as trace:
            left, stages = observe(block.dense, call, moved, worker.model.structure.stages)
        if trace is not None:
            bases = trace.bases(left.hidden) if bases is None else bases
            for base in {*bases.values()} - {BLOCK_INPUT}:
                inputs_of.setdefault(_stream(base), []).append(trace.given[base])
        after |= left.named(batch)
        found.append([names for names, _ in stages])
        repeated |= _repeated(found[-1], block.routed)
        for (head, *others), inputs in stages:
            if any(layer.holds(head) for layer in block.routed):
                for name in (head, *others):
                    reached[name] = reached.get(name, 0) + inputs.shape[:-1].numel()
                continue
            if keep:
                inputs_of.setdefault(head, []).append(inputs)
            if sums:
                moments.setdefault(head, Moments()).add(inputs)
    if keep:
        worker.keep_dense_inputs(index, part, inputs_of)
    tokens = {head: total.tokens for head, total in moments.items()}
    value = Advanced(merge_stages(found), tokens, reached, repeated, bases or {})
    if not sums:
        return Result(value, (after,))
    return Result(value, (after, {head: total.sums()["second"] for head, total in moments.items()}))


def _stream(base: str) -> str:
    """The name under which the stream is kept that the module `base` is given."""
    return f"stream/{base}"


def _repeated(stages: Iterable[list[str]], routed: Iterable[Routed]) -> set[str]:
    counts = Counter(name for names in stages for name in names)
    return {
        name
        for name, count in counts.items()
        if count > 1 and not any(layer.holds(name) for layer in routed)
    }


def advance_pruned(
    worker: Worker,
    index: int,
    patterns: Mapping[str, str],
    hidden: Tensors,
    solved: Mapping[str, Tensors] = NOTHING,
    own: Tensors | None = None,
) -> Result:
    """One part of the windows through the pruned block: the hidden states after it.

    Args:
        solved, patterns: the block's packed layers, see `Worker.block_with`.
    """
    block = worker.block_with(index, solved, patterns)
    after: Tensors = {}
    for batch, state in states(hidden):
        call = worker.call(index, batch, own)
        after |= call.run(block.pruned, state.to(worker.device)).named(batch)
    return Result(None, (after,))


def sum_moments(
    worker: Worker,
    index: int,
    part: int,
    linear: str,
    alone: bool,
    base: str | None,
    patterns: Mapping[str, str],
    hidden: Tensors,
    dense: Tensors | None = None,
    solved: Mapping[str, Tensors] = NOTHING,
    own: Tensors | None = None,
) -> Result:
    """The moments of what `linear` is given in the block as pruned so far, over one part.

    Args:
        alone: whether no other linear is given the same.
        base: of the residual stream it adds to, see `armor.calibrate.residual`; else None.
        hidden: before the block. dense: those of the dense model, to get the cross moment too.
        solved, patterns: see `advance_pruned`.

    Returns:
        The number of tokens; see `Moments.sums`.
    """
    block = worker.block_with(index, solved, patterns)
    inside = None if base in (None, BLOCK_INPUT) else base
    kept, kept_streams = None, None
    if dense is not None:
        kept = worker.take_dense_inputs(index, part, linear)
        if inside is not None:
            kept_streams = worker.take_dense_inputs(index, part, _stream(inside))
    moments = Moments()
    twins = dict(states(dense or {}))
    held_out = worker.spec.held_out
    weight = block.dense.get_parameter(f"{linear}.weight") if alone else None
    for number, (batch, state) in enumerate(states(hidden)):
        call = worker.call(index, batch, own)
        inputs, stream = given_to(block.pruned, call, state.to(worker.device), linear, base)
        if inputs is None:
            continue
        if dense is None or held_out is None:
            moments.add(inputs)
            continue
        twin = twins[batch].to(worker.device)
        if kept is None or (inside is not None and kept_streams is None):
            dense_inputs, dense_stream = given_to(block.dense, call, twin, linear, base)
            assert dense_inputs is not None
        else:
            dense_inputs = kept[number]
            dense_stream = twin.hidden if kept_streams is None else kept_streams[number]
        ahead = None if stream is None or dense_stream is None else dense_stream - stream
        given = Sample(inputs, dense_inputs, ahead)
        held_out.add(moments, batch, call.shape[0], given, weight)
    return Result(moments.tokens, (moments.sums(),))


def sum_expert_moments(
    worker: Worker,
    index: int,
    routed: Routed,
    linears: Mapping[str, float],
    patterns: Mapping[str, str],
    hidden: Tensors,
    dense: Tensors | None = None,
    solved: Mapping[str, Tensors] = NOTHING,
    own: Tensors | None = None,
) -> Result:
    """The moments of what linears in experts are given, over one part: see `sum_moments`.

    Both streams take the way of `hidden` through the router, so that they meet token by token.

    Args:
        linears: with the share of all tokens that pass each besides those routed to it.

    Returns:
        The tokens of each; ``second/LINEAR`` and maybe ``cross/LINEAR``, not divided by them.
    """
    block = worker.block_with(index, solved, patterns)
    moments = {linear: Moments() for linear in linears}
    twin_states = dict(states(dense or {}))
    for batch, state in states(hidden):
        call = worker.call(index, batch, own)
        with noting_way(block.pruned, routed) as way:
            inputs = worker.input_of(block.pruned, call, state, routed.path)
        assert inputs is not None
        twins = None
        if dense is not None:
            with taking_way(block.dense, routed, way):
                twins = worker.input_of(block.dense, call, twin_states[batch], routed.path)
        rows = tokens_by_expert(block.pruned, routed, inputs)
        in_use = rows_in_use(block.pruned, routed, inputs)
        tokens = token_count(block.pruned, routed, inputs)
        flat = inputs.flatten(0, -2)
        for linear, share in linears.items():
            number, inside = routed.inside(linear)
            chosen = add_other_tokens(rows[number], in_use, math.ceil(share * tokens))
            if not len(chosen):
                continue
            expert = routed.expert(number)
            given = linear_input(block.pruned.get_submodule(expert), inside, flat[chosen])
            twin = None
            if twins is not None:
                dense_expert = block.dense.get_submodule(expert)
                twin = linear_input(dense_expert, inside, twins.flatten(0, -2)[chosen])
            moments[linear].add(given, twin)
    sums = {
        f"{kind}/{linear}": value
        for linear, total in moments.items()
        for kind, value in total.sums().items()
    }
    return Result({linear: total.tokens for linear, total in moments.items()}, (sums,))


def sum_head_moments(
    worker: Worker, index: int, hidden: Tensors, dense: Tensors | None = None
) -> Result:
    """The moments of what the output head is given, over one part: see `sum_moments`.

    Args:
        index: number of blocks. hidden, dense: after the last one.
    """
    moments = Moments()
    for batch, state in states(hidden):
        call = worker.spec.calls.any(index - 1, batch)
        inputs = head_input(worker.model, state.hidden, call).to(worker.device)
        twins = None if dense is None else head_input(worker.model, dense[batch], call)
        moments.add(inputs, None if twins is None else twins.to(worker.device))
    return Result(moments.tokens, (moments.sums(),))


def solve(worker: Worker, plan: LayerPlan, moments: Tensors) -> Result:
    """Prune one layer, given its mean moments: its `LayerRecord`; its stored parts."""
    if worker.device == "cpu" and plan.shape[0] * plan.shape[1] >= SHARED_FROM:
        worker.free_block()  # read again in less time than the solve takes; its memory counts
    weight = f"{worker.model.layout.path(plan.name)}.weight"

    def inputs(precision: torch.dtype) -> LayerInputs:
        return LayerInputs.of(
            worker.model.load(weight, worker.device).to(precision),
            {name: moment.to(worker.device, precision) for name, moment in moments.items()},
        )

    dtype = worker.model.dtype(weight)
    factors, record = solve_certified(plan, inputs, worker.spec.config, dtype)
    return Result(record, (stored_parts(factors),))
