"""Choosing each layer's block for a given size of the whole: what is tried, and what it tells.

Two passes over the dense model. A backward pass over a few windows keeps, for some tokens, what
each layer is fed and the gradient of the loss by what it puts out. A forward pass over all windows
gathers moments, with which a few iterations of the solver give a weight for each block. Half the
mean of (gradient . error of the output)^2 over the tokens is then the divergence to expect from
it: see `armor.calibrate.gradients`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from armor.calibrate.stream import batches
from armor.checkpoint.folder import full_disk
from armor.checkpoint.jsonfile import read_json, write_json
from armor.config import PruneConfig
from armor.engines.job import Job, Tensors
from armor.engines.scheduler import Scheduler
from armor.errors import ArmorError
from armor.models.streamed import StreamedModel
from armor.run.allocate import Choice, allocate
from armor.run.engines import Where, open_engine
from armor.run.pipeline import Pipeline
from armor.run.plan import LayerPlan, packed_size
from armor.run.store import TRIALS, Store
from armor.run.streams import calls_of, start
from armor.run.threads import forward_threads
from armor.run.worker import Spec
from armor.sparse.pattern import Pattern

#: The backward pass reads so many tokens, in whole batches: activations at every block are kept.
BACKWARD_TOKENS = 8192
#: Of these so many are kept.
SAMPLED_TOKENS = 2048
_HARMS = "harms.json"

#: Harm of each block that was tried, by layer: divergence to expect, nats a token.
Harms = Mapping[str, Mapping[str, float]]
#: Called with a layer's name, how many are measured, and how many there are.
Measured = Callable[[str, int, int], None]


def sized(
    model: StreamedModel,
    plans: Sequence[LayerPlan],
    config: PruneConfig,
    windows: Tensor,
    store: Store,
    manifest: dict[str, Any],
    where: Where,
    itemsize: int,
    measured: Measured,
) -> tuple[list[LayerPlan], dict[str, Any]]:
    """Measure the layers with blocks to choose from, or read what was measured, and choose.

    Returns:
        See `choose`.

    Raises:
        ArmorError: no choice but to leave every layer dense, or gradients that are not finite.
    """
    if not any(plan.blocks for plan in plans):
        return choose(plans, config, itemsize, {})
    path = store.folder / TRIALS / _HARMS
    if not path.is_file():
        trials = Store(path.with_suffix(""), manifest)
        try:
            harms = _measure(model, plans, config, windows, trials, where, measured)
            with full_disk(store.folder):
                write_json(path, harms)
            trials.remove()
        finally:
            trials.close()
    return choose(plans, config, itemsize, read_json(path))


def check_size(plans: Sequence[LayerPlan], config: PruneConfig, itemsize: int) -> None:
    """Raise `ArmorError` if no choice of blocks is as small as `config.size`."""
    assert config.size is not None
    counted = [plan for plan in plans if not plan.dense]
    least = sum(
        min(choice.nbytes for choice in _choices(plan, config, itemsize)) for plan in counted
    )
    dense = sum(_dense_bytes(plan, itemsize) for plan in counted)
    if least > config.size * dense:
        raise ArmorError(
            f"size {config.size:g} cannot be reached: the smallest blocks take"
            f" {math.ceil(1e4 * least / dense) / 1e4:.4f} of the dense layers"
        )


def choose(
    plans: Sequence[LayerPlan], config: PruneConfig, itemsize: int, harms: Harms
) -> tuple[list[LayerPlan], dict[str, Any]]:
    """The plans with the blocks that do least harm within `config.size`.

    Returns:
        The plans; for the run's record ``size`` as asked for, ``reached``, and ``harms``.
    """
    assert config.size is not None
    counted = {plan.name: plan for plan in plans if not plan.dense}
    whole = sum(_dense_bytes(plan, itemsize) for plan in counted.values())
    choices = {
        name: _choices(plan, config, itemsize, harms.get(name, {}))
        for name, plan in counted.items()
    }
    chosen = allocate(choices, math.floor(config.size * whole))
    assert chosen is not None  # see check_size
    note = f"worth more dense than its bytes elsewhere, for size {config.size:g}"
    found = []
    for plan in plans:
        if plan.blocks:
            block = chosen[plan.name].block
            dense = block is None
            found.append(
                replace(
                    plan, blocks=(), block=block, dense=dense, note=note if dense else plan.note
                )
            )
        else:
            found.append(plan)
    if all(plan.dense for plan in found):
        raise ArmorError(f"size {config.size:g} leaves every layer dense: ask for less")
    about = {
        "size": config.size,
        "reached": sum(choice.nbytes for choice in chosen.values()) / whole,
        "harms": harms,
    }
    return found, about


def _choices(
    plan: LayerPlan, config: PruneConfig, itemsize: int, harms: Mapping[str, float] | None = None
) -> list[Choice]:
    """What may become of a layer; of one whose block is given, that alone."""
    dense = _dense_bytes(plan, itemsize)
    pattern = Pattern.parse(plan.settings(config).pattern)

    def nbytes(block: int | None) -> int:
        return round(packed_size(plan.shape, block, itemsize, pattern) * dense)

    if not plan.blocks:
        return [Choice(plan.block, nbytes(plan.block), 0.0)]
    own = harms or {}
    pruned = [Choice(block, nbytes(block), own.get(str(block), math.inf)) for block in plan.blocks]
    return [*pruned, Choice(None, dense, 0.0)]


def _dense_bytes(plan: LayerPlan, itemsize: int) -> int:
    return plan.shape[0] * plan.shape[1] * itemsize


def _measure(
    model: StreamedModel,
    plans: Sequence[LayerPlan],
    config: PruneConfig,
    windows: Tensor,
    trials: Store,
    where: Where,
    measured: Measured,
) -> dict[str, dict[str, float]]:
    """The harm of every block of every layer; finished layers are kept in `trials`."""
    tried = {plan.name: plan for plan in plans if plan.blocks}

    def finished(name: str, _record: object) -> None:
        measured(name, len(trials.layers), len(tried))

    calls, hidden = calls_of(model, windows)
    spec = Spec(model.folder, config, calls, where.device)
    engine = open_engine(where, spec, model, list(tried.values()), trials.scratch)
    try:
        scheduler, cores = Scheduler(engine), torch.get_num_threads()
        left = [name for name in tried if trials.lacks(name)]
        samples = _samples(model, left, scheduler, hidden, windows, cores) if left else {}
        pipeline = Pipeline(
            model,
            tried,
            scheduler,
            trials,
            cores,
            windows.numel(),
            finished,
            task="trial",
            refs={name: {"sample": ref} for name, ref in samples.items()},
        )
        if first := pipeline.missing():
            pipeline.run(start(engine, trials, hidden, first[0], ("dense",)))
    finally:
        engine.close()
    return {
        name: {block: float(harm) for block, harm in trials.load(name).items()} for name in tried
    }


def _samples(
    model: StreamedModel,
    layers: Sequence[str],
    scheduler: Scheduler,
    hidden: Sequence[Tensors],
    windows: Tensor,
    cores: int,
) -> dict[str, Any]:
    """What the backward pass keeps of `layers`: see `armor.calibrate.gradients.Samples`.

    Returns:
        For each that was called a handle on ``inputs`` and ``gradients``, these scaled so that the
        sum of (gradient . error)^2 is the harm.

    Raises:
        ArmorError: gradients that are not finite.
    """
    engine, threads = scheduler.engine, forward_threads(cores)
    ids = batches(windows)
    count = max(1, BACKWARD_TOKENS // ids[0].numel())
    each = [{number: states} for part in hidden for number, states in part.items()][:count]
    last = len(model.structure.blocks)
    numbers = [int(number) for part in each for number in part]
    share = min(1.0, SAMPLED_TOKENS / sum(ids[number].numel() for number in numbers))
    predicted = sum(ids[number][:, 1:].numel() for number in numbers)
    names = {model.layout.path(name): name for name in layers}
    samples: dict[str, Any] = {}

    def run(task: str, args: dict[str, Any], **refs: list[Any]) -> list[list[Any]]:
        """Handles of the results, result by result, each batch by batch."""
        advances = task == "advance"
        jobs = [
            Job(
                task,
                args | ({"part": number} if advances else {}),
                dict(zip(refs, own, strict=True)),
                threads,
                1 if advances else 2,
                urgent=True,
                label="the backward pass",
            )
            for number, own in enumerate(zip(*refs.values(), strict=True))
        ]
        done = [handles for _, handles in scheduler.each(jobs)]
        return [list(handles) for handles in zip(*done, strict=True)]

    def back_through(task: str, index: int, prefix: str, **refs: list[Any]) -> list[Any]:
        """Gradients before block `index` (behind the last for the head); keeps its samples."""
        linears = [path.removeprefix(prefix) for path in names if path.startswith(prefix)]
        if index == last:
            linears = [path for path in linears if path == model.head]
        args = {"index": index, "linears": linears, "share": share}
        gradients, own = run(task, args, **refs)
        parts = [engine.fetch(ref) for ref in own]
        for linear in linears:
            sample = {
                kind: torch.cat(found)
                for kind in ("inputs", "gradients")
                if (found := [part[key] for part in parts if (key := f"{kind}/{linear}") in part])
            }
            name = names[f"{prefix}{linear}"]
            if sample:  # not of an expert that no token reached
                if not sample["gradients"].isfinite().all():
                    raise ArmorError(
                        f"the gradients of {name} are not finite on the calibration text: change"
                        " the text, or leave out the size"
                    )
                sample["gradients"] /= math.sqrt(2 * predicted)
                samples[name] = engine.share(sample)
        for ref in (*chain.from_iterable(refs.values()), *own):
            engine.drop(ref)
        return gradients

    inputs = [[engine.share(part) for part in each]]
    for index in range(last):
        model.prefetch(index + 1)
        inputs += run("advance", {"index": index}, hidden=inputs[-1])
    tokens = [engine.share({number: ids[int(number)].double() for number in part}) for part in each]
    back = back_through("loss_gradient", last, "", hidden=inputs.pop(), tokens=tokens)
    for index in reversed(range(last)):
        prefix = f"{model.structure.prefix}.{index}."
        back = back_through("block_gradient", index, prefix, hidden=inputs.pop(), gradient=back)
    for ref in back:
        engine.drop(ref)
    return samples
