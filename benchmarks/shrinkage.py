"""How far moments of real activations should be shrunk: closed forms beside what new text says.

    make smollm2
    python benchmarks/shrinkage.py

For inputs of some layers of SmolLM2-135M, the moment X of the default calibration text, and that of
another text: the shrinkage towards the mean diagonal that OAS (Chen et al. 2010, eq. 23) and
Ledoit-Wolf (2004) give in closed form, which take tokens for independent, and the one that brings X
closest to the other text's moment, towards ``diag X`` and towards the mean of it (Frobenius norm).
Writes benchmarks/results/shrinkage.json and shrinkage.md.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import torch
from common import add_common, shared_folder, smollm2_folder, use_threads, write_result
from torch import Tensor

from armor.checkpoint.jsonfile import write_text
from armor.errors import ArmorError
from armor.models.folder import ModelFolder
from armor.models.load import load_model, load_tokenizer
from armor.text.sources import parse_source
from armor.text.windows import token_windows

CALIBRATION, OTHER = "wikitext2/wikitext2-valid.txt", "wikitext2/wikitext2-raw-test.txt"
BLOCKS = (0, 7, 14, 21, 28)
LINEARS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")


class Sums:
    """Of one layer's inputs x: the second moment, and the mean of ``|x|^4``."""

    def __init__(self) -> None:
        self.count = 0
        self.second: Tensor | float = 0.0
        self.fourth = 0.0

    def add(self, x: Tensor) -> None:
        x = x.flatten(0, -2).double()
        self.count += len(x)
        self.second = self.second + x.mT @ x
        self.fourth += float(x.square().sum(1).square().sum())

    def moment(self) -> Tensor:
        assert isinstance(self.second, Tensor)
        return self.second / self.count


def moments(model: Any, windows: Tensor) -> dict[str, Sums]:
    """By layer, what it is given on `windows` (samples, seq)."""
    found: dict[str, Sums] = {}
    hooks = []
    for block in BLOCKS:
        for linear in LINEARS:
            name = f"model.layers.{block}.{linear}"
            sums = found[name] = Sums()
            hook = lambda _, given, sums=sums: sums.add(given[0])  # noqa: E731
            hooks.append(model.get_submodule(name).register_forward_pre_hook(hook))
    with torch.no_grad():
        for part in windows.split(4):
            model(input_ids=part, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def closed_forms(sums: Sums) -> tuple[float, float]:
    """OAS and Ledoit-Wolf, towards the mean of the diagonal."""
    moment, count = sums.moment(), sums.count
    size = len(moment)
    energy, trace = float(moment.square().sum()), float(moment.trace())
    oas = ((1 - 2 / size) * energy + trace**2) / (
        (count + 1 - 2 / size) * (energy - trace**2 / size)
    )
    spread = (sums.fourth / count - energy) / count
    away = energy - trace**2 / size
    return min(1.0, oas), min(1.0, spread / away)


def best(moment: Tensor, goal: Tensor, new: Tensor) -> float:
    """The share of `goal` that brings `moment` closest to `new`."""
    way = goal - moment
    return float(((new - moment) * way).sum() / way.square().sum())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common(parser, "shrinkage")
    parser.set_defaults(threads=os.cpu_count() or 1)
    parser.add_argument("--samples", type=int, default=128, help="windows of 512 (%(default)s)")
    args = parser.parse_args()
    use_threads(args.threads)
    try:
        folder = ModelFolder.open(smollm2_folder())
    except ArmorError as error:
        raise SystemExit(f"error: {error}") from None
    model, tokenizer = load_model(folder, torch.float32, "cpu"), load_tokenizer(folder)
    seen, other = (
        moments(
            model,
            token_windows(
                parse_source(str(shared_folder() / "data" / place)),
                tokenizer,
                args.samples,
                512,
                0,
                "never",
            ),
        )
        for place in (CALIBRATION, OTHER)
    )
    rows = []
    for name, sums in seen.items():
        moment, new = sums.moment(), other[name].moment()
        mean = torch.eye(len(moment), dtype=torch.float64) * moment.diagonal().mean()
        oas, ledoit_wolf = closed_forms(sums)
        rows.append(
            {
                "layer": name.removeprefix("model.layers."),
                "oas": oas,
                "ledoit_wolf": ledoit_wolf,
                "best_to_mean": best(moment, mean, new),
                "best_to_diagonal": best(moment, torch.diag(moment.diagonal()), new),
                "moments_differ": float((new - moment).norm() / new.norm()),
            }
        )
        print(rows[-1], flush=True)
    path = write_result(args, torch.device("cpu"), {"rows": rows})
    lines = ["# Shrinkage in closed form", "", (__doc__ or "").split("\n\n")[2], ""]
    lines += ["| input of | OAS | Ledoit-Wolf | best, to the mean | best, to the diagonal |"]
    lines += ["|---|---|---|---|---|"]
    for row in rows:
        shares = (row[key] for key in ("oas", "ledoit_wolf", "best_to_mean", "best_to_diagonal"))
        lines.append(f"| {row['layer']} | {' | '.join(f'{share:.4f}' for share in shares)} |")
    write_text(path.with_suffix(".md"), "\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
