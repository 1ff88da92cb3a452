"""Compiles every Triton kernel for GPUs that are not here, through the launches that really happen.

    python scripts/compile_kernels.py [--architectures 80 90] [--quick] [--json FILE]

Nothing runs on a GPU and none is needed: Triton's driver is stood in for, so that its JIT makes of
the launchers' arguments what it would make of them there (an argument of 1 becomes a constant), and
the compiler and the assembler that come with Triton do the rest. Fails where a launch does not
compile, or a kernel of the runtime spills registers, takes more shared memory than every GPU has,
or multiplies 16-bit numbers without tensor cores.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timezone
from itertools import product
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"  # before triton loads

import torch
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from armor.baselines import obs_triton
from armor.checkpoint.format import LayerSpec
from armor.checkpoint.tensorfile import DTYPES as DTYPES_BY_NAME
from armor.factorize.kernels import triton as sweeps
from armor.runtime import Call
from armor.runtime.gated import ACTIVATIONS, Gated
from armor.runtime.triton import backend
from armor.runtime.triton.gated import between_cores, takes_gated
from armor.sparse.layer import PackedLayer
from armor.sparse.levels import CORES
from armor.versions import versions

#: Compute capability: multiprocessors of a GPU that has it, and its tensor-core instruction.
ARCHITECTURES = {
    80: (108, "HMMA"),
    89: (128, "HMMA"),
    90: (132, "HGMMA"),
    100: (148, "UTCHMMA"),
    120: (170, "HMMA"),
}
RUNTIME = ("core_kernel", "blocks_kernel", "gated_kernel")
WIDE_ROWS = 64  # of a tile that the instructions of 9.0 and later take
SHARED_BYTES = 99 * 1024  # what a program can have on all of them
#: Layers that share an input: (outputs of each, inputs, bias).
LAUNCHES = {
    "Llama-2-7B": [([4096] * 3, 4096), ([4096], 4096), ([11008] * 2, 4096), ([4096], 11008)],
    # k and v get smaller wrappers than q by default, and share a launch without it.
    "Llama-3-8B": [
        ([4096, 1024, 1024], 4096),
        ([1024] * 2, 4096),
        ([14336] * 2, 4096),
        ([4096], 14336),
    ],
    "Qwen2.5-14B": [
        ([5120, 1024, 1024], 5120),
        ([1024] * 2, 5120),
        ([13824] * 2, 5120),
        ([5120], 13824),
    ],
}
BLOCKS = (128, 64, 32, 16, 8)
ROWS = (1, 2, 16, 32, 4096)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
#: (rows, cols) of the matrices that the solver sweeps.
MATRICES = ((4096, 4096), (11008, 4096), (4096, 11008))
#: 16 bytes at a time, asynchronously where there is a pipeline.
WIDE_LOADS = ("cp.async.cg.shared.global", "ld.global.v4", "cp.async.bulk")
#: An instruction of SASS: its address, name and operands.
_LINE = re.compile(
    r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?\s*([A-Z][A-Z0-9_]*)([^;]*)", re.MULTILINE
)
_TOOLS = Path(triton.backends.nvidia.__file__).parent / "bin"


class Gpu:
    """What Triton asks its driver before it compiles; nothing is loaded, nothing runs."""

    architecture = 90

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return self.architecture

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_device_capability(self, device: int = 0) -> tuple[int, int]:
        return divmod(self.architecture, 10)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, kind: str) -> str:
        return "void*"


_launch = JITFunction.run
_found: list[tuple[JITFunction, Any]] = []


def _only_compile(
    kernel: JITFunction, *arguments: Any, grid: Any, warmup: bool, **constants: Any
) -> None:
    made = _launch(kernel, *arguments, grid=grid, warmup=True, **constants)
    _found.append((kernel, made.result() if hasattr(made, "result") else made))


def runtime_cases(quick: bool) -> Iterator[tuple[str, list[Call], torch.Tensor]]:
    """Layers and an input of them, by a name."""
    models = ["Llama-3-8B"] if quick else list(LAUNCHES)
    dtypes = (torch.bfloat16,) if quick else DTYPES
    for model in models:
        for outs, cols in LAUNCHES[model]:
            blocks = ((64,) if max(outs) == 1024 else (128,)) if quick else BLOCKS
            for dtype in dtypes:
                forms = [(block, core) for block in blocks for core in (None, *CORES)]
                for block, core in forms:
                    if core is not None and dtype != torch.bfloat16:
                        continue
                    bias = model.startswith("Qwen")
                    calls = [_call(out, cols, block, dtype, bias, core) for out in outs]
                    for rows in (1, 16) if quick else ROWS:
                        name = (
                            f"{model} {'+'.join(map(str, outs))}x{cols} block {block} rows {rows}"
                        )
                        x = torch.empty(rows, cols, dtype=dtype, device="meta")
                        yield f"{name} {dtype} {core or ''}".rstrip(), calls, x
    for out, cols, block in ((1, 6, 4), (37, 6, 48), (5, 52, 4)):  # partial tiles, sizes of 1
        for dtype, core in product(DTYPES, (None, *CORES)):
            x = torch.empty(1, cols, dtype=dtype, device="meta")
            yield (
                f"{out}x{cols} block {block} {dtype} {core or ''}".rstrip(),
                [_call(out, cols, block, dtype, True, core)] * 3,
                x,
            )


def _call(
    out: int, cols: int, block: int, dtype: torch.dtype, bias: bool, core: str | None
) -> Call:
    """A layer without numbers; wrappers of a rounded core are int8."""

    def empty(*shape: int, kind: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=kind, device="meta")

    spec = LayerSpec((out, cols), block, core=core, wrappers=None if core is None else "int8")
    codes = {part: DTYPES_BY_NAME[kind] for part, kind in spec.code_dtypes().items()}
    parts = {
        part: empty(*shape, kind=codes.get(part, dtype))
        for part, shape in spec.tensor_shapes().items()
    }
    return Call(PackedLayer.of(cols, parts), empty(out) if bias else None)


def compile_runtime(quick: bool) -> Iterator[dict[str, Any]]:
    """What became of each launch of the runtime."""
    for name, calls, x in runtime_cases(quick):
        yield from _compiled(name, lambda calls=calls, x=x: backend.product(x, calls))


def compile_gated(quick: bool) -> Iterator[dict[str, Any]]:
    """What became of the launch between the cores of an MLP, of either backend, and of all for few
    rows."""
    forms = product(LAUNCHES, DTYPES[:2], BLOCKS)
    for number, (model, dtype, block) in enumerate([*forms][: 1 if quick else None]):
        ((inner, _), cols), bias = LAUNCHES[model][-2], model.startswith("Qwen")
        up = _call(inner, cols, block, dtype, bias, None)
        down = _call(cols, inner, block, dtype, bias, None)
        cores = torch.empty(4096, inner, dtype=dtype, device="meta")
        sums = torch.empty(1, 4096, 2 * inner, dtype=torch.float32, device="meta")
        for activation in [*ACTIVATIONS][: 2 if quick else None if number == 0 else 1]:
            gated = Gated(up, up, down, activation)
            assert takes_gated(gated)
            for kind, given in (("cores", (cores, cores)), ("sums", sums.split(inner, 2))):
                name = f"{model} MLP {inner} block {block} {activation} {kind} {dtype}"
                arguments = (*given, gated, dtype)
                yield from _compiled(name, lambda arguments=arguments: between_cores(*arguments))
        for rows in (1, 16):  # decoding, the whole of it
            x = torch.empty(rows, cols, dtype=dtype, device="meta")
            name = f"{model} MLP {inner} block {block} whole rows {rows} {dtype}"
            yield from _compiled(name, lambda x=x, gated=gated: backend.matmul_gated(x, gated))


def compile_sweeps(quick: bool) -> Iterator[dict[str, Any]]:
    """What became of the solver's sweeps: of all blocks (diag), two columns or one (full)."""
    for rows, cols in MATRICES[:1] if quick else MATRICES:
        for block in (128,) if quick else BLOCKS:
            for dtype in (torch.float32,) if quick else (torch.float32, torch.float64):
                for width in (cols, 2 * block, block):
                    name = f"sweep {rows}x{cols} block {block} {width} columns {dtype}"
                    sizes = (rows, width, block, dtype)
                    yield from _compiled(name, lambda sizes=sizes: _sweep(*sizes))


def compile_sparsegpt() -> Iterator[dict[str, Any]]:
    """What became of SparseGPT's blocks of columns."""
    for columns, rows in ((128, 4096), (128, 11008), (4, 4096)):
        weight, error = (torch.empty(columns, rows, device="meta") for _ in range(2))
        upper = torch.empty(columns, columns, device="meta")
        mask = torch.empty_like(error, dtype=torch.bool)
        given = weight, upper, mask
        name = f"SparseGPT {columns} columns, {rows} rows"
        yield from _compiled(name, lambda given=given: obs_triton.prune_block(*given))


def _sweep(rows: int, cols: int, block: int, dtype: torch.dtype) -> None:
    def empty(*shape: int, kind: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=kind, device="meta")

    i, j = rows // block, cols // block
    sweeps.sweep(
        empty(rows, cols),
        empty(rows, cols),
        empty(rows, cols // 4, kind=torch.uint8),
        empty(i, block, block),
        empty(j, block, block),
        empty(j, block // 4, 6, 3),
    )


def _compiled(name: str, launch: Any) -> Iterator[dict[str, Any]]:
    _found.clear()
    try:
        launch()
    except Exception as error:
        last = str(error).strip().rpartition("\n")[2]
        yield {"launch": name, "fault": f"does not compile: {type(error).__name__}: {last[-300:]}"}
        return
    for kernel, made in _found:
        yield {"launch": name, "kernel": kernel.__name__, **_about(made)}


_known: dict[str, dict[str, Any]] = {}


def _about(made: Any) -> dict[str, Any]:
    """Registers, shared memory, spills and tensor-core instructions of a compiled kernel."""
    if made.hash not in _known:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(made.asm["cubin"])
            file.flush()
            usage = _tool("-res-usage", file.name)
            code = _tool("-sass", file.name)
        found = re.search(r"REG:(\d+)", usage)
        operations = _LINE.findall(code)
        counts = Counter(name for _, name, _ in operations)
        _known[made.hash] = {
            "registers": int(found[1]) if found else None,
            "shared": made.metadata.shared,
            "spills": counts["LDL"] + counts["STL"],
            "instructions": len(operations),
            "loop": longest_loop(operations),
            "wide loads": any(wide in made.asm["ptx"] for wide in WIDE_LOADS),
            "tensor cores": {name: n for name, n in counts.items() if "MMA" in name},
        }
    return _known[made.hash]


def longest_loop(operations: list[tuple[str, str, str]]) -> int:
    """Instructions of the longest innermost loop, 0 without any: (address, name, operands) each."""
    addresses = [int(address, 16) for address, _, _ in operations]
    spans = []
    for end, (_, name, operands) in zip(addresses, operations, strict=True):
        target = re.search(r"0x([0-9a-f]+)", operands)
        if name == "BRA" and target and (start := int(target[1], 16)) < end:
            spans.append((start, end))
    inner = [
        one
        for one in spans
        if not any(one != o and one[0] <= o[0] <= o[1] <= one[1] for o in spans)
    ]
    return max((sum(a <= place <= b for place in addresses) for a, b in inner), default=0)


def _tool(option: str, file: str) -> str:
    command = [str(_TOOLS / "cuobjdump"), option, file]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def fault(row: dict[str, Any], instruction: str) -> str | None:
    """What is wrong with a launch of the runtime."""
    if "fault" in row:
        return str(row["fault"])
    if row["shared"] > SHARED_BYTES:
        return f"{row['shared']} bytes of shared memory"
    if row["kernel"] not in RUNTIME:
        return None
    if row["spills"]:
        return f"spills: {row['spills']} loads and stores"
    if "float32" in row["launch"] or "block 4 " in row["launch"] or "block 48 " in row["launch"]:
        return None
    if row["kernel"] == "core_kernel" and not row["wide loads"]:
        return "narrow loads"
    block = re.search(r"block (\d+)", row["launch"])
    if row["kernel"] != "core_kernel" and block and int(block[1]) < WIDE_ROWS:
        instruction = "HMMA"  # what there is for tiles of fewer rows
    if not any(name.startswith(instruction) for name in row["tensor cores"]):
        return f"no {instruction}: {row['tensor cores'] or 'no tensor cores at all'}"
    return None


def main() -> None:
    """Compile, print a line for each architecture, and fail where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architectures", type=int, nargs="+", default=list(ARCHITECTURES))
    parser.add_argument("--quick", action="store_true", help="a few launches")
    parser.add_argument("--json", type=Path, help="every launch, as JSON")
    options = parser.parse_args()
    gpu = Gpu()
    driver.set_active(gpu)
    JITFunction.run = _only_compile
    rows: list[dict[str, Any]] = []
    faults = 0
    for architecture in options.architectures:
        processors, instruction = ARCHITECTURES[architecture]
        gpu.architecture = architecture
        backend._processors = sweeps._processors = lambda _device, count=processors: count
        _known.clear()
        found = [
            *compile_runtime(options.quick),
            *compile_gated(options.quick),
            *compile_sweeps(options.quick),
            *compile_sparsegpt(),
        ]
        for row in found:
            row["architecture"] = architecture
            row["fault"] = fault(row, instruction)
            if row["fault"]:
                faults += 1
                print(f"sm_{architecture}: {row['launch']}: {row.get('kernel')}: {row['fault']}")
        rows += found
        print(summary(architecture, found), flush=True)
        if options.json:  # each time: a run of hours may be stopped
            write(options.json, rows)
    sys.exit(1 if faults else 0)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """When and with what, and a line for each kernel of each launch."""
    about = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "versions": versions("armor", "python", "torch", "triton"),
    }
    head = json.dumps(about)[:-1]
    lines = ",\n".join(json.dumps(row) for row in rows)
    path.write_text(f'{head}, "launches": [\n{lines}\n]}}\n', encoding="utf-8")


def summary(architecture: int, rows: list[dict[str, Any]]) -> str:
    """One line: the most that any kernel takes."""
    parts = [f"sm_{architecture}: {len({row['launch'] for row in rows})} launches"]
    for kind, own in (
        ("runtime", [row for row in rows if row.get("kernel") in RUNTIME]),
        ("sweep", [row for row in rows if row.get("kernel") == "_sweep"]),
        ("SparseGPT", [row for row in rows if row.get("kernel") == "_prune"]),
    ):
        if own:
            most = {key: max(row[key] for row in own) for key in ("registers", "shared", "spills")}
            parts.append(
                f"{kind}: {most['registers']} registers, {most['shared']} bytes shared,"
                f" {most['spills']} spills"
            )
    return "; ".join(parts)


if __name__ == "__main__":
    main()
