"""The jobs of measuring: the backward pass, and a few iterations with each block of a layer.

See `armor.run.jobs` for `hidden` and `own`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from armor.calibrate.gradients import Draw, block_gradient
from armor.calibrate.state import State, of_batch, states
from armor.engines.job import Result, Tensors
from armor.run.head import loss_gradient
from armor.run.plan import LayerPlan
from armor.run.solve import LayerInputs, solve_certified
from armor.run.worker import Worker

#: Iterations with each block that is tried: enough to tell which are worth more.
TRIAL_ITERATIONS = 10


def advance(worker: Worker, index: int, hidden: Tensors, own: Tensors | None = None) -> Result:
    """Some windows through the dense block: the states after it, by batch."""
    block = worker.block(index).dense
    after: Tensors = {}
    for batch, state in states(hidden):
        call = worker.call(index, batch, own)
        after |= call.run(block, state.to(worker.device)).named(batch)
    return Result(None, (after,))


def back_through_head(
    worker: Worker,
    index: int,
    linears: Sequence[str],
    share: float,
    hidden: Tensors,
    tokens: Tensors,
) -> Result:
    """The gradient of the loss by the hidden states after the last block, by batch.

    Args:
        index: number of blocks. linears: the head, if it is tried. share: of the tokens, to keep.
        hidden: after the last block. tokens: ids by batch, int64.

    Returns:
        The gradient, and the samples of the head: see `armor.calibrate.gradients`.
    """
    back: Tensors = {}
    samples: Tensors = {}
    for batch, state in states(hidden):
        call = worker.spec.calls.any(index - 1, batch)
        draw = Draw(share, int(batch))
        back[batch], own = loss_gradient(
            worker.model, state.hidden, tokens[batch], call, linears, draw
        )
        _append(samples, own)
    return Result(None, (back, samples))


def back_through_block(
    worker: Worker,
    index: int,
    linears: Sequence[str],
    share: float,
    hidden: Tensors,
    gradient: Tensors,
    own: Tensors | None = None,
) -> Result:
    """From the `gradient` after the dense block to that before it, by batch.

    Args:
        linears: those that are tried. share: of the tokens, to keep. hidden: before the block.

    Returns:
        The gradient, and the samples of `linears`: see `armor.calibrate.gradients`.
    """
    back: Tensors = {}
    samples: Tensors = {}
    for batch, state in states(hidden):
        known = State(gradient[batch], of_batch(gradient, batch))
        before, kept = block_gradient(
            worker.block(index).dense,
            worker.call(index, batch, own),
            state.to(worker.device),
            known.to(worker.device),
            linears,
            Draw(share, int(batch)),
        )
        back |= before.named(batch)
        _append(samples, kept)
    return Result(None, (back, samples))


def try_blocks(
    worker: Worker, plan: LayerPlan, moments: Tensors, sample: Tensors | None = None
) -> Result:
    """A few iterations with each of a layer's blocks, or its pruning without wrappers.

    Args:
        sample: ``inputs`` and ``gradients``, scaled so that the sum of (gradient . error)^2 is
            the harm; None of an expert that no token reached.

    Returns:
        The last `LayerRecord`; the harm of each block, float64 ().
    """
    config = worker.spec.config
    few = min(TRIAL_ITERATIONS, config.iterations or TRIAL_ITERATIONS)
    config = replace(config, solver="exact", target="dense", iterations=few)
    weight = f"{worker.model.layout.path(plan.name)}.weight"
    dense = worker.model.load(weight, worker.device)
    second = moments["second"].to(worker.device)
    read = {name: own.to(dense) for name, own in (sample or {}).items()}

    def inputs(precision: torch.dtype) -> LayerInputs:
        return LayerInputs(dense.to(precision), second.to(precision))

    harms: Tensors = {}
    for block in plan.blocks:
        own = replace(plan, block=block or None)
        factors, record = solve_certified(own, inputs, config, worker.model.dtype(weight))
        harm = torch.zeros((), dtype=torch.float64, device="cpu")
        if read:
            errors = read["inputs"] @ (factors.dense().float() - dense).T
            harm = (errors * read["gradients"]).sum(-1).square().sum(dtype=torch.float64)
        harms[str(block)] = harm
    return Result(record, (harms,))


def _append(total: Tensors, part: Mapping[str, Tensor]) -> None:
    for name, tensor in part.items():
        total[name] = torch.cat((total[name], tensor)) if name in total else tensor
