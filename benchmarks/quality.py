"""Perplexity of every method on small trained models, as Markdown tables.

    python benchmarks/quality.py --models-dir ../shared/models --data-dir ../shared/data

Writes benchmarks/results/quality.md and quality.json. What is in --work already is not done again.
"""

import argparse
from datetime import date
from pathlib import Path

import torch
from common import machine, versions

from armor.checkpoint.jsonfile import write_json
from armor.config import PruneConfig
from armor.evaluate.compare import Row, compare
from armor.evaluate.labels import LABELS

HERE = Path(__file__).parent
STORIES = ("tinystories/tinystories_train_sample.txt", "tinystories/tinystories_valid_sample.txt")
WIKI = ("wikitext2/wikitext2-valid.txt", "wikitext2/wikitext2-raw-test.txt")
#: model -> calibration text, evaluation texts (the first is of the calibration's domain).
MODELS = {
    "babyllama-1m": (STORIES[0], (STORIES[1],)),
    "stories-260k": (STORIES[0], (STORIES[1],)),
    "qwen3-1m": (WIKI[0], (WIKI[1], STORIES[1])),
    "wide-llama": (WIKI[0], (WIKI[1], STORIES[1])),
}


def table(rows: list[Row]) -> list[str]:
    """A Markdown table of one comparison."""
    texts = list(rows[0].perplexity)
    lines = [
        f"| method | {' | '.join(texts)} | gap left | linears of dense |",
        "|---|" + "---|" * (len(texts) + 2),
    ]
    for row in rows:
        left = (row.gap_left or {}).get(texts[0])  # none where a baseline beats the dense model
        gap = "-" if left is None else f"{left:.1%}"
        cells = [f"{row.perplexity[text]:.4g}" for text in texts]
        share = row.linear_bytes / row.dense_linear_bytes
        lines.append(f"| {row.label} | {' | '.join(cells)} | {gap} | {share:.3f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models-dir", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--blocks", default="16,8")
    parser.add_argument("--max-chars", type=int, default=400_000)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--work", type=Path, default=Path("build/quality"))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    args = parser.parse_args()
    about = {**machine(torch.device("cpu")), "versions": versions()}
    lines = [
        "# Perplexity by method",
        "",
        f"{about['cpu']}, {date.today()}; the first {args.max_chars:,} characters of each text,",
        f"windows of 256 tokens, {args.samples} calibration windows of 256 tokens, float32;",
        "the number after armor is its block (auto: by the 10 % budget).",
        "gap left: share of the best baseline's gap to dense that is left, on the first text.",
    ]
    found = {}
    for name in args.models.split(","):
        calibration, texts = MODELS[name]
        settings = {}
        for label, changes in LABELS.items():
            common = {"calibration": str(args.data_dir / calibration), "seq_len": 256}
            common |= {"samples": args.samples, **changes}
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
            max_chars=args.max_chars,
        )
        lines += ["", f"## {name}", "", *table(rows)]
        found[name] = [row.to_dict() for row in rows]
        print("\n".join(lines[-len(rows) - 3 :]), flush=True)
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / "quality.md").write_text("\n".join(lines) + "\n")
    write_json(args.results / "quality.json", {"machine": about, "tables": found})


if __name__ == "__main__":
    main()
