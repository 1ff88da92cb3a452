"""Block by block through the decoder: moments of each stage, its layers solved, both streams on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
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
        found = stages(work.dense, partial(dense.run_first, index=index))
        heads = [stage[0] for stage in found]
        noted = compensate and work.input_bytes(heads, windows.numel()) <= NOTED_BYTES
        twins: dict[str, Iterable[Tensor]] = {}
        if noted:
            linears = [work.dense.get_submodule(head) for head in heads]
            inputs_of = dense.advance_noting(work.dense, index, linears)
            twins = dict(zip(heads, inputs_of, strict=True))
        for stage in found:
            todo = [plans[f"{name}.{linear}"] for linear in stage]
            todo = [plan for plan in todo if not plan.dense]
            if not todo:
                continue
            if compensate and not noted:
                twins[stage[0]] = work.inputs(work.dense, dense, stage[0])
            block_seen = work.dense if pruned is dense else work.pruned
            second, cross = work.moments(
                stage[0], work.inputs(block_seen, pruned, stage[0]), twins.pop(stage[0], None)
            )
            for plan in todo:
                on_layer(plan.name)
                linear = work.linear(plan.name)
                inputs = LayerInputs(linear.weight.data, second, cross)
                with threads_for(linear.weight.numel()):
                    factors, record = solve_layer(plan, inputs, config, work.dtype)
                linear.weight.data.copy_(factors.dense())
                yield Solved(plan, factors, record)
        if not noted:
            dense.advance(work.dense, index)
        if pruned is not dense:
            pruned.advance(work.pruned, index)


#: The dense model's inputs to one block's linears are kept up to this size, so that it runs once a
#: block; above, it runs again for each stage.
NOTED_BYTES = 2**30


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

    def inputs(self, block: nn.Module, stream: Stream, linear: str) -> Iterator[Tensor]:
        """The inputs of `linear` when `stream` runs through `block`."""
        return stream.inputs(block, self.index, block.get_submodule(linear))

    def input_bytes(self, linears: list[str], tokens: int) -> int:
        """What the float32 inputs of `linears` take for so many tokens."""
        modules = [self.dense.get_submodule(linear) for linear in linears]
        widths = [module.in_features for module in modules if isinstance(module, nn.Linear)]
        return 4 * tokens * sum(widths)

    def moments(
        self, linear: str, inputs: Iterable[Tensor], twins: Iterable[Tensor] | None
    ) -> tuple[Tensor, Tensor | None]:
        """E[x x^T] and, given the dense model's inputs too, E[x_dense x^T]."""
        moments = Moments()
        if twins is None:
            for batch in inputs:
                moments.add(batch)
        else:
            for batch, twin in zip(inputs, twins, strict=True):
                moments.add(batch, twin)
        second = moments.second(f"{self.name}.{linear}")
        return second, None if twins is None else moments.cross()
