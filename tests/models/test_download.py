"""Models of the Hub, served by a stand-in: only what is needed comes, and refusals say why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.transformers_compat
SHARD = "model-00001-of-00001.safetensors"
#: Opens each model and prints its files, or the one line with which it is refused.
_OPEN = """
import json, sys
from armor.errors import ArmorError
from armor.models.folder import ModelFolder
said = {}
for name in sys.argv[1:]:
    try:
        said[name] = sorted(path.name for path in ModelFolder.open(name).path.iterdir())
    except ArmorError as error:
        said[name] = str(error)
print(json.dumps(said))
"""


def opened(hub: Any, cache: Path, *names: str, offline: bool = False) -> dict[str, Any]:
    """What `ModelFolder.open` gives for each name, in a fresh process that asks `hub`."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_TOKEN": "",
        "no_proxy": "127.0.0.1",
    }
    command = [sys.executable, "-c", _OPEN, *names]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    assert all("\n" not in said for said in found.values() if isinstance(said, str))
    return found


@pytest.fixture
def model(make_llama: Callable[..., Any], hub: Any) -> Path:
    """The model org/model on the Hub: one shard with its index, beside weights for others."""
    folder: Path = hub.root / "org" / "model"
    make_llama(vocab_size=32).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / SHARD)
    index = {"weight_map": dict.fromkeys(tensors, SHARD)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for extra in ("consolidated", "model.fp32", "model", "onnx/model", "original/consolidated.00"):
        (folder / extra).parent.mkdir(exist_ok=True)
        save_file(tensors, folder / f"{extra}.safetensors")
    for text in ("USE_POLICY.md", "LICENSE", "README.md", "onnx/config.json"):
        (folder / text).write_text("{}")
    return folder


def test_only_what_the_index_names_is_fetched(hub: Any, model: Path, tmp_path: Path) -> None:
    files = opened(hub, tmp_path / "cache", "org/model")["org/model"]
    small = {"config.json", "generation_config.json", "LICENSE", "USE_POLICY.md"}
    assert set(files) == {SHARD, "model.safetensors.index.json", *small}
    assert [name for name, _ in hub.sent if name.endswith(".safetensors")] == [f"org/model/{SHARD}"]
    before = len(hub.sent)
    assert opened(hub, tmp_path / "cache", "org/model", offline=True)["org/model"] == files
    assert len(hub.sent) == before


def test_refusals_say_how_to_get_in(hub: Any, model: Path, tmp_path: Path) -> None:
    for name in ("gated", "pickled"):
        (hub.root / "org" / name).mkdir()
        (hub.root / "org" / name / "config.json").write_text((model / "config.json").read_text())
    (hub.root / "org" / "pickled" / "pytorch_model.bin").write_text("")
    hub.denied = {"org/closed": "wholly", "org/gated": "files"}
    names = ("org/closed", "org/gated", "org/none", "org/pickled", "a/b/c")
    said = opened(hub, tmp_path / "cache", *names)
    for name in ("org/closed", "org/gated"):
        assert f"{name} is a gated model: accept its licence at {hub.url}/{name}" in said[name]
        assert "`hf auth login`" in said[name]
    assert "org/none: the Hub shows no such model: check the name" in said["org/none"]
    assert "`hf auth login`" in said["org/none"]
    assert "only pytorch_model.bin, and pickled weights are never read" in said["org/pickled"]
    assert "not the form of a Hub id" in said["a/b/c"]
    assert not [name for name, _ in hub.sent if name.endswith((".bin", ".safetensors"))]


def test_without_a_network_the_cache_is_enough(hub: Any, model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    files = opened(hub, cache, "org/model")["org/model"]
    hub.url = "http://127.0.0.1:9"  # where nobody listens
    said = opened(hub, cache, "org/model", "org/other")
    assert said["org/model"] == files
    assert f"org/other is not in the local cache, and {hub.url} cannot" in said["org/other"]
    assert "check the network" in said["org/other"]
    (snapshot,) = cache.glob("hub/models--org--model/snapshots/*")
    (snapshot / SHARD).unlink()
    said = opened(hub, cache, "org/model", "org/other", offline=True)
    assert f"org/model: the local cache lacks {SHARD}" in said["org/model"]
    assert "HF_HUB_OFFLINE forbids to download it: unset that variable" in said["org/other"]
