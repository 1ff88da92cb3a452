"""What each choice is worth: objective, target, calibration size, shrinkage, dampings, block.

    python benchmarks/ablation.py --shared ../shared --minutes 10     # again and again, until done
    python benchmarks/ablation.py --shared ../shared --plot-only

One choice or two are varied around a base, on small trained models, each run judged on text of
the calibration's domain and of other domains. Every finished run is in benchmarks/results/
ablation.json and is not done again; ablation.md has all of them as tables, docs/images the curves.
"""

import argparse
import itertools
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import COLOURS, HERE, RESULTS, machine, plt, revision, use_threads, versions

from armor.checkpoint.jsonfile import read_json, write_json, write_text
from armor.config import PRESETS, PruneConfig
from armor.evaluation.measure import Measurement
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
DENSE = {"method": "dense"}
#: The default, but for the damping: this sweep moved it from 0.01 to 0.1.
BASE = {
    **PRESETS["default"],
    "samples": 128,
    "block_size": BLOCK,
    "shrinkage": 0.5,
    "damping": 1e-2,
    "target_damping": 1e-2,
}


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
        "damping": _cross(_values("damping", 1e-3, 1e-2, 0.1, 0.3), [{}, {"samples": 8}]),
        "block": _cross(_values("block_size", 8, 16), both_presets),
        "calibration size": _cross(both_presets, _values("samples", 8, 32, 128, 512)),
        "seed": _cross(_values("seed", 0, 1, 2), [{}, {"damping": 0.1}, PRESETS["paper"]]),
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
        self.runs: dict[str, dict[str, Any]] = {}
        if path.is_file():
            self.runs = read_json(path)["runs"]
        self.about = about

    def get(self, case: Case, changes: dict[str, Any]) -> dict[str, Any] | None:
        return self.runs.get(self.key(case, changes))

    def put(self, case: Case, changes: dict[str, Any], row: dict[str, Any]) -> None:
        self.runs[self.key(case, changes)] = row
        write_json(self.path, {**self.about, "runs": self.runs})

    def excess(self, case: Case, changes: dict[str, Any], text: str) -> float | None:
        """By how many percent the perplexity is above the dense model's; None if not run."""
        dense, row = self.get(case, DENSE), self.get(case, changes)
        if dense is None or row is None:
            return None
        return 100 * (row["perplexity"][text] / dense["perplexity"][text] - 1)

    @staticmethod
    def key(case: Case, changes: dict[str, Any]) -> str:
        """The same for the same settings, however they are written."""
        if "method" in changes:
            return f"{case.name}: {changes['method']}"
        config = PruneConfig(**{**BASE, **changes}).to_dict()
        said = {name: config[name] for name in sorted({*BASE, "seed"})}
        return f"{case.name}: " + ", ".join(f"{name}={value}" for name, value in said.items())


def measure(case: Case, changes: dict[str, Any] | None, args: argparse.Namespace) -> dict[str, Any]:
    """Prune (None: do not) and evaluate on every text."""
    model = args.shared / "models" / case.model
    folder = args.work / "pruned"
    shutil.rmtree(folder, ignore_errors=True)
    seconds = 0.0
    if changes is not None:
        calibration = str(args.shared / CALIBRATION[case.domain])
        config = PruneConfig(
            **{**BASE, **changes}, calibration=calibration, seq_len=WINDOW, bos="never"
        )
        seconds = prune(model, config, folder).seconds
    work = Measurement(str(model if changes is None else folder), bos="never")
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


def curves(
    store: Store,
    args: argparse.Namespace,
    name: str,
    axis: tuple[str, str],
    lines: dict[str, tuple[list[tuple[float, dict[str, Any]]], dict[str, Any]]],
) -> None:
    """One figure: models down, texts across; each line is points of (x, settings), and a style."""
    cases = [case for case in CASES if store.get(case, DENSE)]
    drawing, all_axes = plt.subplots(
        len(cases), len(TEXTS), figsize=(9.6, 2.7 * len(cases)), layout="constrained", squeeze=False
    )
    for row, case in zip(all_axes, cases, strict=True):
        for axes, text in zip(row, TEXTS, strict=True):
            for label, (points, style) in lines.items():
                found = [(x, store.excess(case, changes, text)) for x, changes in points]
                found = [(x, y) for x, y in found if y is not None]
                axes.plot(*zip(*found, strict=True), label=label, **style) if found else None
            ticks = sorted({x for points, _ in lines.values() for x, _ in points})
            axes.set_xscale(axis[1])
            axes.set_xticks(ticks, [f"{x:g}" for x in ticks], minor=False)
            axes.set_xticks([], minor=True)
            axes.grid(True, color="#dddddd", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            same = "the calibration's domain" if text == case.domain else "another domain"
            axes.set_title(f"{case.name}\n{text} ({same})", fontsize=8)
            axes.tick_params(labelsize=8)
    for axes in all_axes[-1]:
        axes.set_xlabel(axis[0], fontsize=8)
    for row in all_axes:
        row[0].set_ylabel("perplexity above dense, %", fontsize=8)
    handles, labels = all_axes[0][0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    drawing.savefig(args.images / f"{args.name}-{name}.png", dpi=110)
    plt.close(drawing)


def draw(store: Store, args: argparse.Namespace) -> None:
    """The figures of docs/ablation.md."""
    paper, blue, red = PRESETS["paper"], COLOURS["exact"], COLOURS["adam"]

    def points(name: str, values: tuple[float, ...], **more: Any) -> list[tuple[float, Any]]:
        return [(value, {name: value, **more}) for value in values]

    sizes = (8, 32, 128, 512)
    kinds = {
        "full, compensated": (dict(PRESETS["default"]), {"color": blue, "marker": "o"}),
        "full, dense": (
            {"objective": "full", "target": "dense"},
            {"color": blue, "marker": "o", "linestyle": ":"},
        ),
        "diag, compensated": (
            {"objective": "diag", "target": "compensated"},
            {"color": red, "marker": "s"},
        ),
        "diag, dense (paper)": (paper, {"color": red, "marker": "s", "linestyle": ":"}),
    }
    curves(
        store,
        args,
        "size",
        ("calibration windows of 256 tokens", "log"),
        {name: (points("samples", sizes, **more), style) for name, (more, style) in kinds.items()},
    )
    few = {"color": red, "marker": "s"}
    usual = {"color": blue, "marker": "o"}
    level = {"color": COLOURS["dense"], "linestyle": "--"}

    def by_size(name: str, values: tuple[float, ...]) -> dict[str, Any]:
        ends = (values[0], values[-1])
        return {
            "8 windows": (points(name, values, samples=8), few),
            "128 windows": (points(name, values), usual),
            "paper's preset, 128 windows": ([(x, paper) for x in ends], level),
        }

    curves(
        store,
        args,
        "shrinkage",
        ("shrinkage", "linear"),
        by_size("shrinkage", (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)),
    )
    curves(
        store,
        args,
        "target-damping",
        ("target damping", "log"),
        by_size("target_damping", (1e-3, 1e-2, 3e-2, 0.1, 0.3)),
    )
    curves(
        store,
        args,
        "damping",
        ("damping", "log"),
        by_size("damping", (1e-3, 1e-2, 0.1, 0.3)),
    )


def tables(store: Store) -> str:
    """Every run, in Markdown."""
    lines = [
        "# Ablation",
        "",
        f"{store.about['machine']['cpu']}; the first {store.about['max_chars']:,} characters of "
        f"each text in windows of {WINDOW} tokens, no BOS; perplexity, and percent above the dense "
        "model.",
        f"What a line does not say: {', '.join(f'{k} {v}' for k, v in said({}).items())}.",
    ]
    for case in CASES:
        if store.get(case, DENSE) is None:
            continue
        heads = " | ".join(f"{text} | %" for text in TEXTS)
        lines += ["", f"## {case.name}", "", f"| settings | {heads} |", "|---" * 7 + "|"]
        seen: set[str] = set()
        for changes in (DENSE, *itertools.chain(*sweep().values())):
            row, key = store.get(case, changes), store.key(case, changes)
            if row is None or key in seen:
                continue
            seen.add(key)
            name = changes.get("method") or (
                ", ".join(f"{k} {v}" for k, v in said(changes).items() if said({})[k] != v)
                or "the base"
            )
            cells = [
                f"{row['perplexity'][text]:.4g} | {store.excess(case, changes, text):.2f}"
                for text in TEXTS
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def said(changes: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run that tell it from others."""
    config = PruneConfig(**{**BASE, **changes}).to_dict()
    return {name: config[name] for name in (*BASE, "seed") if name != "solver"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shared", type=Path, required=True, help="models/ and data/")
    parser.add_argument("--max-chars", type=int, default=100_000, help="of each text (%(default)s)")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no run after this long")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--groups", default=",".join(sweep()))
    parser.add_argument("--cases", default="1,2", help="numbers in CASES (%(default)s)")
    parser.add_argument("--work", type=Path, default=Path("build/ablation"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--name", default="ablation", help="of the results' files (%(default)s)")
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
    store = Store(args.out / f"{args.name}.json", about)
    chosen = [CASES[int(number) - 1] for number in args.cases.split(",")]
    groups = args.groups.split(",")
    todo = [
        (case, changes)
        for rows in ([DENSE], *(sweep()[group] for group in groups))
        for case in chosen
        for changes in rows
    ]
    todo = [] if args.plot_only else [(c, x) for c, x in todo if store.get(c, x) is None]
    end = time.monotonic() + 60 * args.minutes
    for number, (case, changes) in enumerate(todo):
        if store.get(case, changes) is not None:
            continue
        if time.monotonic() > end:
            raise SystemExit(f"{len(todo) - number} runs left")
        row = measure(case, None if changes == DENSE else changes, args)
        store.put(case, changes, row)
        print(case.name, changes, row["perplexity"], row["seconds"], flush=True)
    args.images.mkdir(parents=True, exist_ok=True)
    draw(store, args)
    write_text(args.out / f"{args.name}.md", tables(store))


if __name__ == "__main__":
    main()
