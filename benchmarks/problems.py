"""The matrices of a model as problems for the solvers: weights, and moments of a text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from armor.baselines.nowag import normalise, nowag
from armor.baselines.sparsegpt import sparsegpt
from armor.calibrate.moments import Moments
from armor.calibrate.state import of_batch, states
from armor.calibrate.stream import observe
from armor.config import PruneConfig
from armor.factorize.problem import Problem
from armor.models.folder import ModelFolder
from armor.models.load import load_tokenizer
from armor.models.streamed import StreamedModel
from armor.run.solve import LayerInputs, make_problem
from armor.run.streams import open_streams
from armor.sparse.factors import Factors
from armor.text.windows import token_windows


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
    source = ModelFolder.open(folder)
    model = StreamedModel(source)
    windows = token_windows(str(text), load_tokenizer(source), samples, seq_len, bos="never")
    opened = open_streams(model, windows)
    batches = [batch for part in opened.hidden for batch in states(part)]
    for index in range(len(model.structure.blocks)):
        block = model.block(index)
        moments: dict[str, Moments] = {}
        own = {name: tensor for part in opened.own[index] for name, tensor in part.items()}
        for number, (batch, state) in enumerate(batches):
            call = opened.calls.of(index, batch, of_batch(own, batch))
            left, stages = observe(block, call, state)
            batches[number] = batch, left
            for names, inputs in stages:
                moments.setdefault(names[0], Moments()).add(inputs)
        for names, _ in stages:
            second = moments[names[0]].means(names[0])["second"]
            for name in names:
                weight = block.get_submodule(name).weight.data
                yield f"{folder.name}/{index}.{name}", LayerInputs(weight, second)


def as_matrix(name: str, inputs: LayerInputs, objective: str) -> Matrix:
    """The problem that ``armor prune --target dense`` makes of a layer."""
    problem = make_problem(inputs, PruneConfig(objective=objective, target="dense"))
    starts = [nowag(problem)]
    if problem.is_full:
        return Matrix(name, problem, [*starts, sparsegpt(problem)])
    target, rows, cols = normalise(problem.target)
    starts = [Factors(starts[0].core / rows[:, None] / cols, starts[0].mask)]
    return Matrix(name, Problem(target, problem.moment), starts)
