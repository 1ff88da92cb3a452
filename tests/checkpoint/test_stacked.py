"""Matrices of experts inside one tensor: cut, read from a file, and put together again."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from armor.checkpoint.joined import (
    Joined,
    check_joined,
    in_parts,
    joined_from_metadata,
    joined_to_metadata,
)
from armor.checkpoint.stacked import PLAIN_ROWS, Stacking
from armor.checkpoint.tensorfile import read_file
from armor.errors import ArmorError

EXPERTS, OUT, IN = 3, 6, 5
STACKINGS = [Stacking(*flags) for flags in itertools.product([False, True], repeat=2)]


def experts(stacking: Stacking, bias: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A tensor of random experts, and what the two parts of each are, expert by expert."""
    generator = torch.Generator().manual_seed(0)
    shape = (EXPERTS, OUT) if bias else (EXPERTS, OUT, IN)
    rows = torch.randn(shape, generator=generator).to(torch.bfloat16)
    parts = []
    for own in rows:
        parts += [own[::2], own[1::2]] if stacking.interleaved else [own[:3], own[3:]]
    whole = rows.mT.contiguous() if stacking.transposed and not bias else rows
    return whole, parts


def joined(stacking: Stacking, bias: bool) -> Joined:
    whole, _ = experts(stacking, bias)
    names = [f"e.{number}.{name}" for number in range(EXPERTS) for name in ("gate", "up")]
    return Joined(tuple(whole.shape), dict.fromkeys(names, OUT // 2), stacking, bias)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("stacking", STACKINGS, ids=str)
def test_parts_of_a_file(stacking: Stacking, bias: bool, tmp_path: Path) -> None:
    if bias and stacking.transposed:
        pytest.skip("biases are never transposed")
    whole, parts = experts(stacking, bias)
    save_file({"before": torch.ones(3), "both": whole}, tmp_path / "file")
    about = joined(stacking, bias)
    assert joined_from_metadata(joined_to_metadata({"both": about})) == {"both": about}
    found = in_parts(read_file(tmp_path / "file"), {"both": about})
    kind = "bias" if bias else "weight"
    assert found.keys() == {"before", *(f"{name}.{kind}" for name in about.parts)}
    for name, part in zip(about.parts, parts, strict=True):
        stored = found[f"{name}.{kind}"]
        assert stored.shape == part.shape
        assert stored.nbytes == part.nbytes
        assert torch.equal(stored.load(), part)
        raw = part.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        assert b"".join(stored.chunks()) == raw
        assert [len(chunk) for chunk in stored.chunks(7)] == [7] * (len(raw) // 7) + [
            rest for rest in [len(raw) % 7] if rest
        ]
        stored.prefetch()
    check_joined({"both": about}, {}, {n: s for n, s in found.items() if n != "before"})
    again = about.join(lambda name: found[name].load())
    assert torch.equal(again, whole)
    assert again.is_contiguous()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"turned": True}, "unknown setting 'turned'; upgrade armor"),
        ({"transposed": 1}, "neither true nor false"),
        ({"bias": "yes"}, "neither true nor false"),
        ({"shape": [10], "bias": True, "parts": {"a": 5, "b": 5}, "transposed": True}, "too few"),
        ({"shape": [10], "parts": {"a": 5, "b": 5}}, "too few sizes"),
    ],
)
def test_metadata_that_is_not_sound(changes: dict[str, Any], says: str) -> None:
    sound = {"shape": [2, 3, 4], "parts": {"a": 4, "b": 4}, "transposed": True}
    assert joined_from_metadata({"x": sound})["x"].is_sound()
    with pytest.raises(ArmorError, match=says):
        joined_from_metadata({"x": sound | changes})


def test_parts_that_do_not_fit() -> None:
    stacked = Stacking(transposed=True)
    assert Joined((2, 3, 4), {"a": 4, "b": 4}, stacked).is_sound()
    assert not Joined((2, 3, 4), {"a": 4}, stacked).is_sound()
    assert not Joined((2, 3, 4), {"a": 5, "b": 3}, stacked).is_sound()
    assert not Joined((2, 3, 4), {"a": 2, "b": 2, "c": 4}, stacked).is_sound()
    assert not Joined((2, 2, 3, 4), {"a": 8, "b": 8}, stacked).is_sound()
    assert not Joined((4, 8), {"a": 3, "b": 5}, Stacking(interleaved=True)).is_sound()
    assert Joined((4, 8), {"a": 3, "b": 1}, PLAIN_ROWS).is_sound()
