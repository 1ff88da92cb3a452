"""A pruning method of your own: one function, one line, and it is compared with the others.

The method here is the relative importance of RIA (Zhang et al., "Plug-and-Play", ICLR 2024),
without its permutation. To make a method part of armor, put the function into a file of
``src/armor/baselines`` and the line into ``METHODS`` of ``src/armor/methods.py``.

    python examples/own_baseline.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from armor.baselines.select import select
from armor.compare.compare import compare
from armor.config import PruneConfig
from armor.demo.text import calibration_text, evaluation_text, model_dir
from armor.factorize.problem import Problem
from armor.methods import METHODS, Method
from armor.sparse.factors import Factors
from armor.sparse.pattern import Pattern


def relative_importance(problem: Problem, pattern: Pattern) -> Factors:
    """Keep the weights that are large in their row and column and see loud inputs."""
    size = problem.target.abs()
    share = size / size.sum(dim=0) + size / size.sum(dim=1, keepdim=True)
    mask = select(share * problem.mean_square.clamp_min(0) ** 0.25, pattern)
    return Factors(problem.target * mask, mask, pattern=pattern)


# The diagonal of the moment is enough; the inputs are those of the model as pruned so far.
METHODS["relative"] = Method(relative_importance, statistics="pruned", moment="diag")


def main(out: Path, max_chars: int | None = None, **changes: Any) -> dict[str, float]:
    """Compare in the folder `out`; returns the perplexity of each method."""
    common: dict[str, Any] = {"calibration": (calibration_text(),), "seq_len": 256, **changes}
    settings = {
        "wanda": PruneConfig(method="wanda", **common),
        "relative": PruneConfig(method="relative", **common),
        "armor": PruneConfig(method="armor", block_size=16, **common),
    }
    texts = {"held-out text": [evaluation_text()]}
    rows = compare(str(model_dir()), settings, texts, out, seq_len=256, max_chars=max_chars)
    found = {row.label: row.perplexity["held-out text"] for row in rows}
    for label, perplexity in found.items():
        print(f"{label:10} {perplexity:8.3f}")
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
