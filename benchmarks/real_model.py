"""Every method on a real model, at 2:4 and at equal bytes: perplexity, KL and tasks.

    make smollm2
    python benchmarks/real_model.py                # hours on a CPU; give it again after a stop

Writes benchmarks/results/real_model.json and real_model.md after every row and every task; what is
in --work already is not done again. Texts and rows of tasks: the shared folder ($ARMOR_SHARED).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from common import add_common, revision, shared_folder, smollm2_folder, use_threads, write_result
from local_tasks import TASKS, accuracies, write_definitions
from real_model_page import OWN, page

from armor.checkpoint.format import RUN_FILE
from armor.checkpoint.inspect import Inspection
from armor.checkpoint.jsonfile import read_json, write_text
from armor.checkpoint.plain import plain_run
from armor.compare.checkpoints import DENSE
from armor.compare.compare import bos_of_model, compare, measurement
from armor.compare.equal_bytes import SameBytes, with_rivals
from armor.compare.labels import parse_methods
from armor.compare.row import Row
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.run.prune import Progress

CPU = torch.device("cpu")
CALIBRATION = "data/wikitext2/wikitext2-valid.txt"
#: Evaluation texts by name; the first is of the calibration's domain.
TEXTS = {
    "wikitext2": "data/wikitext2/wikitext2-raw-test.txt",
    "tinystories": "data/tinystories/tinystories_valid_sample.txt",
    "novel": "data/mix/novel-evaluation.txt",
}
#: Writing this there sets the peak of a process's resident memory to what it has now.
RESET = Path("/proc/self/clear_refs"), "5"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common(parser, "real_model")
    parser.set_defaults(threads=os.cpu_count() or 1)
    parser.add_argument("--model", type=Path, help="folder (default: SmolLM2-135M)")
    parser.add_argument(
        "--methods",
        default="armor,sparsegpt,wanda,armor-paper",
        help="as armor compare takes them, the most important first (%(default)s)",
    )
    parser.add_argument(
        "--samples", type=int, default=128, help="calibration windows (%(default)s)"
    )
    parser.add_argument("--seq-len", type=int, default=512, help="tokens a window (%(default)s)")
    parser.add_argument(
        "--max-chars", type=int, default=60_000, help="of each evaluation text (%(default)s)"
    )
    parser.add_argument("--bos", default="never", help="as armor compare takes it (%(default)s)")
    parser.add_argument(
        "--work", type=Path, default=Path("build/real_model"), help="the comparison (%(default)s)"
    )
    parser.add_argument(
        "--rivals",
        action=argparse.BooleanOptionalAction,
        default=True,
        help=f"also the rows that spend the bytes of {OWN} otherwise",
    )
    parser.add_argument(
        "--tasks-limit", type=int, default=200, help="documents of each task; 0: no tasks"
    )
    parser.add_argument(
        "--task-labels",
        default="dense,wanda,sparsegpt,armor-paper,armor",
        help="rows that the tasks run on; those not compared are left out (%(default)s)",
    )
    return parser.parse_args()


def settings_of(args: argparse.Namespace) -> dict[str, PruneConfig | SameBytes]:
    """The rows in the order they are done."""
    own = parse_methods(
        args.methods,
        calibration=str(shared_folder() / CALIBRATION),
        samples=args.samples,
        seq_len=args.seq_len,
        bos=args.bos,
    )
    if not args.rivals:
        return dict(own)
    # The bytes are those of one row, wherever it stands.
    measure = {label: config for label, config in own.items() if label == OWN}
    return {**own, **with_rivals(measure)}


class Results:
    """The JSON and the page, written again as figures come in.

    Attributes:
        rows: of the comparison so far. tasks: by label.
    """

    def __init__(self, args: argparse.Namespace, model: str, bos: str) -> None:
        """Take the revisions of rows that an earlier call has pruned from its results.

        Args:
            model: folder of the dense model. bos: "always" or "never".
        """
        self.args, self.model, self.bos = args, model, bos
        self.rows: list[Row] = []
        self.tasks: dict[str, list[dict[str, Any]]] = {}
        self._pruned: dict[str, dict[str, Any]] = {}
        self._texts: dict[str, dict[str, Any]] = {}
        self._revision = revision()
        self._revisions: dict[tuple[str, float], str] = {}
        store = args.out / f"{args.name}.json"
        if store.is_file():
            self._revisions = {
                (row["label"], row["seconds"]): row["revision"]
                for row in read_json(store)["rows"]
                if row["seconds"]
            }

    def take(self, rows: list[Row]) -> None:
        """Called by `compare` after each row."""
        self.rows = rows
        label = rows[-1].label
        self._pruned[label] = {**self._measured(label), **pruned(self.args.work / label)}
        self.write()
        print(f"{label}: {rows[-1].perplexity}", flush=True)

    def write(self) -> None:
        """``OUT/NAME.json`` and ``OUT/NAME.md``."""
        given = vars(self.args)
        name = "SmolLM2-135M-Instruct" if given["model"] is None else given["model"].name
        # Where the work was done is of no interest.
        options = {key: value for key, value in given.items() if key != "work"} | {"model": name}
        rows = [
            row.to_dict()
            | self._pruned[row.label]
            | {"revision": self._revisions.get((row.label, row.seconds), self._revision)}
            for row in self.rows
        ]
        data = {
            "bos": self.bos,
            "calibration": Path(CALIBRATION).name,
            "texts": self._texts,
            "rows": rows,
            "tasks": self.tasks,
        }
        if self.tasks:
            data["harness"] = version("lm-eval")
        path = write_result(argparse.Namespace(**options), CPU, data)
        write_text(path.with_suffix(".md"), page(read_json(path)))

    def _measured(self, label: str) -> dict[str, Any]:
        """More of what is known about a row's texts: nothing is measured here."""
        args = self.args
        work = measurement(args.work, label, self.model, "cpu", self.bos)
        found: dict[str, Any] = {"ci95": {}, "same_top1": {}}
        for name, place in TEXTS.items():
            row = work.perplexity(shared_folder() / place, args.seq_len, args.max_chars)
            self._texts[name] = {"windows": row["windows"], "tokens": row["tokens"]}
            found["ci95"][name] = row["ci95"]
            found["same_top1"][name] = row.get("same_top1")
        return found


def pruned(folder: Path) -> dict[str, Any]:
    """What the run that wrote `folder` recorded, None for what it did not; all of the dense row."""
    found: dict[str, Any] = dict.fromkeys(("peak_memory_bytes", "resumed_layers", "generalisation"))
    if not (folder / RUN_FILE).is_file():
        return found
    run = read_json(folder / RUN_FILE)
    found |= {name: run.get(name) for name in ("peak_memory_bytes", "resumed_layers")}
    if plain_run(folder) is None:
        found["generalisation"] = Inspection.of(folder).generalisation
    return found


def begin(label: str) -> Progress:
    """Say what is done now; the peak of memory begins anew."""
    print(f"{label} ...", flush=True)
    with suppress(OSError):  # not Linux
        RESET[0].write_text(RESET[1])
    return Progress()


def run_tasks(args: argparse.Namespace, results: Results, labels: Mapping[str, Any]) -> None:
    """Every task on every label that is asked for and was compared."""
    from armor.evaluation.harness import TaskList
    from armor.evaluation.tasks import TaskSpec

    folder = write_definitions(args.work / "tasks", shared_folder() / "data" / "tasks")
    tasks = TaskList([TaskSpec(name, 0, args.tasks_limit) for name in TASKS], folder)
    for label in filter(None, args.task_labels.split(",")):
        if label not in labels:
            continue
        work = measurement(args.work, label, results.model, "cpu", results.bos)
        for spec in tasks.specs:
            found = accuracies(work.task(tasks, spec))
            results.tasks.setdefault(label, []).append(found)
            print(label, found, flush=True)
            results.write()


def main() -> None:
    args = parse()
    use_threads(args.threads)
    try:
        model = str(args.model or smollm2_folder())
        bos = bos_of_model(model, args.bos)
        settings = settings_of(args)
        results = Results(args, model, bos)
        compare(
            model,
            settings,
            {name: shared_folder() / place for name, place in TEXTS.items()},
            args.work,
            seq_len=args.seq_len,
            max_chars=args.max_chars,
            bos=bos,
            on_start=begin,
            on_row=results.take,
        )
        if args.tasks_limit:
            run_tasks(args, results, {DENSE: None, **settings})
    except ArmorError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
