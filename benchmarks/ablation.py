"""What each choice is worth: objective, target, calibration size, shrinkage, dampings, block.

    python benchmarks/ablation.py --shared ../shared --minutes 10     # again and again, until done
    python benchmarks/ablation.py --shared ../shared --plot-only

One choice or two are varied around the default, on small trained models, each run judged on text of
the calibration's domain and of other domains. Every finished run is in benchmarks/results/
ablation.json and is not done again; ablation.md has all of them as tables, docs/images the curves.
"""

import argparse
import itertools
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import HERE, RESULTS, machine, use_threads, versions

from armor.checkpoint.jsonfile import read_json, write_json
from armor.config import PRESETS, PruneConfig
from armor.evaluate.measure import Measurement
from armor.run.prune import prune

STORIES = "data/tinystories/tinystories_{}_sample.txt"
#: Text by domain: what may be calibrated on, and what is evaluated.
CALIBRATION = {"stories": STORIES.format("train"), "wiki": "data/wikitext2/wikitext2-valid.txt"}
TEXTS = {
    "wiki": "data/wikitext2/wikitext2-raw-test.txt",
    "stories": STORIES.format("valid"),
    "novels": "data/tasks/lambada_test.400.jsonl:ctx",
}
WINDOW = 256
BLOCK = 16
BASE = {**PRESETS["default"], "samples": 128, "block_size": BLOCK}


@dataclass(frozen=True)
class Case:
    """A model and the domain it is calibrated on."""

    model: str
    domain: str

    @property
    def name(self) -> str:
        return f"{self.model}, calibrated on {self.domain}"


#: In the order they are worked on.
CASES = (Case("qwen3-1m", "wiki"), Case("babyllama-1m", "wiki"), Case("babyllama-1m", "stories"))


def sweep() -> dict[str, list[dict[str, Any]]]:
    """Settings beside `BASE`, by group; one that is in two groups is run once."""
    kinds = _cross(
        [{"objective": name} for name in ("full", "diag")],
        [{"target": name} for name in ("compensated", "dense")],
    )
    few_and_usual = _values("samples", 8, 128)
    both_presets = [{}, PRESETS["paper"]]
    return {
        "methods": _values("method", "sparsegpt", "wanda"),
        "objective and target": _cross(kinds, few_and_usual),
        "shrinkage": _cross(_values("shrinkage", 0.0, 0.5, 0.75, 1.0), few_and_usual),
        "target damping": _cross(_values("target_damping", 1e-3, 1e-2, 0.1), few_and_usual),
        "damping": _values("damping", 1e-3, 1e-2, 0.1),
        "block": _cross(_values("block_size", 8, 16), both_presets),
        "calibration size": _cross(both_presets, _values("samples", 8, 32, 128, 512)),
        "seed": _cross(_values("seed", 0, 1, 2), both_presets),
        "finer shrinkage": _cross(_values("shrinkage", 0.25, 0.9), few_and_usual),
        "more targets": _cross(kinds, _values("samples", 32, 512)),
    }


def _values(name: str, *values: Any) -> list[dict[str, Any]]:
    return [{name: value} for value in values]


def _cross(*parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for chosen in itertools.product(*parts):
        rows.append({name: value for part in chosen for name, value in part.items()})
    return rows


class Store:
    """The finished runs, in one file."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path = path
        self.data = read_json(path) if path.is_file() else {"runs": {}}
        self.data = {**about, "runs": self.data["runs"]}

    def get(self, case: Case, changes: dict[str, Any]) -> dict[str, Any] | None:
        return self.data["runs"].get(self.key(case, changes))

    def put(self, case: Case, changes: dict[str, Any], row: dict[str, Any]) -> None:
        self.data["runs"][self.key(case, changes)] = row
        write_json(self.path, self.data)

    @staticmethod
    def key(case: Case, changes: dict[str, Any]) -> str:
        """The same for the same settings, however they are written."""
        full = {**BASE, **changes}
        if "method" in changes:
            return f"{case.name}: {changes['method']}"
        config = PruneConfig(**full).to_dict()
        said = {name: config[name] for name in sorted({*BASE, *VARIED})}
        return f"{case.name}: " + ", ".join(f"{name}={value}" for name, value in said.items())


VARIED = ("shrinkage", "damping", "target_damping", "seed")


def measure(case: Case, changes: dict[str, Any] | None, args: argparse.Namespace) -> dict[str, Any]:
    """Prune (None: do not) and evaluate on every text."""
    model = args.shared / "models" / case.model
    folder = args.work / "pruned"
    shutil.rmtree(folder, ignore_errors=True)
    seconds = 0.0
    if changes is not None:
        calibration = str(args.shared / CALIBRATION[case.domain])
        config = PruneConfig(**{**BASE, **changes}, calibration=calibration, seq_len=WINDOW)
        seconds = prune(model, config, folder).seconds
    work = Measurement(str(model if changes is None else folder))
    found = {
        name: work.perplexity(str(args.shared / text), WINDOW, args.max_chars)
        for name, text in TEXTS.items()
    }
    return {
        "case": case.name,
        "changes": changes,
        "perplexity": {name: row["perplexity"] for name, row in found.items()},
        "seconds": round(seconds, 2),
        "revision": revision(),
    }


def revision() -> str:
    """The commit of this checkout."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shared", type=Path, required=True, help="models/ and data/")
    parser.add_argument("--max-chars", type=int, default=100_000, help="of each text (%(default)s)")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no run after this long")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--groups", default=",".join(sweep()))
    parser.add_argument("--cases", type=int, default=len(CASES), help="the first N models")
    parser.add_argument("--work", type=Path, default=Path("build/ablation"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--images", type=Path, default=HERE.parent / "docs" / "images")
    parser.add_argument("--plot-only", action="store_true")
    args = parser.parse_args()
    use_threads(args.threads)
    about = {
        "machine": {**machine(torch.device("cpu")), "versions": versions()},
        "max_chars": args.max_chars,
        "window": WINDOW,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    store = Store(args.out / "ablation.json", about)
    groups = args.groups.split(",")
    todo = [
        (case, changes)
        for rows in ([{"method": "dense"}], *(sweep()[group] for group in groups))
        for case in CASES[: args.cases]
        for changes in rows
    ]
    todo = [] if args.plot_only else [(c, x) for c, x in todo if store.get(c, x) is None]
    end = time.monotonic() + 60 * args.minutes
    for number, (case, changes) in enumerate(todo):
        if store.get(case, changes) is not None:
            continue
        if time.monotonic() > end:
            raise SystemExit(f"{len(todo) - number} runs left")
        dense = changes.get("method") == "dense"
        row = measure(case, None if dense else changes, args)
        store.put(case, changes, row)
        print(case.name, changes, row["perplexity"], row["seconds"], flush=True)


if __name__ == "__main__":
    main()
