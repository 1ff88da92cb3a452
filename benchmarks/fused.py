"""Fused linears (qkv, gate_up): one factorisation, or one for each part?

The trained models' q, k, v (and gate, up) are stacked as a model with fused projections stores
them. Either the stack is factorised as a whole, or each part on its own, which then has a right
wrapper of its own. Writes the loss against the parameters of the wrappers to results/fused.json.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from common import add_common, shared_folder, use_threads, write_result
from problems import model_inputs

from armor.baselines.nowag import nowag
from armor.baselines.sparsegpt import sparsegpt
from armor.config import PruneConfig
from armor.factorize.exact import DEFAULT_ITERATIONS, factorize
from armor.factorize.problem import Problem
from armor.run.solve import LayerInputs, make_problem

#: The parts of a fused linear, by the last part of their names.
FUSED = {"qkv": ("q_proj", "k_proj", "v_proj"), "gate_up": ("gate_proj", "up_proj")}
MODELS = {
    "babyllama-1m": ("tinystories/tinystories_train_sample.txt", 256),
    "qwen3-1m": ("wikitext2/wikitext2-valid.txt", 256),
    "wide-llama": ("wikitext2/wikitext2-valid.txt", 256),
}
BLOCKS = (8, 16, 32)


def loss(problem: Problem, block: int) -> float:
    """What the solver of ``armor prune`` ends at."""
    starts = [nowag(problem), sparsegpt(problem)]
    factors, _ = factorize(problem, block, starts, DEFAULT_ITERATIONS)
    return problem.loss(factors.dense())


def wrappers(shape: tuple[int, int], block: int) -> int:
    """Parameters of both wrappers."""
    return sum(-(-size // block) * block * block for size in shape)


def compare(parts: list[LayerInputs], block: int) -> dict[str, Any]:
    """Both ways with wrappers of one size: loss relative to the zero weight, wrapper share."""
    config = PruneConfig(target="dense")
    whole = LayerInputs(torch.cat([part.weight for part in parts]), parts[0].second)
    problem = make_problem(whole, config)
    problems = [make_problem(part, config) for part in parts]
    zero = problem.loss(torch.zeros_like(problem.target))
    entries = whole.weight.numel()
    shapes = [tuple(part.weight.shape) for part in parts]
    return {
        "block": block,
        "fused": loss(problem, block) / zero,
        "fused_overhead": wrappers(tuple(whole.weight.shape), block) / entries,
        "split": sum(loss(part, block) for part in problems) / zero,
        "split_overhead": sum(wrappers(shape, block) for shape in shapes) / entries,
    }


def measure(samples: int) -> list[dict[str, Any]]:
    """Every fused linear of every model with every block."""
    shared = shared_folder()
    rows = []
    for model, (text, seq_len) in MODELS.items():
        inputs = dict(
            model_inputs(shared / "models" / model, shared / "data" / text, samples, seq_len)
        )
        for kind, names in FUSED.items():
            for first in [name for name in inputs if name.endswith(names[0])]:
                stem = first.removesuffix(names[0])
                parts = [inputs[stem + name] for name in names]
                for block in BLOCKS:
                    rows.append({"layer": stem + kind, **compare(parts, block)})
                    print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common(parser, "fused")
    parser.add_argument("--samples", type=int, default=64, help="windows (%(default)s)")
    args = parser.parse_args()
    use_threads(args.threads)
    write_result(args, torch.device("cpu"), {"rows": measure(args.samples)})


if __name__ == "__main__":
    main()
