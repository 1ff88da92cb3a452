"""Fit and generalisation of the first blocks of a real model, setting by setting.

    make smollm2
    python benchmarks/generalisation.py

Prunes the first --blocks blocks of SmolLM2-135M (or --model) under each setting and writes what the
run itself recorded: the error of each layer's output on tokens that it was fitted to and on tokens
that were held out, errors handed down from the layers before included, and the KL divergence of the
predictions from the dense model's on another text. Few blocks are enough to order settings, and
take minutes. Writes benchmarks/results/generalisation.{json,md}; what is in
--work already is not done again.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from common import (
    add_common,
    shared_folder,
    smollm2_folder,
    use_threads,
    write_result,
)

import armor
from armor.checkpoint.generalisation import generalisation
from armor.checkpoint.inspect import Inspection
from armor.checkpoint.jsonfile import write_text
from armor.compare.compare import measurement
from armor.config import PruneConfig
from armor.models.folder import ModelFolder
from armor.report.numbers import geometric_mean
from armor.text.windows import context_length, default_window

CALIBRATION = "data/wikitext2/wikitext2-valid.txt"
#: What the predictions are compared on, and how much of it.
TEXT, MAX_CHARS = "data/wikitext2/wikitext2-raw-test.txt", 40_000
#: By what is varied, the settings; the first of each is the default.
STUDIES: dict[str, list[dict[str, Any]]] = {
    "tokens": [{"samples": samples} for samples in (128, 16, 32, 64, 256, 512)],
    "damping of the target": [
        {"samples": 32},
        *({"samples": 32, "target_damping": value} for value in (0.003, 0.01, 0.1, 0.3, 1.0)),
    ],
    "shrinkage of the moment": [
        {"samples": 32, "shrinkage": value} for value in (0.5, 0.0, 0.2, 0.8)
    ],
    "damping of the moment": [{"samples": 32, "damping": value} for value in (0.1, 0.01, 1.0)],
    "objective": [{"samples": 32, "objective": value} for value in ("full", "diag")],
    "iterations": [{"samples": 32, "iterations": value} for value in (60, 12, 30, 100)],
    "seed": [{"samples": 32, "seed": value} for value in (0, 1, 2)],
}


def measure(model: Path, config: PruneConfig, work: Path) -> dict[str, Any]:
    """Errors and seconds of the blocks that `config` includes, and what the model loses by them."""
    name = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()[:12]
    out = work / name
    if not out.is_dir():
        armor.prune(model, config, out, device="cpu")
    found = Inspection.of(out)
    records = [layer.record for layer in found.layers.values()]
    last = max(int(name.split(".")[2]) for name in found.layers)
    texts = measurement(work, name, str(model), "cpu", "never")
    window = default_window(context_length(ModelFolder.open(model).config), 512)
    judged = texts.perplexity(shared_folder() / TEXT, window, MAX_CHARS)
    final = [r for n, r in zip(found.layers, records, strict=True) if f".{last}.mlp.down" in n]
    return {
        "fitted": geometric_mean(record.fitted_error or 0.0 for record in records),
        "held_out": geometric_mean(record.held_out_error or 0.0 for record in records),
        "ratio": generalisation(records),
        "last_fitted": final[0].fitted_error,
        "last_held_out": final[0].held_out_error,
        "kl": judged["kl"],
        "seconds": found.run.seconds,
    }


def page(studies: dict[str, list[dict[str, Any]]], about: str) -> str:
    """The Markdown tables."""
    lines = ["# Fit and generalisation", "", about, ""]
    for title, rows in studies.items():
        lines += [
            f"## {title.capitalize()}",
            "",
            "| setting | fitted | held out | ratio | last down_proj, fitted | held out | KL"
            " | seconds |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in rows:
            setting = ", ".join(f"{key} {value}" for key, value in row["settings"].items())
            cells = [f"{row[key]:.4f}" for key in ("fitted", "held_out")]
            cells += [f"{row['ratio']:.2f}"]
            cells += [f"{row[key]:.4f}" for key in ("last_fitted", "last_held_out")]
            cells += [f"{row['kl']:.4f}"]
            lines.append(f"| {setting} | {' | '.join(cells)} | {row['seconds']:.0f} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common(parser, "generalisation")
    parser.set_defaults(threads=torch.get_num_threads())
    parser.add_argument("--model", type=Path, help="default: SmolLM2-135M")
    parser.add_argument("--calibration", type=Path, help="default: WikiText-2 valid")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--studies", default=",".join(STUDIES))
    parser.add_argument("--work", type=Path, default=Path("build/generalisation"))
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    model = arguments.model or smollm2_folder()
    text = arguments.calibration or shared_folder() / CALIBRATION
    arguments.work.mkdir(parents=True, exist_ok=True)
    studies: dict[str, list[dict[str, Any]]] = {}
    for title in arguments.studies.split(","):
        for settings in STUDIES[title]:
            include = tuple(f"*.layers.{block}.*" for block in range(arguments.blocks))
            config = PruneConfig(calibration=str(text), include=include, bos="never", **settings)
            row = {"settings": settings, **measure(model, config, arguments.work)}
            studies.setdefault(title, []).append(row)
            print(title, row, flush=True)
            path = write_result(arguments, torch.device("cpu"), {"studies": studies})
            about = (
                f"The first {arguments.blocks} blocks of {model.name}, calibrated on {text.name} in"
                " windows of 512 tokens; errors relative to what the dense layer puts out,"
                " geometric means. KL from the dense model in nats a token on the first"
                f" {MAX_CHARS:,} characters of {Path(TEXT).name}. Machine, versions and date:"
                f" [{path.name}]({path.name})."
            )
            write_text(path.with_suffix(".md"), page(studies, about))


if __name__ == "__main__":
    main()
