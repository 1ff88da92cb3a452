"""BOS before every window: always, never, or as the tokenizer does."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import armor
from armor.checkpoint.jsonfile import read_json
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.run.prune import prune
from armor.text.bos import resolve_bos
from armor.text.windows import token_windows

END = 256  # the byte tokenizer's only special token
TEXT = ["abcdefghijklmnopqrstuvwxyz"]


@pytest.fixture
def bare_bos_tokenizer(byte_tokenizer: Any) -> Any:
    """It has a BOS token, but puts it before nothing."""
    tokenizer = copy.deepcopy(byte_tokenizer)
    tokenizer.bos_token = "<end>"
    return tokenizer


def test_auto_does_as_the_tokenizer(
    byte_tokenizer: Any, bare_bos_tokenizer: Any, bos_tokenizer: Any
) -> None:
    for tokenizer, auto in (
        (byte_tokenizer, "never"),
        (bare_bos_tokenizer, "never"),
        (bos_tokenizer, "always"),
    ):
        assert resolve_bos("auto", tokenizer) == auto
        assert resolve_bos("never", tokenizer) == resolve_bos("no", tokenizer) == "never"
    for name in ("always", "yes"):
        assert resolve_bos(name, bare_bos_tokenizer) == "always"


def gemma_folder(folder: Path) -> Path:
    """A tokenizer as Gemma's are stored: BOS is added by a template in tokenizer.json."""
    from tokenizers import Tokenizer, models, processors

    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    vocabulary = {word: number for number, word in enumerate([*special, "a", "b"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {f"{word[1:-1]}_token": word for word in special}
    settings = {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma2"}))
    return folder


@pytest.mark.transformers_compat
def test_auto_is_always_for_gemma(tmp_path: Path) -> None:
    """Whose models collapse without."""
    tokenizer = AutoTokenizer.from_pretrained(gemma_folder(tmp_path))
    assert "Gemma" in type(tokenizer).__name__
    assert resolve_bos("auto", tokenizer) == "always"
    windows = token_windows(("abbab" * 4,), tokenizer, 4, 6)
    assert windows[:, 0].tolist() == [2] * 4
    assert 2 not in windows[:, 1:]


def test_refusals(byte_tokenizer: Any, bos_tokenizer: Any) -> None:
    with pytest.raises(ArmorError, match="has no BOS token; take --bos never or auto"):
        token_windows(TEXT, byte_tokenizer, 1, 8, bos="always")
    with pytest.raises(ArmorError, match="unknown --bos 'maybe'; valid: auto, always, never"):
        resolve_bos("maybe", byte_tokenizer)
    with pytest.raises(ArmorError, match="unknown bos 'maybe'; valid: auto, always, never"):
        PruneConfig(bos="maybe")
    with pytest.raises(ArmorError, match="nothing but BOS; take --seq-len 2"):
        token_windows(TEXT, bos_tokenizer, 1, 1, bos="always")


def test_a_window_is_bos_and_one_token_less_of_text(bos_tokenizer: Any) -> None:
    tokenizer = bos_tokenizer
    ids = tokenizer(TEXT[0], add_special_tokens=False)["input_ids"]
    for choice in ("always", "auto"):
        windows = token_windows(TEXT, tokenizer, 5, 6, bos=choice)
        assert windows.tolist() == [[END, *ids[i : i + 5]] for i in range(0, 25, 5)]
    plain = token_windows(TEXT, tokenizer, 5, 5, bos="never")
    assert plain.equal(windows[:, 1:])
    drawn = token_windows(TEXT, tokenizer, 3, 6, seed=1, bos="always")
    assert drawn[:, 1:].equal(token_windows(TEXT, tokenizer, 3, 5, seed=1, bos="never"))


def test_a_run_writes_down_what_was_used(tiny_bos_model: Path, tmp_path: Path) -> None:
    config = PruneConfig(
        calibration=("a text to be read " * 40,), samples=4, seq_len=16, method="wanda"
    )
    used, weights = {}, {}
    for choice in ("never", "auto", "always"):
        changed = PruneConfig(**{**config.to_dict(), "bos": choice})
        out = prune(str(tiny_bos_model), changed, tmp_path / choice).out
        used[choice] = read_json(out / "armor_run.json")["config"]["bos"]
        weights[choice] = (out / "model.safetensors").read_bytes()
    assert used == {"never": "never", "auto": "always", "always": "always"}
    assert weights["auto"] == weights["always"] != weights["never"]


def test_names_of_earlier_versions_are_read() -> None:
    for old, new in (("yes", "always"), ("no", "never")):
        stored = {**PruneConfig().to_dict(), "bos": old}
        assert armor.PruneConfig.from_dict(stored) == PruneConfig(bos=new)
        assert PruneConfig(bos=old).to_dict()["bos"] == new
    assert armor.PruneConfig.from_dict({"seed": 1}).bos == "auto"
