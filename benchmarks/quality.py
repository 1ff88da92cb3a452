"""Perplexity of every method on small trained models, as Markdown tables.

    python benchmarks/quality.py --models-dir ../shared/models --data-dir ../shared/data

Writes benchmarks/results/quality.md and quality.json; the tables of models not asked for stay. What
is in --work already is not done again.
"""

import argparse
from datetime import date
from pathlib import Path
from typing import Any

import torch
from common import machine, revision, versions

from armor.checkpoint.jsonfile import read_json, write_json, write_text
from armor.compare.compare import compare
from armor.compare.labels import default_labels
from armor.compare.row import Row
from armor.config import PruneConfig

HERE = Path(__file__).parent
STORIES = ("tinystories/tinystories_train_sample.txt", "tinystories/tinystories_valid_sample.txt")
WIKI = ("wikitext2/wikitext2-valid.txt", "wikitext2/wikitext2-raw-test.txt")
#: model -> calibration text, evaluation texts (the first is of the calibration's domain), and how
#: many characters of each are read.
MODELS = {
    "babyllama-1m": (STORIES[0], (STORIES[1],), 400_000),
    "stories-260k": (STORIES[0], (STORIES[1],), 400_000),
    "qwen3-1m": (WIKI[0], (WIKI[1], STORIES[1]), 400_000),
    "wide-llama": (WIKI[0], (WIKI[1], STORIES[1]), 400_000),
}

HEAD = [
    "Windows of 256 tokens, no BOS, also in calibration; float32; the number after armor is its",
    "block (auto: by the 10 % budget). gap left: share of the best baseline's gap to dense that is",
    "left; the first text is of the calibration's domain.",
]


def table(rows: list[Row]) -> list[str]:
    """A Markdown table of one comparison, and who is lowest on each text."""
    texts = list(rows[0].perplexity)
    heads = "".join(f" {text} | gap left |" for text in texts)
    lines = [f"| method |{heads} linears of dense |", "|---|" + "---|" * (2 * len(texts) + 1)]
    for row in rows:
        cells = ""
        for text in texts:
            left = (row.gap_left or {}).get(text)  # none where a baseline beats the dense model
            gap = "-" if left is None else f"{left:.1%}"
            cells += f" {row.perplexity[text]:.4g} | {gap} |"
        lines.append(f"| {row.label} |{cells} {row.linear_bytes / row.dense_linear_bytes:.3f} |")
    lowest = (min(rows[1:], key=lambda row: row.perplexity[text]).label for text in texts)
    best = ", ".join(f"{label} on {text}" for label, text in zip(lowest, texts, strict=True))
    return [*lines, "", f"Lowest of the pruned: {best}."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models-dir", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--blocks", default="16,auto")
    parser.add_argument("--max-chars", type=int, help="of each text, for all models")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--work", type=Path, default=Path("build/quality"))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    args = parser.parse_args()
    about = {
        "machine": {**machine(torch.device("cpu")), "versions": versions()},
        "revision": revision(),
        "date": str(date.today()),
    }
    store = args.results / "quality.json"
    found = read_json(store)["models"] if store.is_file() else {}
    for name in args.models.split(","):
        calibration, texts, chars = MODELS[name]
        chars = args.max_chars or chars
        settings = {}
        for label, changes in default_labels().items():
            common = {"calibration": str(args.data_dir / calibration), "samples": args.samples}
            common |= {"seq_len": 256, "bos": "never", **changes}
            if changes.get("method", "armor") != "armor":
                settings[label] = PruneConfig(**common)
                continue
            for block in args.blocks.split(","):
                size = None if block == "auto" else int(block)
                settings[f"{label}-{block}"] = PruneConfig(**common, block_size=size)
        rows = compare(
            str(args.models_dir / name),
            settings,
            {Path(text).stem: args.data_dir / text for text in texts},
            args.work / name,
            seq_len=256,
            max_chars=chars,
            bos="never",
        )
        print("\n".join(table(rows)), flush=True)
        more = {"max_chars": chars, "samples": args.samples}
        found[name] = {**about, **more, "rows": [row.to_dict() for row in rows]}
        args.results.mkdir(parents=True, exist_ok=True)
        write_json(store, {"models": found})
        write_text(args.results / "quality.md", page(found))


def page(found: dict[str, dict[str, Any]]) -> str:
    """All models' tables, each with when and at which revision it was measured."""
    lines = ["# Perplexity by method", "", *HEAD]
    for name in sorted(found, key=list(MODELS).index):
        model = found[name]
        lines += [
            "",
            f"## {name}",
            "",
            f"{model['machine']['cpu']}, {model['date']}, revision {model['revision']}; the first "
            f"{model['max_chars']:,} characters of each text; {model['samples']} calibration "
            "windows.",
            "",
            *table([Row(**row) for row in model["rows"]]),
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
