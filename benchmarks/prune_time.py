"""Whole-process wall time of `armor prune` against llm-compressor's SparseGPT, run in turn.

    python benchmarks/prune_time.py MODEL CALIBRATION --other-python ENV/bin/python
    python benchmarks/prune_time.py --model smollm2 --seq-len 512 --block-size auto \\
        --runs 1 --no-warm-up --other-python ENV/bin/python

Prints seconds, peak memory and the ratio pair by pair, and writes JSON. Both do all of their work:
start, imports, loading, calibration, pruning, saving; on the same calibration windows, those that
armor draws. The first pair is a warm-up (compilation), unless --no-warm-up is given.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from multiprocessing import get_context
from pathlib import Path

import torch
from common import machine, shared_folder, smollm2_folder, versions

from armor.errors import ArmorError

HERE = Path(__file__).parent
#: What `--model` and `--calibration` also take by name.
SMOLLM2, WIKITEXT2 = "smollm2", "data/wikitext2/wikitext2-valid.txt"


def timed(command: list[str]) -> tuple[float, int]:
    """Seconds and peak resident bytes of a command (and its children)."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed with status {status}: {' '.join(command)}")
    return time.perf_counter() - begin, usage.ru_maxrss * 1024


def parse() -> argparse.Namespace:
    """The options; ``model`` and ``calibration`` as they were said, in either way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("said", nargs="*", metavar="MODEL CALIBRATION")
    parser.add_argument("--model", help=f"folder, or {SMOLLM2}: what make smollm2 has fetched")
    parser.add_argument("--calibration", help=f"text file (default: {WIKITEXT2} of $ARMOR_SHARED)")
    parser.add_argument("--other-python", help="python of an environment with llmcompressor")
    parser.add_argument("--samples", default="128")
    parser.add_argument("--seq-len", default="256")
    parser.add_argument("--block-size", default="16", help="a number, or auto")
    parser.add_argument("--preset", default="default", help="of armor prune (%(default)s)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--warm-up",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="a pair before those that count; a prune of minutes needs none",
    )
    parser.add_argument("--json", type=Path, default=HERE / "results" / "prune_time.json")
    args = parser.parse_args()
    said = args.said
    del args.said
    if args.model is None and said:
        args.model = said.pop(0)
    if args.calibration is None:
        args.calibration = said.pop(0) if said else WIKITEXT2
    if args.model is None or said:
        parser.error("give a model, as MODEL or --model, and at most one text")
    return args


def places(args: argparse.Namespace) -> tuple[str, str]:
    """Where the model and the text are. Raises `ArmorError` where SmolLM2 was not fetched."""
    model, text = args.model, args.calibration
    return (
        str(smollm2_folder()) if model == SMOLLM2 else model,
        str(shared_folder() / text) if text == WIKITEXT2 else text,
    )


def draw(model: str, text: str, samples: int, seq_len: int, out: Path) -> None:
    """Write the calibration windows of `armor prune` to `out`, for the other."""
    from armor.checkpoint.jsonfile import write_json
    from armor.models.folder import ModelFolder
    from armor.models.load import load_tokenizer
    from armor.text.windows import token_windows

    tokenizer = load_tokenizer(ModelFolder.open(model))
    found = token_windows(text, tokenizer, samples, seq_len, bos="never")
    write_json(out, {"windows": found.tolist()})


def main() -> None:
    args = parse()
    try:
        model, text = places(args)
        with tempfile.TemporaryDirectory() as folder:
            drawn = Path(folder) / "windows.json"
            size = int(args.samples), int(args.seq_len)
            if args.other_python:
                # Elsewhere: the peak of a command is at least what its parent holds.
                with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                    pool.submit(draw, model, text, *size, drawn).result()
            rows = measure(args, model, text, drawn)
    except ArmorError as error:
        raise SystemExit(f"error: {error}") from None
    save(args, rows)


def measure(args: argparse.Namespace, model: str, text: str, drawn: Path) -> list[dict[str, float]]:
    """Both in turn, ``--runs`` times, after a warm-up where one is wanted.

    Args:
        model, text: their places. drawn: the file of `draw`.
    """
    windows = ["--samples", args.samples, "--seq-len", args.seq_len]
    rows = []
    for run in range(-args.warm_up, args.runs):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "armor", "prune", model, *windows]
            command += ["--calibration", text, "--block-size", args.block_size]
            command += ["--preset", args.preset]
            command += ["--bos", "never"]  # as the other does
            ours = timed([*command, "--out", f"{folder}/armor"])
            row = {"armor_seconds": ours[0], "armor_peak_bytes": ours[1]}
            if args.other_python:
                script = str(HERE / "llmcompressor_sparsegpt.py")
                command = [args.other_python, script, model, text, "--windows", str(drawn)]
                other = timed([*command, f"{folder}/other", *windows])
                row |= {"other_seconds": other[0], "other_peak_bytes": other[1]}
                row["ratio"] = ours[0] / other[0]
        print({name: round(value, 3) for name, value in row.items()}, flush=True)
        if run >= 0:
            rows.append(row)
    return rows


def save(args: argparse.Namespace, rows: list[dict[str, float]]) -> None:
    """Print the medians and write the JSON."""
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    print("medians", {name: round(value, 3) for name, value in medians.items()})
    result = {
        "date": date.today().isoformat(),
        "machine": machine(torch.device("cpu")),
        "versions": versions(),
        "arguments": {
            name: str(value)
            for name, value in vars(args).items()
            if name not in ("json", "other_python")
        },
        "load_average": os.getloadavg(),
        "rows": rows,
        "medians": medians,
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
