"""Rounded cores: perplexity and KL against bytes, beside plain rounding and SparseGPT, rounded.

    python benchmarks/quantised.py --model ../shared/models/babyllama-1m     # minutes
    make smollm2 && python benchmarks/quantised.py                           # hours on a CPU

Writes results/NAME.json and NAME.md after every row; what is in --work already is not done again: a
finished folder there is taken as the row of its name, whoever made it. Rows with "-after" are the
16-bit checkpoint of the name before it, rounded to int4 to the nearest when it was finished.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from common import add_common, revision, shared_folder, smollm2_folder, use_threads, write_result

from armor.checkpoint import ModelFiles, assemble
from armor.checkpoint.format import RUN_FILE
from armor.checkpoint.inspect import Inspection
from armor.checkpoint.jsonfile import read_json, write_text
from armor.checkpoint.plain import PLAIN, plain_run
from armor.checkpoint.reader import is_checkpoint, read_layers
from armor.compare.checkpoints import DENSE
from armor.compare.compare import measurement
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.factorize.grid import Grid
from armor.factorize.masks import choice_from_mask
from armor.factorize.rounding import Storage
from armor.run.prune import prune
from armor.sparse.factors import Factors
from armor.sparse.layer import PackedLayer
from armor.sparse.levels import CORES
from armor.sparse.rounded import Rounded

#: Label -> settings. The first is the one that the others are measured by.
VARIANTS: dict[str, dict[str, Any]] = {
    "16-bit": {},
    "int8": {"core": "int8", "wrappers": "int8"},
    "fp8": {"core": "fp8", "wrappers": "int8"},
    "int4": {"core": "int4", "wrappers": "int8"},
    "sparsegpt": {"method": "sparsegpt"},
    "sparsegpt-int4": {"method": "sparsegpt", "core": "int4"},
    "plain-int8": {"method": "int8"},
    "plain-int4": {"method": "int4"},
    "plain-int3": {"method": "int3"},
}
#: Label -> the row that is rounded.
AFTER = {"int4-after": "16-bit", "sparsegpt-int4-after": "sparsegpt"}
TEXTS = (
    "wikitext2=data/wikitext2/wikitext2-raw-test.txt",
    "tinystories=data/tinystories/tinystories_valid_sample.txt",
    "novel=data/mix/novel-evaluation.txt",
)


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
        "--text",
        action="append",
        metavar="[NAME=]FILE",
        help="in the shared folder; several are allowed (default: those of real_model.py)",
    )
    parser.add_argument("--preset", default="default")
    parser.add_argument("--samples", type=int, help="calibration windows (that of the preset)")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--max-chars", type=int, default=60_000, help="of each text")
    parser.add_argument("--include", action="append", default=[], metavar="GLOB")
    parser.add_argument("--variants", default=",".join((*VARIANTS, *AFTER)))
    parser.add_argument("--work", type=Path, default=Path("build/quantised"))
    args = parser.parse_args()
    if unknown := set(args.variants.split(",")) - VARIANTS.keys() - AFTER.keys():
        parser.error(f"unknown variant {min(unknown)}")
    return args


def settings_of(args: argparse.Namespace, label: str) -> PruneConfig:
    common: dict[str, Any] = {"include": args.include, "seq_len": args.seq_len, "bos": "never"}
    if args.samples is not None:
        common["samples"] = args.samples
    calibration = str(shared_folder() / args.calibration)
    return PruneConfig.preset(args.preset, calibration=calibration, **common, **VARIANTS[label])


def texts_of(args: argparse.Namespace) -> dict[str, Path]:
    """The texts by name; one without a name has that of its file."""
    found = {}
    for given in args.text or TEXTS:
        name, _, place = given.rpartition("=")
        found[name or Path(place).stem] = shared_folder() / place
    return found


def rounded_afterwards(layer: PackedLayer, storage: Storage) -> PackedLayer:
    """A finished layer rounded to the nearest: scales by the squared error of the values alone."""
    factors = layer.to_factors().cast(torch.float32)
    choice = choice_from_mask(factors.mask)
    even = torch.ones(factors.core.shape[1], dtype=torch.float32, device="cpu")
    grid = Grid.fitted(CORES[storage.core], factors.core, choice, even, storage.dtype)
    core, own = grid.nearest(factors.core, choice), grid.scales.to(storage.dtype)
    if factors.left is None or factors.right is None:
        rounded = Rounded(grid.levels, own)
        return PackedLayer.from_factors(Factors(core, factors.mask, rounded=rounded))
    (left, left_scales), (right, right_scales) = map(storage.blocks, (factors.left, factors.right))
    rounded = Rounded(grid.levels, own, left_scales, right_scales)
    return PackedLayer.from_factors(Factors(core, factors.mask, left, right, rounded=rounded))


def make(args: argparse.Namespace, label: str, model: str) -> None:
    """The folder of a row, unless it is there."""
    folder = args.work / label
    if is_checkpoint(folder):
        return
    print(f"{label} ...", flush=True)
    if label not in AFTER:
        prune(model, settings_of(args, label), folder)
        return
    source = args.work / AFTER[label]
    layers = {
        name: rounded_afterwards(layer, Storage("int4", "int8", layer.dtype))
        for name, layer in read_layers(source)
    }
    assemble(ModelFiles.read(Path(model)), folder, layers, {"dense_layers": dense_layers(source)})


def dense_layers(folder: Path) -> dict[str, str]:
    found: dict[str, str] = read_json(folder / RUN_FILE).get("dense_layers") or {}
    return found


def sizes(folder: Path, model: str) -> dict[str, int]:
    """Bytes of the decoder's linears as they are kept, those left dense among them, and before."""
    weights = ModelFiles.read(Path(model)).tensors
    left = sum(weights[f"{name}.weight"].nbytes for name in dense_layers(folder))
    if (plain := plain_run(folder)) is not None:
        kept, dense = plain[PLAIN]["compact_bytes"], plain[PLAIN]["dense_bytes"]
    else:
        inspection = Inspection.of(folder)
        kept, dense = inspection.packed_bytes, inspection.dense_bytes
    return {"linear_bytes": kept + left, "dense_linear_bytes": dense + left}


def measure(args: argparse.Namespace, label: str, model: str) -> dict[str, Any]:
    """The row of a folder in --work, or of the dense model; what was measured before is kept."""
    work = measurement(args.work, label, model, "cpu", "never")
    found = {
        name: work.perplexity(text, args.seq_len, args.max_chars)
        for name, text in texts_of(args).items()
    }
    row: dict[str, Any] = {
        "label": label,
        "perplexity": {name: each["perplexity"] for name, each in found.items()},
    }
    if label == DENSE:
        return row | {"size": 1.0, "kl": None, "same_top1": None, "seconds": None}
    bytes_ = sizes(args.work / label, model)
    return {
        **row,
        **bytes_,
        "size": bytes_["linear_bytes"] / bytes_["dense_linear_bytes"],
        "kl": {name: each["kl"] for name, each in found.items()},
        "same_top1": {name: each["same_top1"] for name, each in found.items()},
        "seconds": read_json(args.work / label / RUN_FILE).get("seconds"),
    }


def page(data: dict[str, Any]) -> str:
    """A table of all rows, the smallest last."""
    dense, *rows = data["rows"]
    texts = list(dense["perplexity"])
    lines = [
        f"# Rounded cores: {data['model']}",
        "",
        f"`benchmarks/quantised.py`, {data['date']}, {data['machine']['cpu']},"
        f" revision {data['revision']}. {data['pruned']} Perplexity, and KL in nats a token.",
        "",
        f"| | bytes of dense | {' | '.join(f'{text} | KL' for text in texts)} |",
        "|---" * (2 + 2 * len(texts)) + "|",
    ]
    for row in [dense, *sorted(rows, key=lambda row: -row["size"])]:
        cells = [row["label"], f"{row['size']:.3f}"]
        for text in texts:
            kl = "-" if row["kl"] is None else f"{row['kl'][text]:.4f}"
            cells += [f"{row['perplexity'][text]:.3f}", kl]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def write(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """``OUT/NAME.json`` and ``OUT/NAME.md``."""
    name = "SmolLM2-135M-Instruct" if args.model is None else args.model.name
    # Where the work was done is of no interest.
    given = {key: value for key, value in vars(args).items() if key != "work"} | {"model": name}
    included = f"Only {', '.join(args.include)} were pruned." if args.include else ""
    data = {
        "revision": revision(),
        "model": name,
        "pruned": f"Preset {args.preset}. {included}".strip(),
        "rows": rows,
    }
    path = write_result(argparse.Namespace(**given), torch.device("cpu"), data)
    write_text(path.with_suffix(".md"), page(read_json(path)))


def main() -> None:
    args = parse()
    use_threads(args.threads)
    rows: list[dict[str, Any]] = []
    try:
        model = str(args.model or smollm2_folder())
        args.work.mkdir(parents=True, exist_ok=True)
        for label in (DENSE, *args.variants.split(",")):
            if label != DENSE:
                make(args, label, model)
            rows.append(measure(args, label, model))
            print(label, rows[-1]["perplexity"], rows[-1]["kl"], flush=True)
            write(args, rows)
    except ArmorError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
