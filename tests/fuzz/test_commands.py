"""Folders that lie, given to every command: exit code 2, one line, and nothing written."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from armor.cli import main
from armor.errors import ArmorError
from armor.hf.load import load
from armor.models.load import load_model, load_tokenizer

pytestmark = pytest.mark.transformers_compat
Spoil = Callable[[Path], Any]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["armor", *arguments])
    try:
        main()
    except SystemExit as ending:
        return int(ending.code or 0)
    return 0


def config(**changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        data = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(data | changes))

    return spoil


def write(name: str, content: bytes | str) -> Spoil:
    raw = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(raw)


def index(file: str) -> Spoil:
    def spoil(folder: Path) -> None:
        raw = (folder / WEIGHTS).read_bytes()
        names = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        names.pop("__metadata__", None)
        (folder / WEIGHTS).rename(folder.parent / "outside.safetensors")
        (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, file)}))

    return spoil


def cut(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - 1)


def longer(folder: Path) -> None:
    """A header that claims a terabyte, in a file that has it (and takes no room)."""
    raw = (folder / WEIGHTS).read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    size = len(raw) - end
    header["more"] = {"dtype": "U8", "shape": [10**12], "data_offsets": [size, size + 10**12]}
    encoded = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(encoded).to_bytes(8, "little") + encoded + raw[end:])


def linked(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        shutil.move(folder / name, folder.parent / "outside")
        (folder / name).symlink_to(folder.parent / "outside")

    return spoil


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")


def code(folder: Path) -> None:
    config(model_type="mine", auto_map={"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"})(
        folder
    )
    (folder / "mine.py").write_text("open('executed', 'w')")


def huge(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        with (folder / name).open("ab") as file:
            file.truncate(10**12)

    return spoil


BROKEN: dict[str, tuple[Spoil, str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "config not JSON": (write("config.json", "{"), "config.json"),
    "config not UTF-8": (write("config.json", b'{"a": "\xff"}'), "config.json"),
    "config with a key twice": (write("config.json", '{"a": 1, "a": 2}'), "same key twice"),
    "config nested deeply": (write("config.json", "[" * 10**5), "nested too deeply"),
    "config of a terabyte": (huge("config.json"), "larger than 64 MB"),
    "cut weights": (cut, "cannot read"),
    "a header of terabytes": (longer, "cannot read"),
    "a header length of terabytes": (write(WEIGHTS, b"\xff" * 7 + b"\0{}"), "cannot read"),
    "pickled weights": (pickled, "only pickled weights"),
    "an index out of the folder": (index("../outside.safetensors"), "leads out of the folder"),
    "an index to a device": (index("/dev/zero"), "leads out of the folder"),
    "an index to no file": (index("gone.safetensors"), "'gone.safetensors' is missing"),
    "weights linked from outside": (linked(WEIGHTS), "link out of its folder"),
    "config linked from outside": (linked("config.json"), "link out of its folder"),
}
# What only those who load the model can see, or would run into.
UNLOADABLE: dict[str, tuple[Spoil, str]] = {
    "code": (code, "needs code from the model's folder"),
    "an adapter": (write("adapter_config.json", "{}"), "holds an adapter"),
    "weights of another name": (config(transformers_weights="../x.safetensors"), "weights file of"),
    "a million layers": (config(num_hidden_layers=10**6), "num_hidden_layers' is 1000000, more"),
    "a million labels": (config(num_labels=10**6), "num_labels"),
    "a vocabulary of terabytes": (config(vocab_size=10**12), "describes 3.2e+13 parameters"),
    "wide layers": (config(intermediate_size=10**9), "parameters, its files hold"),
    "no heads": (config(num_attention_heads=0), "cannot"),
    "a number beyond any": (config(hidden_size=10**4000), "cannot"),
    "a sidecar of a terabyte": (huge("more.json"), "too much for a file beside the weights"),
    "tokenizer linked from outside": (linked("tokenizer.json"), "link out of its folder"),
}
COMMANDS = {
    "inspect": ["inspect", "MODEL", "--json", "OUT"],
    "export": ["export", "MODEL", "--out", "OUT"],
    "bench": ["bench", "MODEL", "--json", "OUT"],
    "eval": ["eval", "MODEL", "--ppl", "TEXT", "--json", "OUT"],
    "prune": ["prune", "MODEL", "--calibration", "TEXT", "--seq-len", "32", "--out", "OUT"],
}
CASES = [
    (command, kind, case)
    for command in COMMANDS
    for kind, cases in (("broken", BROKEN), ("unloadable", UNLOADABLE))
    for case in cases
    if kind == "broken" or command in ("bench", "eval", "prune")
]


@pytest.mark.parametrize(("command", "kind", "case"), CASES)
def test_refused(
    loadable: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    command: str,
    kind: str,
    case: str,
) -> None:
    spoil, message = (BROKEN if kind == "broken" else UNLOADABLE)[case]
    folder = tmp_path / "model"
    shutil.copytree(loadable.dense if command == "prune" else loadable.pruned, folder)
    spoil(folder)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    places = {"MODEL": str(folder), "OUT": str(tmp_path / "out"), "TEXT": str(loadable.text)}
    code = run(monkeypatch, *(places.get(word, word) for word in COMMANDS[command]))
    out, err = capfd.readouterr()
    assert code == 2, err
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    assert lines[0].startswith("armor: error: ")
    assert message in lines[0]
    assert out == ""
    assert sorted(tmp_path.iterdir()) == before


def test_the_sound_folders_are_read(
    loadable: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(monkeypatch, "inspect", str(loadable.pruned)) == 0
    assert run(monkeypatch, "export", str(loadable.pruned), "--out", str(tmp_path / "out")) == 0
    load_tokenizer(str(tmp_path / "out"))
    text = str(loadable.text)
    assert run(monkeypatch, "eval", str(tmp_path / "out"), "--ppl", text, "--seq-len", "32") == 0


def test_code_in_a_folder_is_not_run_where_transformers_knows_the_type(
    loadable: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(loadable.pruned, tmp_path / "model")
    config(auto_map={"AutoModelForCausalLM": "mine.M", "AutoConfig": "mine.C"})(folder)
    (folder / "mine.py").write_text("open('executed', 'w')")
    monkeypatch.chdir(tmp_path)
    for loading in (load, load_model):
        assert type(loading(str(folder))).__name__ == "LlamaForCausalLM"
    assert not (tmp_path / "executed").exists()
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text("open('executed', 'w')")
    for loading in (load, load_model):
        with pytest.raises(ArmorError, match="custom_generate"):
            loading(str(folder))
    assert not (tmp_path / "executed").exists()


def test_messages_are_one_line_whatever_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("a\nb", "\x1b[2J", "x" * 5000, "[/bold]"):
        assert run(monkeypatch, "inspect", str(tmp_path / name)) == 2
        assert capfd.readouterr().err.count("\n") == 1
