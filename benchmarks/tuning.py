"""Tuning on a real model: every row before and after, on texts that neither saw.

    make smollm2
    python benchmarks/real_model.py --no-rivals --tasks-limit 0    # prunes; its folder is --work
    python benchmarks/tuning.py                                    # give it again after a stop

A small model, pruned by armor compare MODEL --out DIR, and its rivals:

    python benchmarks/tuning.py --model MODEL --work DIR --seq-len 256 --name tuning-small
        --rows armor:60,armor:300,armor:60:block,armor-block-60:300,sparsegpt:300

Takes the checkpoints of that comparison and runs ``armor tune`` on those in --rows, the same way:
what is the factorisation worth, and what the tuning? (A label alone is measured as it is.)
Writes benchmarks/results/tuning.json and tuning.md after every row. The text is that of the
pruning; perplexity and KL on other texts, and tasks with --tasks-limit.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from common import add_common, shared_folder, smollm2_folder, use_threads, write_result
from local_tasks import TASKS, accuracies, write_definitions
from real_model import CPU, TEXTS

from armor.checkpoint.format import RUN_FILE
from armor.checkpoint.inspect import Inspection
from armor.checkpoint.jsonfile import read_json, write_text
from armor.compare.checkpoints import DENSE
from armor.compare.compare import bos_of_model, measurement
from armor.errors import ArmorError
from armor.evaluation.harness import TaskList
from armor.evaluation.tasks import TaskSpec
from armor.tuning.config import FULL, TuneConfig
from armor.tuning.tune import tune

#: The row of which the share of the gap is left.
GAP = "sparsegpt"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common(parser, "tuning")
    parser.set_defaults(threads=os.cpu_count() or 1)
    parser.add_argument("--model", type=Path, help="folder (default: SmolLM2-135M)")
    parser.add_argument(
        "--rows", default="armor:300", help="LABEL[:STEPS[:block]],... (%(default)s)"
    )
    parser.add_argument("--calibration", default="", help="text, or self (default: as pruned)")
    parser.add_argument("--step-size", type=float, default=TuneConfig.step_size)
    parser.add_argument("--seq-len", type=int, default=512, help="tokens a window (%(default)s)")
    parser.add_argument("--max-chars", type=int, default=60_000, help="of each text (%(default)s)")
    parser.add_argument("--bos", default="never", help="as armor compare takes it (%(default)s)")
    parser.add_argument(
        "--work", type=Path, default=Path("build/real_model"), help="the comparison (%(default)s)"
    )
    parser.add_argument("--tasks-limit", type=int, default=0, help="documents of each task")
    return parser.parse_args()


def measured(args: argparse.Namespace, label: str, model: str, bos: str) -> dict[str, Any]:
    """Perplexity and KL of the checkpoint ``WORK/LABEL`` by text, and tasks where asked for."""
    work = measurement(args.work, label, model, "cpu", bos)
    found: dict[str, Any] = {"label": label, "perplexity": {}, "kl": {}}
    for name, place in TEXTS.items():
        row = work.perplexity(shared_folder() / place, args.seq_len, args.max_chars)
        found["perplexity"][name], found["kl"][name] = row["perplexity"], row.get("kl")
    if args.tasks_limit:
        folder = write_definitions(args.work / "tasks", shared_folder() / "data" / "tasks")
        tasks = TaskList([TaskSpec(name, 0, args.tasks_limit) for name in TASKS], folder)
        found["tasks"] = [accuracies(work.task(tasks, spec)) for spec in tasks.specs]
    print(found, flush=True)
    return found


def tuned(args: argparse.Namespace, label: str, steps: str, mode: str, model: str) -> str:
    """Tune ``WORK/LABEL``; the label of what comes of it. What is there is not done again."""
    name = f"{label}-{'tuned' if mode == FULL else mode}-{steps}"
    if args.calibration:
        name += f"-{Path(args.calibration).stem}"
    config = TuneConfig(
        mode, calibration=args.calibration, steps=int(steps), step_size=args.step_size
    )
    tune(args.work / label, model, config, args.work / name, device="cpu")
    return name


def page(rows: list[dict[str, Any]], about: str) -> str:
    """The Markdown table."""
    texts = list(TEXTS)
    dense = next(row for row in rows if row["label"] == DENSE)["perplexity"]
    far = next((row for row in rows if row["label"] == GAP), None)
    lines = ["# Tuning", "", about, ""]
    heads = ["row", "size", *(f"{text}: perplexity" for text in texts), *("KL" for _ in texts)]
    heads += ["gap left", "seconds"]
    lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        own = row["perplexity"]
        cells = [row["label"], "-" if row.get("size") is None else f"{row['size']:.3f}"]
        cells += [f"{own[text]:.2f}" for text in texts]
        cells += ["-" if row["kl"][text] is None else f"{row['kl'][text]:.3f}" for text in texts]
        if far is None or row["label"] == DENSE:
            cells.append("-")
        else:
            shares = [
                (own[text] - dense[text]) / (far["perplexity"][text] - dense[text])
                for text in texts
            ]
            cells.append(" / ".join(f"{share:.1%}" for share in shares))
        cells.append("-" if row.get("seconds") is None else f"{row['seconds']:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    if any("tasks" in row for row in rows):
        lines += ["", f"| task accuracy | {' | '.join(TASKS)} | mean |"]
        lines.append("|---" * (len(TASKS) + 2) + "|")
        for row in (row for row in rows if "tasks" in row):
            own = {task["task"]: task["acc"] for task in row["tasks"]}
            mean = sum(own.values()) / len(own)
            shown = " | ".join(f"{own[name]:.3f}" for name in TASKS)
            lines.append(f"| {row['label']} | {shown} | {mean:.3f} |")
    return "\n".join([*lines, ""])


def main() -> None:
    args = parse()
    use_threads(args.threads)
    try:
        model = str(args.model or smollm2_folder())
        bos = bos_of_model(model, args.bos)
        wanted = [
            [*row.split(":"), FULL][:3] if ":" in row else [row] for row in args.rows.split(",")
        ]
        rows = [measured(args, DENSE, model, bos)]
        labels = dict.fromkeys([GAP, *(label for label, *_ in wanted)])
        jobs = [[label] for label in labels if (args.work / label).is_dir()]
        for label, *how in [*jobs, *(row for row in wanted if row not in jobs)]:
            name = tuned(args, label, *how, model) if how else label
            row = measured(args, name, model, bos)
            found = Inspection.of(args.work / name)
            row["size"] = found.packed_bytes / found.dense_bytes
            tuning = read_json(args.work / name / RUN_FILE).get("tuning")
            row["seconds"] = found.run.seconds if tuning is None else tuning["seconds"]
            kept = ("kind", "best_step", "curve", "windows", "peak_memory_bytes")
            row["tuning"] = tuning and {name: tuning[name] for name in kept}
            rows.append(row)
            write(args, model, bos, rows)
    except ArmorError as error:
        raise SystemExit(f"error: {error}") from None


def write(args: argparse.Namespace, model: str, bos: str, rows: list[dict[str, Any]]) -> None:
    """The JSON and the page so far."""
    about = {"bos": bos, "texts": TEXTS, "rows": rows}
    options = {key: value for key, value in vars(args).items() if key != "work"}
    name = "SmolLM2-135M-Instruct" if args.model is None else args.model.name
    path = write_result(argparse.Namespace(**options | {"model": name}), CPU, about)
    said = (
        f"{name}, windows of {args.seq_len} tokens, the first {args.max_chars:,}"
        " characters of each text; KL from the dense model in nats a token, and of the gap between"
        f" dense and {GAP} the share that is left, text by text; seconds of the step that a row"
        f" adds. Machine, versions and date: [{path.name}]({path.name})."
    )
    write_text(path.with_suffix(".md"), page(rows, said))


if __name__ == "__main__":
    main()
