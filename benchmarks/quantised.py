"""Rounded cores: perplexity and KL against bytes, beside plain rounding and SparseGPT, rounded.

    python benchmarks/quantised.py --model ../shared/models/babyllama-1m     # minutes
    make smollm2 && python benchmarks/quantised.py                           # hours on a CPU

Writes results/NAME.json and NAME.md after the last row; what is in --work already is not done
again. "int4-after" is the 16-bit checkpoint, rounded to the nearest when it is finished: the same
bytes as "int4", without the solver.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from common import add_common, revision, shared_folder, smollm2_folder, use_threads, write_result

import armor
from armor.checkpoint.inspect import Inspection
from armor.checkpoint.jsonfile import read_json, write_text
from armor.compare.compare import bos_of_model, compare
from armor.compare.row import Row
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.evaluation.perplexity import evaluate
from armor.factorize.grid import Grid
from armor.factorize.masks import choice_from_mask
from armor.factorize.rounding import Storage
from armor.linear import ArmorLinear, armor_layers
from armor.models.load import load_model, load_tokenizer
from armor.models.modules import put_module
from armor.run.prune import Progress
from armor.sparse.factors import Factors
from armor.sparse.layer import PackedLayer
from armor.sparse.levels import CORES
from armor.sparse.rounded import Rounded

#: Label -> settings. The first is the one that the others are measured by.
VARIANTS: dict[str, dict[str, Any]] = {
    "16-bit": {},
    "int8": {"core": "int8", "wrappers": "int8"},
    "int4": {"core": "int4", "wrappers": "int8"},
    "sparsegpt": {"method": "sparsegpt"},
    "sparsegpt-int4": {"method": "sparsegpt", "core": "int4"},
    "plain-int8": {"method": "int8"},
    "plain-int4": {"method": "int4"},
}
AFTER = "int4-after"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common(parser, "quantised")
    parser.add_argument("--model", type=Path, help="folder (default: SmolLM2-135M)")
    parser.add_argument(
        "--calibration", default="data/wikitext2/wikitext2-valid.txt", help="in the shared folder"
    )
    parser.add_argument(
        "--text", default="data/wikitext2/wikitext2-raw-test.txt", help="in the shared folder"
    )
    parser.add_argument("--preset", default="default")
    parser.add_argument("--samples", type=int, help="calibration windows (that of the preset)")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--max-chars", type=int, default=60_000)
    parser.add_argument("--include", action="append", default=[], metavar="GLOB")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--work", type=Path, default=Path("build/quantised"))
    return parser.parse_args()


def settings_of(args: argparse.Namespace) -> dict[str, PruneConfig]:
    common: dict[str, Any] = {"include": args.include, "seq_len": args.seq_len, "bos": "never"}
    if args.samples is not None:
        common["samples"] = args.samples
    calibration = str(shared_folder() / args.calibration)
    return {
        label: PruneConfig.preset(args.preset, calibration=calibration, **common, **VARIANTS[label])
        for label in args.variants.split(",")
    }


def rounded_afterwards(layer: PackedLayer, storage: Storage) -> PackedLayer:
    """A finished layer rounded to the nearest: scales by the squared error of the values alone."""
    factors = layer.to_factors().cast(torch.float32)
    assert factors.left is not None
    assert factors.right is not None
    choice = choice_from_mask(factors.mask)
    even = torch.ones(factors.core.shape[1], dtype=torch.float32)
    grid = Grid.fitted(CORES[storage.core], factors.core, choice, even, storage.dtype)
    (left, left_scales), (right, right_scales) = map(storage.blocks, (factors.left, factors.right))
    scales = Rounded(grid.levels, grid.scales.to(storage.dtype), left_scales, right_scales)
    core = grid.nearest(factors.core, choice)
    return PackedLayer.from_factors(Factors(core, factors.mask, left, right, rounded=scales))


def measure_afterwards(args: argparse.Namespace, model: str) -> dict[str, Any]:
    """Perplexity and KL of the 16-bit checkpoint, rounded to int4 when it is finished."""
    network = armor.load(args.work / "16-bit")
    used = 0
    for name, module in list(armor_layers(network)):
        layer = module.packed()
        rounded = rounded_afterwards(layer, Storage("int4", "int8", layer.dtype))
        used += sum(tensor.nbytes for tensor in rounded.tensors().values())
        put_module(network, name, ArmorLinear.from_packed(rounded, module.bias))
    found = evaluate(
        network.float(),
        load_tokenizer(model),
        shared_folder() / args.text,
        seq_len=args.seq_len,
        max_chars=args.max_chars,
        reference=load_model(model, torch.float32, "cpu"),
        bos="never",
    ).to_dict()
    return {"label": AFTER, "packed_bytes": used, "found": found}


def page(data: dict[str, Any]) -> str:
    """A table of all rows, the smallest last."""
    rows = data["rows"]
    dense = rows[0]
    lines = [
        f"# Rounded cores: {data['model']}",
        "",
        f"`benchmarks/quantised.py`, {data['date']}, {data['machine']['cpu']},"
        f" revision {data['revision']}. {data['pruned']}",
        "",
        "| | bytes of dense | perplexity | KL, nats a token |",
        "|---|---|---|---|",
        f"| dense | 1.000 | {dense['perplexity']:.3f} | - |",
    ]
    for row in sorted(rows[1:], key=lambda row: -row["size"]):
        lines.append(
            f"| {row['label']} | {row['size']:.3f} | {row['perplexity']:.3f} | {row['kl']:.4f} |"
        )
    return "\n".join([*lines, ""])


def describe(row: Row, text: str) -> dict[str, Any]:
    found = row.to_dict()
    size = 1.0 if not row.dense_linear_bytes else row.linear_bytes / row.dense_linear_bytes
    return {
        "label": row.label,
        "size": size,
        "linear_bytes": row.linear_bytes,
        "perplexity": row.perplexity[text],
        "kl": (found.get("kl") or {}).get(text),
        "seconds": row.seconds,
    }


def begin(label: str) -> Progress:
    """Say what is done now."""
    print(f"{label} ...", flush=True)
    return Progress()


def main() -> None:
    args = parse()
    use_threads(args.threads)
    try:
        model = str(args.model or smollm2_folder())
        rows = compare(
            model,
            settings_of(args),
            {"text": shared_folder() / args.text},
            args.work,
            seq_len=args.seq_len,
            max_chars=args.max_chars,
            bos=bos_of_model(model, "never"),
            on_start=begin,
            on_row=lambda found: print(found[-1].label, found[-1].perplexity, flush=True),
        )
        described = [describe(row, "text") for row in rows]
        after = measure_afterwards(args, model)
    except ArmorError as error:
        raise SystemExit(f"error: {error}") from None
    found = after["found"]
    inside = next(row for row in described if row["label"] == "int4")
    assert after["packed_bytes"] == Inspection.of(args.work / "int4").packed_bytes
    described.append(
        inside
        | {
            "label": AFTER,
            "perplexity": found["perplexity"],
            "kl": found["kl"],
            "seconds": None,
        }
    )
    name = "SmolLM2-135M-Instruct" if args.model is None else args.model.name
    given = {key: value for key, value in vars(args).items() if key != "work"} | {"model": name}
    included = f"Only {', '.join(args.include)} were pruned." if args.include else ""
    data = {
        "revision": revision(),
        "model": name,
        "pruned": f"Preset {args.preset}. {included}".strip(),
        "rows": described,
    }
    path = write_result(argparse.Namespace(**given), torch.device("cpu"), data)
    write_text(path.with_suffix(".md"), page(read_json(path)))
    print(page(read_json(path)))


if __name__ == "__main__":
    main()
