"""Choosing each layer's block for a given size of the whole: what is tried, and what it tells.

Two passes over the dense model. A backward pass over a few windows tells how much the loss minds an
error in each output of each layer: the expected square of its gradient (the diagonal of the
empirical Fisher matrix). A forward pass over all windows gathers moments, with which a few
iterations of the solver tell each output's error for each block. The sum of their products is,
up to a factor, the loss to expect.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from armor.calibrate.stream import batches
from armor.checkpoint.folder import full_disk
from armor.checkpoint.jsonfile import read_json, write_json
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.models.streamed import StreamedModel
from armor.pattern import Pattern
from armor.run.budget import Choice, allocate
from armor.run.engines import Where, open_engine
from armor.run.job import Job, Tensors
from armor.run.pipeline import Pipeline
from armor.run.plan import LayerPlan, packed_size
from armor.run.scheduler import Scheduler
from armor.run.store import TRIALS, Store
from armor.run.streams import calls_of, start
from armor.run.threads import forward_threads
from armor.run.worker import Spec

#: The backward pass reads so many tokens, in whole batches: activations at every block are kept.
BACKWARD_TOKENS = 8192
_HARMS = "harms.json"

#: Harm of each block that was tried, by layer.
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
        squares = _squares(model, scheduler, hidden, windows, cores)
        pipeline = Pipeline(
            model, tried, scheduler, trials, cores, windows.numel(), finished, task="trial"
        )
        if first := pipeline.missing():
            pipeline.run(start(engine, trials, hidden, first[0], ("dense",)))
    finally:
        engine.close()
    harms: dict[str, dict[str, float]] = {}
    for name in tried:
        own = squares.get(model.layout.path(name))  # None: of an expert that no token reached
        if own is not None and not torch.isfinite(own).all():
            raise ArmorError(
                f"the gradients of {name} are not finite on the calibration text: change the text,"
                " or leave out the size"
            )
        harms[name] = {
            block: 0.0 if own is None else float((errors * own.double()).sum())
            for block, errors in trials.load(name).items()
        }
    return harms


def _squares(
    model: StreamedModel,
    scheduler: Scheduler,
    hidden: Sequence[Tensors],
    windows: Tensor,
    cores: int,
) -> Tensors:
    """For each linear of the model, by its path: see `armor.calibrate.gradients.Squares`."""
    engine, threads = scheduler.engine, forward_threads(cores)
    ids = batches(windows)
    count = max(1, BACKWARD_TOKENS // ids[0].numel())
    each = [{number: states} for part in hidden for number, states in part.items()][:count]
    last = len(model.structure.blocks)
    squares: Tensors = {}

    def run(task: str, index: int, results: int, **refs: list[Any]) -> list[list[Any]]:
        """Handles of the results, result by result, each batch by batch."""
        jobs = [
            Job(
                task,
                {"index": index} | ({"part": number} if task == "advance" else {}),
                dict(zip(refs, own, strict=True)),
                threads,
                results,
                urgent=True,
                label="the backward pass",
            )
            for number, own in enumerate(zip(*refs.values(), strict=True))
        ]
        done = [handles for _, handles in scheduler.each(jobs)]
        return [list(handles) for handles in zip(*done, strict=True)]

    def collect(refs: list[Any], prefix: str) -> None:
        for ref in refs:
            for name, tensor in engine.fetch(ref).items():
                path = f"{prefix}{name}"
                squares[path] = squares[path] + tensor if path in squares else tensor.clone()

    inputs = [[engine.share(part) for part in each]]
    for index in range(last):
        model.prefetch(index + 1)
        inputs += run("advance", index, 1, hidden=inputs[-1])
    tokens = [engine.share({number: ids[int(number)].double() for number in part}) for part in each]
    back, own = run("loss_gradient", last, 2, hidden=inputs[-1], tokens=tokens)
    collect(own, "")
    for ref in (*inputs.pop(), *tokens, *own):
        engine.drop(ref)
    for index in reversed(range(last)):
        used = [*inputs[-1], *back]
        back, own = run("block_gradient", index, 2, hidden=inputs.pop(), gradient=back)
        collect(own, f"{model.structure.prefix}.{index}.")
        for ref in (*used, *own):
            engine.drop(ref)
    for ref in back:
        engine.drop(ref)
    return squares
