"""The matrices of a model as problems for the solvers: weights, and moments of a text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from armor import baselines
from armor.baselines.nowag import normalise
from armor.calibrate.data import token_windows
from armor.calibrate.moments import Moments
from armor.calibrate.stream import open_stream, stages
from armor.config import PruneConfig
from armor.factorize.factors import Factors
from armor.factorize.problem import Problem
from armor.models.load import load_model, load_tokenizer
from armor.models.structure import find_structure
from armor.run.solve import LayerInputs, make_problem


@dataclass(frozen=True)
class Matrix:
    """One linear layer of a model: what a solver is given."""

    name: str
    problem: Problem
    starts: list[Factors]

    @property
    def shape(self) -> tuple[int, int]:
        rows, cols = self.problem.target.shape
        return rows, cols


def model_inputs(
    folder: Path, text: Path, samples: int, seq_len: int
) -> Iterator[tuple[str, LayerInputs]]:
    """Every linear of the decoder with the moments of its inputs in the dense model."""
    import torch

    model = load_model(str(folder), dtype=torch.float32)
    windows = token_windows(str(text), load_tokenizer(str(folder)), samples, seq_len)
    structure = find_structure(model)
    stream = open_stream(model, structure, windows)
    for index, block in enumerate(structure.blocks):
        for stage in stages(block, partial(stream.run_first, index=index)):
            moments = Moments()
            for batch in stream.inputs(block, index, block.get_submodule(stage[0])):
                moments.add(batch)
            second = moments.second(stage[0])
            for name in stage:
                weight = block.get_submodule(name).weight.data
                yield f"{folder.name}/{index}.{name}", LayerInputs(weight, second)
        stream.advance(block, index)


def as_matrix(name: str, inputs: LayerInputs, objective: str) -> Matrix:
    """The problem that ``armor prune --target dense`` makes of a layer."""
    problem = make_problem(inputs, PruneConfig(objective=objective, target="dense"))
    starts = [baselines.nowag(problem)]
    if problem.is_full:
        return Matrix(name, problem, [*starts, baselines.sparsegpt(problem)])
    target, rows, cols = normalise(problem.target)
    starts = [Factors(starts[0].core / rows[:, None] / cols, starts[0].mask)]
    return Matrix(name, Problem(target, problem.moment), starts)
