"""The rules of the house: small files, small functions, a true map, no places of one machine."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "armor"
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS = 395, 80, 12

Function = ast.FunctionDef | ast.AsyncFunctionDef


def offenders(check: Callable[[Function], str | None]) -> list[str]:
    """The functions of armor, but for kernels and commands, that `check` says something about."""
    found = []
    for file in FILES:
        for function in functions(file):
            if is_kernel(function) or is_command(file, function):
                continue
            if says := check(function):
                found.append(f"{file.relative_to(ROOT)}:{function.lineno} {function.name} {says}")
    return found


@cache
def functions(file: Path) -> list[Function]:
    """All functions and methods of a file."""
    return found_in(file.read_text(encoding="utf-8"))


def found_in(source: str) -> list[Function]:
    """All functions and methods of a module."""
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, Function)]


def is_kernel(function: Function) -> bool:
    """Whether Numba or Triton compile a function: a call costs time there, so it may be long."""
    names = (ast.unparse(decorator).partition("(")[0] for decorator in function.decorator_list)
    return any(name.rpartition(".")[2] in ("njit", "jit", "_kernel") for name in names)


def is_command(file: Path, function: Function) -> bool:
    """Whether the parameters of a function are the options of a command."""
    return file.parent.name == "cli" and function.name.endswith("_command")


def too_long(function: Function) -> str | None:
    assert function.end_lineno is not None
    first = min([function.lineno, *(part.lineno for part in function.decorator_list)])
    length = function.end_lineno - first + 1
    return f"has {length} lines" if length > MAX_FUNCTION else None


def too_wide(function: Function) -> str | None:
    given = function.args
    count = len(given.posonlyargs) + len(given.args) + len(given.kwonlyargs)
    return f"has {count} parameters" if count > MAX_PARAMETERS else None


def test_no_file_is_too_long() -> None:
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    found = [
        f"{file.relative_to(ROOT)} has {n} lines" for file, n in lengths.items() if n > MAX_FILE
    ]
    assert not found, "\n".join(found)


def test_no_function_is_too_long() -> None:
    found = offenders(too_long)
    assert not found, "\n".join(found)


def test_no_signature_is_too_wide() -> None:
    found = offenders(too_wide)
    assert not found, "\n".join(found)


def test_the_checks_find_what_they_look_for() -> None:
    body = "\n".join("    pass" for _ in range(MAX_FUNCTION))
    parameters = ", ".join(f"p{number}" for number in range(MAX_PARAMETERS + 1))
    (long, wide) = found_in(f"def long():\n{body}\ndef wide({parameters}): pass")
    assert too_long(long) == "has 81 lines"
    assert too_wide(wide) == "has 13 parameters"
    assert too_long(wide) is too_wide(long) is None


def test_the_map_shows_what_there_is() -> None:
    page = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    section = page.partition("## Map of src/armor")[2].partition("\n## ")[0]
    mapped = re.findall(r"^\| `([^`]+)` \| \S.*\|$", section, re.MULTILINE)
    folders = {f"{file.parent.name}/" for file in PACKAGE.glob("*/__init__.py")}
    assert sorted(mapped) == sorted(folders | {file.name for file in PACKAGE.glob("*.py")})


def test_no_path_of_one_machine() -> None:
    """Scratch folders and homes are of whoever wrote them."""
    place = re.compile(r"(?<![\w.~$}\-/])/(?:work|tmp|home|root|Users)/\w")
    folders = ("src", "tests", "docs", "examples", "benchmarks", "scripts", ".ci")
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*"))]
    files += [path for path in sorted(ROOT.iterdir()) if path.name != ".git"]
    read = {".py", ".md", ".toml", ".yml", ".yaml", ".cff", ".json", ".txt", ".html", ""}
    found = []
    for file in files:
        if not file.is_file() or file.suffix not in read or file == Path(__file__):
            continue
        for number, line in enumerate(file.read_text("utf-8", "replace").split("\n"), 1):
            if place.search(line):
                found.append(f"{file.relative_to(ROOT)}:{number} {line.strip()[:80]}")
    assert not found, "\n".join(found)


#: What makes a tensor from nothing, in the dtype and on the device that are set for the process.
ALLOCATING = {
    *("arange", "as_tensor", "asarray", "empty", "eye", "full", "linspace", "logspace", "ones"),
    *("rand", "randint", "randn", "randperm", "scalar_tensor", "tensor", "tril_indices"),
    *("triu_indices", "zeros"),
}


def unspecified(source: str) -> list[str]:
    """The calls in a module that leave dtype or device to what is set for the process."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if ast.unparse(node.func.value) != "torch" or node.func.attr not in ALLOCATING:
            continue
        named = {keyword.arg for keyword in node.keywords}
        if None not in named and not {"dtype", "device"} <= named:  # None: given as ``**``
            found.append(f"{node.lineno} {ast.unparse(node)[:80]}")
    return found


def test_every_new_tensor_names_dtype_and_device() -> None:
    assert len(unspecified("import torch\ntorch.zeros(3)\ntorch.ones(3, device=d)")) == 2
    assert not unspecified("torch.zeros(3, dtype=a, device=b)\ntorch.ones(3, **same)")
    found = [
        f"{file.relative_to(ROOT)}:{call}"
        for file in FILES
        for call in unspecified(file.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


def test_only_the_plug_in_imports_vllm() -> None:
    """And of it only what vLLM itself loads: `armor inspect` needs the rest."""
    importing = {
        str(file.relative_to(PACKAGE))
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm")
        or (
            isinstance(node, ast.Import) and any(n.name.split(".")[0] == "vllm" for n in node.names)
        )
    }
    loaded = {"config.py", "experts.py", "linear.py", "plugin.py"}
    assert importing == {f"vllm/{name}" for name in loaded}
