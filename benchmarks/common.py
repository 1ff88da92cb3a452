"""What every benchmark shares: where results go, what they ran on, and how plots look."""

from __future__ import annotations

import argparse
import os
import platform
import runpy
import subprocess
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch

from armor.checkpoint.jsonfile import write_json
from armor.errors import ArmorError

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
#: Colours that stay apart for colour-blind readers, by what they stand for.
COLOURS = {"exact": "#0072b2", "adam": "#d55e00", "dense": "#555555", "other": "#009e73"}


def shared_folder() -> Path:
    """The small trained models and texts: ``$ARMOR_SHARED``, else ``../shared`` beside the
    repository."""
    return Path(os.environ.get("ARMOR_SHARED", HERE.parents[1] / "shared"))


def smollm2_folder() -> Path:
    """SmolLM2-135M, a real model, as ``make smollm2`` fetches it.

    Raises:
        ArmorError: it has not.
    """
    script = runpy.run_path(str(HERE.parent / "scripts" / "fetch_smollm2.py"))
    folder: Path = script["default_folder"]()
    if not script["is_there"](folder):
        raise ArmorError(f"no SmolLM2-135M in {folder}: make smollm2, or set ARMOR_SMOLLM2")
    return folder


def add_common(parser: argparse.ArgumentParser, name: str) -> None:
    """The options of every benchmark: where results go, and how many threads."""
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder of the results (default: %(default)s)"
    )
    parser.add_argument("--name", default=name, help="file name of the results (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (%(default)s)")


def use_threads(count: int) -> None:
    """`count` threads for torch and for Numba."""
    import numba

    torch.set_num_threads(count)
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: torch.device) -> dict[str, Any]:
    """The processor, its cores, and the GPU if it is the one measured."""
    found: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["gpu"] = properties.name
        found["gpu_memory_gib"] = round(properties.total_memory / 2**30, 1)
        found["gpu_processors"] = properties.multi_processor_count
        found["cuda"] = torch.version.cuda
    return found


def versions() -> dict[str, str]:
    """Of Python and of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in ("armor-prune", "torch", "triton", "numba", "numpy", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


@cache
def revision() -> str:
    """The commit of this checkout, "-dirty" with changes on top; "unknown" without git."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    except OSError:  # no git here
        return "unknown"
    return done.stdout.strip() or "unknown"


class Failures:
    """What went wrong in parts of a benchmark that goes on without them."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Print and note what is raised inside."""
        try:
            yield
        except Exception as error:  # a compiler's, a driver's, too little memory
            traceback.print_exc()
            self.found[part] = f"{type(error).__name__}: {error}"
            print(f"failed, going on: {part}", flush=True)

    def end(self) -> None:
        """Exit with 1 if anything failed."""
        if self.found:
            raise SystemExit(f"failed: {', '.join(self.found)}")


def write_result(arguments: argparse.Namespace, device: torch.device, data: dict[str, Any]) -> Path:
    """``OUT/NAME.json``: when and on what, the options, then `data`. Returns the path."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{arguments.name}.json"
    options = {
        key: os.path.relpath(value) if isinstance(value, Path) else value
        for key, value in vars(arguments).items()
        if key not in ("out", "name")
    }
    write_json(
        path,
        {
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
            "revision": revision(),
            "machine": machine(device),
            "versions": versions(),
            "options": options,
            **data,
        },
    )
    return path


def figure(width: float = 7.0, height: float = 4.2) -> tuple[Figure, Axes]:
    """An empty plot in the common style."""
    drawing, axes = plt.subplots(figsize=(width, height), layout="constrained")
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return drawing, axes


def save_figure(arguments: argparse.Namespace, drawing: Figure) -> Path:
    """``OUT/NAME.png``. Returns the path."""
    path = arguments.out / f"{arguments.name}.png"
    drawing.savefig(path, dpi=150)
    plt.close(drawing)
    return path


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
