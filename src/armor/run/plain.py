"""The whole of ``armor prune`` for a dense decoder, on one page: the oracle of every engine.

One process, everything in memory, no experts, no output head, no size to choose blocks for, no
method whose weights are not packed. What it writes is, byte for byte, what `armor.prune` writes
with any engine and any number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from armor.calibrate.call import BlockCall
from armor.calibrate.held_out import HeldOut
from armor.calibrate.moments import Moments
from armor.calibrate.residual import BLOCK_INPUT, given_to, traced
from armor.calibrate.sample import Sample
from armor.calibrate.state import State, of_batch, states
from armor.calibrate.stream import merge_stages, observe
from armor.checkpoint.assemble import assemble
from armor.checkpoint.records import LayerRecord
from armor.config import PruneConfig
from armor.engines.job import Tensors
from armor.engines.threads import threads
from armor.methods import Stream
from armor.models.folder import ModelFolder
from armor.models.load import load_tokenizer
from armor.run.block import Block
from armor.run.layer_names import LayerNames
from armor.run.open import linear_shapes, open_model, window_length
from armor.run.plan import make_plan
from armor.run.record import run_record
from armor.run.solve import LayerInputs, solve_certified
from armor.run.streams import Opened, open_streams, stream_kinds
from armor.run.threads import forward_threads, solve_threads
from armor.run.worker import held_out_of
from armor.sparse.layer import PackedLayer
from armor.text.bos import resolve_bos
from armor.text.windows import token_windows


def prune_plainly(source: Path, config: PruneConfig, out: Path) -> dict[str, LayerRecord]:
    """Prune the dense decoder in `source` and write the checkpoint `out`; the layers' records."""
    # What there is, and what is to become of each linear.
    folder = ModelFolder.open(source)
    model = open_model(folder, config)
    shapes = linear_shapes(model, lm_head=False)
    itemsize = model.dtype(f"{model.layout.path(next(iter(shapes)))}.weight").itemsize
    plan = make_plan(shapes, config, itemsize)
    todo = {layer.name: layer for layer in plan if not layer.dense}
    names = LayerNames(model, todo)
    cores = torch.get_num_threads()

    # Calibration text, in windows of tokens, embedded: the input of the first block.
    seq_len = window_length(config, model.model)
    tokenizer = load_tokenizer(folder)
    config = replace(config, seq_len=seq_len, bos=resolve_bos(config.bos, tokenizer))
    windows = token_windows(
        config.calibration, tokenizer, config.samples, seq_len, config.seed, config.bos
    )
    opened = open_streams(model, windows)
    hidden, held_out = opened.hidden, held_out_of(config, windows)

    # Two streams run through the blocks: of the dense model, and of what is pruned so far.
    streams = dict.fromkeys(stream_kinds(config), hidden)
    packed: dict[str, PackedLayer] = {}
    records: dict[str, LayerRecord] = {}
    for index in range(len(model.structure.blocks)):
        block = Block(index, model, "cpu")
        with threads(forward_threads(cores)):
            passed = _through(block, opened, streams.get("dense", hidden))

        # Stage by stage: the linears that are given one and the same tensor.
        for stage in passed.stages:
            linears = [name for name in stage if names.name(index, name) in todo]
            if not linears:
                continue

            # 1. Moments of what the stage is given in the pruned block, and across to the dense;
            # where its linear adds to the residual stream, also what that has lost so far.
            with threads(forward_threads(cores)):
                means = _moments(block, opened, streams, passed, held_out, linears, stage[0])

            for linear in linears:
                name = names.name(index, linear)
                layer, weight = todo[name], f"{model.layout.path(name)}.weight"

                # 2. The target; 3. factors, exactly; 4. the certificate, on what is stored.
                def inputs(
                    dtype: torch.dtype, weight: str = weight, means: Tensors = means
                ) -> LayerInputs:
                    moments = {kind: mean.to(dtype) for kind, mean in means.items()}
                    return LayerInputs.of(model.load(weight).to(dtype), moments)

                together = cores if "pruned" not in streams else len(linears)
                entries = layer.shape[0] * layer.shape[1]
                with threads(solve_threads(entries, together, cores)):
                    factors, record = solve_certified(layer, inputs, config, model.dtype(weight))
                records[name], packed[name] = record, PackedLayer.from_factors(factors)
                block.replace(linear, factors)

        # Both streams go on to the next block.
        with threads(forward_threads(cores)):
            if "pruned" in streams:
                pruned: list[Tensors] = []
                for part in _batches(opened, index, streams["pruned"]):
                    pruned.append({})
                    for batch, state, call in part:
                        pruned[-1] |= call.run(block.pruned, state).named(batch)
                streams["pruned"] = pruned
            if "dense" in streams:
                streams["dense"] = passed.after
        hidden = streams.get("pruned", passed.after)

    written = run_record(str(source), config, plan, records)
    transposed = model.layout.transposed
    assemble(model.files, out, {n: packed[n] for n in todo}, written, transposed=transposed)
    return records


@dataclass(frozen=True)
class _Passed:
    """What a pass through the dense block shows: its stages; by the first linear of each, and by
    the modules in `bases`, what it is given, in batches, part by part; the linears that add to the
    residual stream; the hidden states before and after the block."""

    stages: list[list[str]]
    given: dict[str, list[list[Tensor]]]
    bases: dict[str, str]
    before: list[Tensors]
    after: list[Tensors]


def _batches(
    opened: Opened, index: int, parts: list[Tensors]
) -> Iterator[Iterator[tuple[str, State, BlockCall]]]:
    """Part by part the batches: number, state, and how block `index` is called with it."""
    for part, own in zip(parts, opened.own[index] or [{}] * len(parts), strict=True):
        yield (
            (batch, state, opened.calls.of(index, batch, of_batch(own, batch)))
            for batch, state in states(part)
        )


def _through(block: Block, opened: Opened, parts: list[Tensors]) -> _Passed:
    found: list[list[list[str]]] = []
    after: list[Tensors] = []
    given: dict[str, list[list[Tensor]]] = {}
    bases: dict[str, str] | None = None
    for number, part in enumerate(_batches(opened, block.index, parts)):
        after.append({})
        for batch, state, call in part:
            with traced(block.dense, state.hidden) as trace:
                left, stages = observe(block.dense, call, state)
            bases = trace.bases(left.hidden) if bases is None else bases
            after[-1] |= left.named(batch)
            found.append([stage for stage, _ in stages])
            inside = {base: trace.given[base] for base in bases.values() if base != BLOCK_INPUT}
            for first, inputs in ({stage[0]: inputs for stage, inputs in stages} | inside).items():
                own = given.setdefault(first, [])
                own += [[] for _ in range(number + 1 - len(own))]
                own[number].append(inputs)
    return _Passed(merge_stages(found), given, bases or {}, parts, after)


def _moments(
    block: Block,
    opened: Opened,
    streams: Mapping[Stream, list[Tensors]],
    passed: _Passed,
    held_out: HeldOut | None,
    linears: list[str],
    first: str,
) -> Tensors:
    """Mean moments of what the `linears` of a stage are given, summed part by part.

    Args:
        first: of the stage, under which `passed` has what the dense ones are given.
    """
    total, (linear, *others) = Moments(), linears
    base = None if others else passed.bases.get(linear)
    weight = None if others else block.dense.get_parameter(f"{linear}.weight")
    hidden = streams.get("pruned", passed.after)
    for number, part in enumerate(_batches(opened, block.index, hidden)):
        moments = Moments()
        for place, (batch, state, call) in enumerate(part):
            dense = passed.given[first][number][place]
            if "pruned" not in streams:
                moments.add(dense)
                continue
            inputs, stream = given_to(block.pruned, call, state, linear, base)
            assert inputs is not None
            if held_out is None:
                moments.add(inputs)
                continue
            ahead = None
            if base is not None and stream is not None:
                inside = base != BLOCK_INPUT
                twin = passed.given[base][number][place] if inside else passed.before[number][batch]
                ahead = twin - stream
            given = Sample(inputs, dense, ahead)
            held_out.add(moments, batch, call.shape[0], given, weight)
        total.merge(moments.tokens, moments.sums())
    return total.means(linear)
