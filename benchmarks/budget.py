"""A size for the whole against one block for every layer, at equal bytes.

    python benchmarks/budget.py --shared ../shared --minutes 10      # again and again, until done

Each small trained model is pruned with one block for every layer (the largest that fits where a
layer takes none so large) and, at the bytes that this takes, with `size`; several seeds draw the
calibration windows. Measured are perplexity and the divergence from the dense model's predictions,
which tells where perplexity does not: an undertrained model may gain by being pruned. Every
finished run is in benchmarks/results/budget.json and is not done again; budget.md has all of them,
docs/images/budget.png the gains.
"""

import argparse
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from common import COLOURS, HERE, RESULTS, figure, machine, plt, revision, use_threads, versions
from matplotlib.ticker import PercentFormatter

from armor.checkpoint.jsonfile import read_json, write_json, write_text
from armor.config import PruneConfig
from armor.evaluation.measure import Measurement
from armor.models.folder import ModelFolder
from armor.models.streamed import StreamedModel
from armor.run.plan import candidates, packed_size
from armor.run.prune import prune

WINDOW = 256
TEXTS = {
    "stories": "data/tinystories/tinystories_valid_sample.txt",
    "wiki": "data/wikitext2/wikitext2-raw-test.txt",
}


@dataclass(frozen=True)
class Case:
    """A model, the domain of the text it is calibrated on, and the blocks to compare with."""

    model: str
    domain: str
    blocks: tuple[int, ...]


CALIBRATION = {
    "stories": "data/tinystories/tinystories_train_sample.txt",
    "wiki": "data/wikitext2/wikitext2-valid.txt",
}
CASES = (
    Case("babyllama-1m", "stories", (16, 32)),
    Case("wide-llama", "stories", (16,)),
    Case("wide-llama", "wiki", (16,)),
)
#: What is measured on each text: entries of a run.
MEASURES = ("perplexity", "kl", "same_top1")


def uniform(folder: Path, block: int) -> tuple[dict[str, Any], float]:
    """The block of each layer, at most `block`, as a recipe; bytes over those of dense layers."""
    model = StreamedModel(ModelFolder.open(folder))
    rules, size, whole = {}, 0.0, 0.0
    for index in range(len(model.structure.blocks)):
        for path, linear in model.structure.linears(index).items():
            shape = (linear.out_features, linear.in_features)
            itemsize = model.dtype(f"{path}.weight").itemsize
            own = max(one for one in candidates(shape, itemsize) if one <= block)
            rules[model.layout.name(path)] = {"block": own}
            entries = shape[0] * shape[1]
            size += entries * packed_size(shape, own, itemsize)
            whole += entries
    return rules, size / whole


def run(case: Case, block: int, seed: int, kind: str, args: argparse.Namespace) -> dict[str, Any]:
    """Prune and evaluate: `kind` is "dense", "uniform" or "size"."""
    model, folder = args.shared / "models" / case.model, args.work / "pruned"
    shutil.rmtree(folder, ignore_errors=True)
    row: dict[str, Any] = {"model": case.model, "domain": case.domain}
    row |= {"kind": kind, "block": block, "seed": seed}
    if kind != "dense":
        rules, size = uniform(model, block)
        # A hair more: the bytes of the uniform choice, and not one less by rounding.
        changes = {"overrides": rules} if kind == "uniform" else {"size": size * (1 + 1e-9)}
        config = PruneConfig(
            calibration=str(args.shared / CALIBRATION[case.domain]),
            seq_len=WINDOW,
            bos="never",
            seed=seed,
            **changes,
        )
        begin = time.perf_counter()
        result = prune(model, config, folder, fresh=True)
        row["seconds"] = round(time.perf_counter() - begin, 1)
        row["blocks"] = {plan.name: plan.block for plan in result.plans}
        record = read_json(folder / "armor_run.json")
        row["size"] = record["budget"]["reached"] if kind == "size" else size
    dense = kind == "dense"
    work = Measurement(
        str(model if dense else folder), reference=None if dense else str(model), bos="never"
    )
    for name, text in TEXTS.items():
        found = work.perplexity(str(args.shared / text), WINDOW, args.max_chars)
        found = {"kl": 0.0, "same_top1": 1.0} | found  # of the dense model from itself
        for measure in MEASURES:
            row.setdefault(measure, {})[name] = found[measure]
    return row | {"revision": revision()}


def key(case: Case, block: int, seed: int, kind: str) -> str:
    return f"{case.model} on {case.domain} {kind} {block} seed {seed}"


def rows_of(runs: dict[str, Any], case: Case, block: int, kind: str) -> list[dict[str, Any]]:
    """The runs of all seeds."""
    names = ("model", "domain", "block", "kind")
    wanted = [case.model, case.domain, block, kind]
    return [row for row in runs.values() if [row[name] for name in names] == wanted]


def spread(values: list[float], form: str) -> str:
    """The mean, and of several the range."""
    span = f" [{min(values):{form}}, {max(values):{form}}]" if len(values) > 1 else ""
    return f"{mean(values):{form}}{span}"


def table(runs: dict[str, Any], about: dict[str, Any]) -> str:
    """Every run, in Markdown."""
    lines = [
        "# Blocks by a size for the whole, against one block for every layer",
        "",
        f"{about['machine']['cpu']}, 1 or 2 threads; on the first"
        f" {about['max_chars']:,} characters of each text, windows of {WINDOW} tokens, no BOS:"
        " perplexity, mean KL divergence from the dense model (nats a token) and share of equal"
        " top tokens."
        " Mean and [range] over the seeds that draw the calibration windows.",
        "",
        "| model, calibrated on | blocks | size | "
        + " | ".join(f"{text} | KL {text} | top {text}" for text in TEXTS)
        + " | seconds | seeds |",
        "|---" * (5 + 3 * len(TEXTS)) + "|",
    ]
    for case in CASES:
        for block in (0, *case.blocks):
            for kind in ("dense",) if not block else ("uniform", "size"):
                rows = rows_of(runs, case, block, kind)
                if not rows:
                    continue
                name = {"dense": "dense", "uniform": f"{block} at most", "size": "chosen"}[kind]
                which = f"{case.model}, {case.domain}"
                cells = [f"{which} | {name} | {rows[0].get('size', 1.0):.4f}"]
                for text in TEXTS:
                    cells += [
                        spread([row["perplexity"][text] for row in rows], ".4f"),
                        spread([row["kl"][text] for row in rows], ".5f"),
                        spread([row["same_top1"][text] for row in rows], ".2%"),
                    ]
                cells.append(f"{mean(row.get('seconds', 0) for row in rows):.0f}")
                lines.append(f"| {' | '.join(cells)} | {len(rows)} |")
    return "\n".join(lines) + "\n"


def draw(runs: dict[str, Any], path: Path) -> None:
    """Divergence from the dense model with chosen blocks, over that with one block everywhere."""
    bars = [
        (f"{case.model}\non {case.domain}\nsize {uniform_rows[0]['size']:.3f}", case.domain, ratios)
        for case in CASES
        for block in case.blocks
        if (uniform_rows := rows_of(runs, case, block, "uniform"))
        and (chosen := rows_of(runs, case, block, "size"))
        for ratios in [
            {
                text: mean(r["kl"][text] for r in chosen)
                / mean(r["kl"][text] for r in uniform_rows)
                for text in TEXTS
            }
        ]
    ]
    drawing, axes = figure()
    for offset, same, label in (
        (-0.2, True, "text of the calibration's domain"),
        (0.2, False, "text of another domain"),
    ):
        heights = [
            next(ratio for text, ratio in ratios.items() if (text == domain) == same)
            for _, domain, ratios in bars
        ]
        places = [place + offset for place in range(len(bars))]
        colour = COLOURS["exact" if same else "other"]
        drawn = axes.bar(places, heights, 0.36, color=colour, label=label)
        axes.bar_label(drawn, fmt="{:.0%}", fontsize=8)
    axes.axhline(1, color=COLOURS["adam"], linestyle="--", label="one block for every layer")
    axes.set_xticks(range(len(bars)), [name for name, *_ in bars], fontsize=8)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_ylabel("KL from dense, chosen over uniform")
    drawing.legend(fontsize=8, loc="outside upper center", ncols=3)
    drawing.savefig(path, dpi=120)
    plt.close(drawing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shared", type=Path, required=True, help="models/ and data/")
    parser.add_argument("--max-chars", type=int, default=200_000, help="of each text (%(default)s)")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no run after this long")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("build/budget"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--images", type=Path, default=HERE.parent / "docs" / "images")
    parser.add_argument("--models", default=",".join(sorted({case.model for case in CASES})))
    args = parser.parse_args()
    use_threads(args.threads)
    path = args.out / "budget.json"
    about = {
        "machine": {**machine(torch.device("cpu")), "versions": versions()},
        "max_chars": args.max_chars,
        "window": WINDOW,
    }
    runs: dict[str, Any] = read_json(path)["runs"] if path.is_file() else {}
    todo = [(case, 0, 0, "dense") for case in CASES] + [
        (case, block, seed, kind)
        for seed in range(args.seeds)
        for case in CASES
        for block in case.blocks
        for kind in ("uniform", "size")
    ]
    end = time.monotonic() + 60 * args.minutes
    late = 0
    for case, *which in todo:
        name = key(case, *which)
        if case.model not in args.models.split(",") or name in runs:
            continue
        if time.monotonic() > end:
            late += 1
            continue
        runs[name] = run(case, *which, args)
        print(name, *(runs[name][measure] for measure in MEASURES), flush=True)
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(path, {**about, "runs": runs})
    write_text(args.out / "budget.md", table(runs, about))
    draw(runs, args.images / "budget.png")
    if late:
        raise SystemExit(f"{late} runs left")


if __name__ == "__main__":
    main()
