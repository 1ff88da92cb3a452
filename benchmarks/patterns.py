"""Patterns against each other: perplexity of small trained models, and the time of a sweep.

    python benchmarks/patterns.py --models-dir ../shared/models --data-dir ../shared/data
    python benchmarks/patterns.py --sweep

Writes benchmarks/results/patterns.json and patterns.md; what is not measured anew stays. What is in
--work already is not done again. The protocol is that of benchmarks/quality.py.
"""

from __future__ import annotations

import argparse
import time
from datetime import date
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from common import machine, revision, use_threads, versions
from quality import MODELS

from armor.checkpoint.jsonfile import read_json, write_json, write_text
from armor.compare.compare import compare
from armor.config import PruneConfig
from armor.evaluation.measure import Measurement
from armor.factorize.masks import group_masks, group_size, mask_from_choice
from armor.factorize.sweep import sweep
from armor.sparse.pattern import Pattern

HERE = Path(__file__).parent
PATTERNS = ("2:4", "4:8", "50%")
METHODS = ("wanda", "nowag", "sparsegpt", "armor")
BLOCK = 16
#: Of the sweeps that are timed: blocks down and across, and their sizes.
LEFTS, RIGHTS, SIZES = 32, 4, (16, 32, 64, 128)


def perplexities(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Perplexity of every method under every pattern, by pattern, then method, then text."""
    calibration, texts, chars = MODELS[name]
    chars = args.max_chars or chars
    settings = {
        label(method, pattern, seed): PruneConfig(
            calibration=str(args.data_dir / calibration),
            method=method,
            pattern=pattern,
            block_size=BLOCK,
            seq_len=256,
            bos="never",
            samples=args.samples,
            seed=seed,
        )
        for pattern in PATTERNS
        for method in METHODS
        for seed in range(args.seeds if method == "armor" else 1)
    }
    rows = compare(
        str(args.models_dir / name),
        settings,
        {Path(text).stem: args.data_dir / text for text in texts},
        args.work / name,
        seq_len=256,
        max_chars=chars,
        bos="never",
    )
    print(*(f"{row.label} {row.perplexity}" for row in rows), sep="\n", flush=True)
    dense = str(args.models_dir / name)
    return {
        "max_chars": chars,
        "samples": args.samples,
        "seeds": args.seeds,
        "block": BLOCK,
        "rows": [row.to_dict() for row in rows],
        "kl": {
            own: divergence(args.work / name / own, dense, args.data_dir / texts[0], chars)
            for own in settings
        },
    }


def divergence(folder: Path, dense: str, text: Path, chars: int) -> float:
    """Mean KL divergence from the dense model's predictions, nats a token."""
    record = folder.with_suffix(".kl.json")
    work = Measurement(str(folder), record=record, reference=dense, bos="never")
    kl: float = work.perplexity(str(text), 256, chars)["kl"]
    print(folder.name, "kl", kl, flush=True)
    return kl


def label(method: str, pattern: str, seed: int = 0) -> str:
    """The name of a run, and of its folder."""
    return f"{method}-{pattern.replace(':', 'of')}" + (f"-seed{seed}" if seed else "")


def sweep_times() -> list[dict[str, Any]]:
    """Microseconds of a sweep per block of the core, float32, by pattern and block."""
    found = []
    draw = torch.Generator().manual_seed(0)
    for size in SIZES:
        left, right = (
            torch.randn(count, size, 2 * size, generator=draw) for count in (LEFTS, RIGHTS)
        )
        left, right = left @ left.mT, right @ right.mT
        residual = size * torch.randn(LEFTS * size, RIGHTS * size, generator=draw)
        for text in PATTERNS:
            pattern = Pattern.parse(text)
            shape = (LEFTS * size, RIGHTS * size // group_size(pattern))
            choice = torch.randint(0, len(group_masks(pattern)), shape, generator=draw)
            choice = choice.to(torch.uint8)
            start = torch.randn(residual.shape, generator=draw) * mask_from_choice(choice, pattern)
            best = float("inf")
            for _ in range(6):  # the first one compiles
                core, codes = start.clone(), choice.clone()
                begin = time.perf_counter()
                sweep(residual, core, codes, left, right, pattern)
                best = min(best, time.perf_counter() - begin)
            found.append(
                {"pattern": text, "block": size, "microseconds": 1e6 * best / (LEFTS * RIGHTS)}
            )
            print(found[-1], flush=True)
    return found


def quality_table(model: dict[str, Any]) -> list[str]:
    """Perplexity by pattern and method, and armor's share of the best baseline's gap to dense.

    Armor's is the mean over its seeds.
    """
    rows = {row["label"]: row for row in model["rows"]}
    lines = []
    for text, dense in rows["dense"]["perplexity"].items():
        heads = " | ".join(METHODS)
        lines += ["", f"{text}, dense {dense:.4g}:", ""]
        lines += [f"| pattern | {heads} | gap left | linears of dense |", "|---|" + "---|" * 6]
        for pattern in PATTERNS:
            own = [rows[label(method, pattern)] for method in METHODS]
            values = [row["perplexity"][text] for row in own]
            names = [label("armor", pattern, seed) for seed in range(model["seeds"])]
            seeds = [rows[name]["perplexity"][text] for name in names]
            values[-1] = mean(seeds)
            left = (values[-1] - dense) / (min(values[:-1]) - dense)
            size = own[-1]["linear_bytes"] / own[-1]["dense_linear_bytes"]
            cells = " | ".join(f"{value:.4g}" for value in values)
            span = f" [{min(seeds):.4g}, {max(seeds):.4g}]"
            lines.append(f"| {pattern} | {cells}{span} | {left:.1%} | {size:.3f} |")
    lines += ["", "KL divergence from the dense model, nats a token, on the first text:", ""]
    lines += [f"| pattern | {' | '.join(METHODS)} |", "|---|" + "---|" * len(METHODS)]
    for pattern in PATTERNS:
        values = [model["kl"][label(method, pattern)] for method in METHODS]
        seeds = [model["kl"][label("armor", pattern, seed)] for seed in range(model["seeds"])]
        values[-1] = mean(seeds)
        cells = " | ".join(f"{value:.4f}" for value in values)
        lines.append(f"| {pattern} | {cells} [{min(seeds):.4f}, {max(seeds):.4f}] |")
    return lines


def sweep_table(times: list[dict[str, Any]]) -> list[str]:
    """Microseconds a block, and how many times those of 2:4."""
    by = {(one["pattern"], one["block"]): one["microseconds"] for one in times}
    lines = ["| block | " + " | ".join(PATTERNS) + " |", "|---|" + "---|" * len(PATTERNS)]
    for size in SIZES:
        first = by[PATTERNS[0], size]
        cells = [f"{by[text, size]:.0f} ({by[text, size] / first:.1f}x)" for text in PATTERNS]
        lines.append(f"| {size} | " + " | ".join(cells) + " |")
    return lines


def page(found: dict[str, Any]) -> str:
    """Everything measured, each with when and at which revision."""
    lines = [
        "# Patterns",
        "",
        "Half of the core's entries are kept, under patterns that are ever freer. Windows of 256",
        "tokens, no BOS, also in calibration; float32; armor with its default settings and block "
        f"{BLOCK}.",
        "gap left: armor's share of the best baseline's gap to dense, under the same pattern.",
    ]
    for name, model in sorted(found["models"].items()):
        lines += ["", f"## {name}", "", _about(model)]
        lines += [
            f"The first {model['max_chars']:,} characters of each text; {model['samples']}"
            f" calibration windows. armor: mean and [range] over {model['seeds']} seeds, which draw"
            " the windows.",
            *quality_table(model),
        ]
    if "sweep" in found:
        times = found["sweep"]
        lines += ["", "## Time of a sweep over the core", "", _about(times)]
        lines += [
            f"Microseconds a block, {RIGHTS} columns of {LEFTS} blocks, float32, one thread,",
            "tables of gains counted; in brackets how many times those of 2:4, which has its own",
            "kernel.",
            "",
            *sweep_table(times["times"]),
        ]
    return "\n".join(lines) + "\n"


def _about(measured: dict[str, Any]) -> str:
    return f"{measured['machine']['cpu']}, {measured['date']}, revision {measured['revision']}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models-dir", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--models", default="babyllama-1m,qwen3-1m")
    parser.add_argument("--sweep", action="store_true", help="time the sweeps instead")
    parser.add_argument("--max-chars", type=int, help="of each text, for all models")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=3, help="of armor")
    parser.add_argument("--work", type=Path, default=Path("build/patterns"))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    args = parser.parse_args()
    about = {
        "machine": {**machine(torch.device("cpu")), "versions": versions()},
        "revision": revision(),
        "date": str(date.today()),
    }
    store = args.results / "patterns.json"
    found = read_json(store) if store.is_file() else {"models": {}}
    args.results.mkdir(parents=True, exist_ok=True)

    def keep() -> None:
        write_json(store, found)
        write_text(args.results / "patterns.md", page(found))

    if args.sweep:
        use_threads(1)
        found["sweep"] = {**about, "times": sweep_times()}
        keep()
        return
    if args.models_dir is None or args.data_dir is None:
        parser.error("--models-dir and --data-dir are needed")
    for name in args.models.split(","):
        found["models"][name] = {**about, **perplexities(args, name)}
        keep()


if __name__ == "__main__":
    main()
