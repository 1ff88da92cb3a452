"""BOS before every window: yes, no, or as the tokenizer does."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

import armor
from armor.checkpoint.jsonfile import read_json
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.run.prune import prune
from armor.text.bos import resolve_bos
from armor.text.windows import token_windows

END = 256  # the byte tokenizer's only special token
TEXT = ["abcdefghijklmnopqrstuvwxyz"]


def with_bos(tokenizer: Any, before: bool) -> Any:
    """A copy whose BOS is "<end>", put before a text or not."""
    found = copy.deepcopy(tokenizer)
    found.bos_token = "<end>"
    if before:
        found.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<end> $A", special_tokens=[("<end>", END)]
        )
    return found


def test_auto_does_as_the_tokenizer(byte_tokenizer: Any) -> None:
    for tokenizer, auto in (
        (byte_tokenizer, "no"),
        (with_bos(byte_tokenizer, before=False), "no"),
        (with_bos(byte_tokenizer, before=True), "yes"),
    ):
        assert resolve_bos("auto", tokenizer) == auto
        assert resolve_bos("no", tokenizer) == "no"
    assert resolve_bos("yes", with_bos(byte_tokenizer, before=False)) == "yes"


def test_refusals(byte_tokenizer: Any) -> None:
    with pytest.raises(ArmorError, match="has no BOS token; take --bos no or auto"):
        token_windows(TEXT, byte_tokenizer, 1, 8, bos="yes")
    with pytest.raises(ArmorError, match="unknown --bos 'maybe'; valid: auto, yes, no"):
        resolve_bos("maybe", byte_tokenizer)
    with pytest.raises(ArmorError, match="unknown bos 'maybe'; valid: auto, yes, no"):
        PruneConfig(bos="maybe")
    with pytest.raises(ArmorError, match="nothing but BOS; take --seq-len 2"):
        token_windows(TEXT, with_bos(byte_tokenizer, before=True), 1, 1, bos="yes")


def test_a_window_is_bos_and_one_token_less_of_text(byte_tokenizer: Any) -> None:
    tokenizer = with_bos(byte_tokenizer, before=True)
    ids = tokenizer(TEXT[0], add_special_tokens=False)["input_ids"]
    for choice in ("yes", "auto"):
        windows = token_windows(TEXT, tokenizer, 5, 6, bos=choice)
        assert windows.tolist() == [[END, *ids[i : i + 5]] for i in range(0, 25, 5)]
    plain = token_windows(TEXT, tokenizer, 5, 5, bos="no")
    assert plain.equal(windows[:, 1:])
    drawn = token_windows(TEXT, tokenizer, 3, 6, seed=1, bos="yes")
    assert drawn[:, 1:].equal(token_windows(TEXT, tokenizer, 3, 5, seed=1))


def test_a_run_writes_down_what_was_used(
    tiny_model: Path, byte_tokenizer: Any, tmp_path: Path
) -> None:
    source = tmp_path / "model"
    source.mkdir()
    for file in tiny_model.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    with_bos(byte_tokenizer, before=True).save_pretrained(source)
    config = PruneConfig(
        calibration=("a text to be read " * 40,), samples=4, seq_len=16, method="wanda"
    )
    used, weights = {}, {}
    for choice in ("no", "auto", "yes"):
        changed = PruneConfig(**{**config.to_dict(), "bos": choice})
        out = prune(str(source), changed, tmp_path / choice).out
        used[choice] = read_json(out / "armor_run.json")["config"]["bos"]
        weights[choice] = (out / "model.safetensors").read_bytes()
    assert used == {"no": "no", "auto": "yes", "yes": "yes"}
    assert weights["auto"] == weights["yes"] != weights["no"]
    assert armor.PruneConfig.from_dict({"seed": 1}).bos == "no"
