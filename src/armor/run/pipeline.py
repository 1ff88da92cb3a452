"""Block by block through the decoder: moments of each stage, its layers solved, both streams on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from armor.calibrate.moments import Moments
from armor.calibrate.stream import Stream, open_stream, stages
from armor.config import PruneConfig
from armor.factorize.factors import Factors
from armor.models.structure import Structure
from armor.run.plan import LayerPlan
from armor.run.solve import LayerInputs, LayerRecord, solve_layer
from armor.run.threads import threads_for


@dataclass(frozen=True)
class Solved:
    """One finished layer."""

    plan: LayerPlan
    factors: Factors
    record: LayerRecord


#: Methods whose statistics come from the dense model; the others see the pruned one, as in
#: their papers. ARMOR's follow its target.
_DENSE_STATISTICS = frozenset({"nowag", "magnitude"})


def run_blocks(
    model: nn.Module,
    structure: Structure,
    windows: Tensor,
    plans: Mapping[str, LayerPlan],
    config: PruneConfig,
    on_layer: Callable[[str], None] = lambda name: None,
) -> Iterator[Solved]:
    """Solve every planned layer, in the order of the model.

    Args:
        model: a causal language model, left as it was.
        windows: token ids (samples, seq).
        plans: by layer name.
        on_layer: called with a layer's name when its solve begins.
    """
    dense_only = config.method in _DENSE_STATISTICS or (
        config.method == "armor" and config.target == "dense"
    )
    compensate = config.method == "armor" and config.target == "compensated"
    dense = open_stream(model, structure, windows)
    pruned = dense if dense_only else dense.copy()
    for index, block in enumerate(structure.blocks):
        name = f"{structure.prefix}.{index}"
        work = _Block(name, index, block)
        for stage in stages(work.dense, partial(dense.run_first, index=index)):
            todo = [plans[f"{name}.{linear}"] for linear in stage]
            todo = [plan for plan in todo if not plan.dense]
            if not todo:
                continue
            second, cross = work.moments(stage[0], dense, pruned, compensate)
            for plan in todo:
                on_layer(plan.name)
                linear = work.linear(plan.name)
                inputs = LayerInputs(linear.weight.data, second, cross)
                with threads_for(linear.weight.numel()):
                    factors, record = solve_layer(plan, inputs, config, work.dtype)
                linear.weight.data.copy_(factors.dense())
                yield Solved(plan, factors, record)
        dense.advance(work.dense, index)
        if pruned is not dense:
            pruned.advance(work.pruned, index)


class _Block:
    """Float32 copies of one decoder block: as it was, and as it is being pruned."""

    def __init__(self, name: str, index: int, block: nn.Module) -> None:
        self.name = name
        self.index = index
        self.dtype = next(block.parameters()).dtype
        self.dense = copy.deepcopy(block).float()
        self.pruned = copy.deepcopy(self.dense)

    def linear(self, name: str) -> nn.Linear:
        module = self.pruned.get_submodule(name.removeprefix(f"{self.name}."))
        assert isinstance(module, nn.Linear)
        return module

    def moments(
        self, linear: str, dense: Stream, pruned: Stream, compensate: bool
    ) -> tuple[Tensor, Tensor | None]:
        """E[x x^T] and, to compensate, E[x_dense x^T] at the input of `linear`."""
        moments = Moments()
        block = self.dense if pruned is dense else self.pruned
        inputs = pruned.inputs(block, self.index, block.get_submodule(linear))
        if compensate:
            twins = dense.inputs(self.dense, self.index, self.dense.get_submodule(linear))
            for batch, twin in zip(inputs, twins, strict=True):
                moments.add(batch, twin)
        else:
            for batch in inputs:
                moments.add(batch)
        second = moments.second(f"{self.name}.{linear}")
        return second, moments.cross() if compensate else None
